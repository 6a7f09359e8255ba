# SPDX-License-Identifier: Apache-2.0
"""The SMTP submission door (RFC 6409, RFC 5321, RFC 8314).

Sans-IO: `state` (the table of what is allowed when), `commands` (what a line says), `sasl`, `replies`, `facts`,
`content` and `machine`: octets in, actions out, no clock and no socket.  Trio: `session` (one connection),
`listener` (the ports).  Nothing here decides about mail: that is the intake's.
"""
