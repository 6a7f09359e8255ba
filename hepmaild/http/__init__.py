# SPDX-License-Identifier: Apache-2.0
"""The HTTPS door: Quart-Trio on hypercorn, HTTP/1.1 and HTTP/2.

The ground: `server` binds, limits and serves connections; `connection`, `http2` and `compat` work around the libraries
below; `app` is the application and the boundary around every request; `call` is what is known of one; `limits` bounds
connections and memory; `errors` says refusals as JSON.
Sending: `quick` reads plain requests without the framework; `auth`, `body`, `fields` and `send` are the send endpoint,
step by step; `own_fields` and `own_smtp` are the other one; `uploads` takes files.
What JSON looks like: `shapes` (in) and `answers` (out), read by `typed`, described by `openapi`, `openapi_table`,
`examples` and `docs_page`.
People and their programs: `oauth`, the websocket `live`, and the pages in `dashboard`.
Nothing here decides about mail: that is the intake's.  No SMTP and no delivery; what is stored is asked of `storage`.
"""
