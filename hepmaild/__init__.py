# SPDX-License-Identifier: Apache-2.0
"""hepmaild: transactional mail through two interchangeable doors, on one durable pipeline.

The daemon accepts mail by SMTP submission and by HTTPS, commits message, debit and queue entry as one unit, relays it
and records what happened.  `docs/architecture.md` has the map; `daemon.py` builds everything.
"""

__version__ = "0.1.0"
