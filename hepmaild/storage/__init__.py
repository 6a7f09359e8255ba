# SPDX-License-Identifier: Apache-2.0
"""Everything that is kept: the tables, the plain functions that read and write them, and the store that runs these.

`schema` and the modules named after what they keep (accounts, keys, credits, messages, queue, …) are plain functions on
a SQLAlchemy `Connection`; `store` runs them, on SQLite in the loop's thread or beside it (decision 0021), on PostgreSQL
through asyncpg, `writer` many at once in one commit.  No rule of the mail business lives in the runners, no thread and
no loop in the functions.
"""
