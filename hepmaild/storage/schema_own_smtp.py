# SPDX-License-Identifier: Apache-2.0
"""The table of accounts' own SMTP servers (contract: own-smtp-api.md)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text

from hepmaild.storage.schema_base import metadata

# Each is a route of its own, `own:ID` (`own_routes`), and its address a sender of the account.  It is paused when
# `pause` has its route.
smtp_server = Table(
    "smtp_server",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(36), ForeignKey("account.id"), nullable=False),
    Column("name", String(100), nullable=False),
    Column("host", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("tls", String(20), nullable=False),  # starttls, implicit, none
    Column("username", Text, nullable=False),  # "": no login
    Column("password_sealed", LargeBinary, nullable=True),  # sealed (`vault`), bound to its row
    Column("address", Text, nullable=False),  # the only one its mail may have in From
    Column("address_key", Text, nullable=False),
    Column("from_name", Text, nullable=False),
    Column("daily_cap", Integer, nullable=False),
    Column("is_default", Boolean, nullable=False),  # for calls that name none
    Column("created_at_us", BigInteger, nullable=False),
    Column("changed_at_us", BigInteger, nullable=False),
)
Index("uq_smtp_server_account_id_name", smtp_server.c.account_id, smtp_server.c.name, unique=True)
Index("uq_smtp_server_account_id_address_key", smtp_server.c.account_id, smtp_server.c.address_key, unique=True)
