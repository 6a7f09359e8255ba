# SPDX-License-Identifier: Apache-2.0
"""Mail as data: addresses, replies, message content, composition, identifiers.

Everything here is pure: no clock, no randomness, no sockets, no event loop; what is needed of those is an argument.
The doors, the intake and the delivery engine speak to one another in these types.
"""
