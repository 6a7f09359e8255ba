# SPDX-License-Identifier: Apache-2.0
"""The delivery engine: from a row of the queue to a reply of a next hop.

What to work on: `scheduler` fetches what is due, `pool` has the workers, a `track` is a route with its lanes (`lane`,
`pace`), and `tracks` has all of them.  An `attempt` delivers one message: by `courier` over the `connections` that are
kept, or into the `sandbox`.  Where mail goes: `resolver`, by `mx`, `mta_sts` and `dane`, with `lookups` for DNS.
Sans-IO: `client` (what is said to a next hop), `reader`, `outcome` (what the answers mean for each recipient),
`tls_policy`, `route`, `job` (work as data, and what the engine asks of the store).  No door, and no database.
"""
