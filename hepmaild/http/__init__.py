# SPDX-License-Identifier: Apache-2.0
"""The HTTPS door: Quart-Trio on hypercorn, HTTP/1.1 and HTTP/2.

`server` binds, limits and serves connections; `connection`, `http2` and `compat` work around the libraries below; `app`
is the application and the boundary around every request; `call` is what is known of one; `auth`, `body`, `fields` and
`send` are the send endpoint, step by step; `errors` says refusals as JSON; `limits` bounds connections and memory.
Nothing here decides about mail: that is the intake's.  No SMTP, no delivery, no database.
"""
