# SPDX-License-Identifier: Apache-2.0
"""The tables of what messages are made from: templates with their revisions, and files that were put in beforehand."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, LargeBinary, String, Table, Text
from sqlalchemy import UniqueConstraint as Unique

from hepmaild.storage.schema_base import metadata

template = Table(
    "template",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(36), ForeignKey("account.id"), nullable=False),
    Column("key", String(64), nullable=False),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),  # the number of the present one
    Column("samples", Text, nullable=False),  # JSON: values that the dashboard previews with
    Column("created_at_us", BigInteger, nullable=False),
    Column("modified_at_us", BigInteger, nullable=False),
    Unique("account_id", "key"),
)

# Never changed; gone only with their template.
template_revision = Table(
    "template_revision",
    metadata,
    Column("template_id", String(36), ForeignKey("template.id"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("html", Text, nullable=True),  # null: there is no such part
    Column("text", Text, nullable=True),
    Column("saved_by", Text, nullable=False),  # an e-mail address
    Column("at_us", BigInteger, nullable=False),
    Column("restored_from", Integer, nullable=True),  # the revision whose content this one has again
)

# A file that a caller put in, for messages to come.
upload = Table(
    "upload",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(36), nullable=False),
    Column("filename", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),  # in octets; while it arrives, what it may come to
    Column("is_complete", Boolean, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
)
Index("ix_upload_account_id", upload.c.account_id, upload.c.expires_at_us)
Index("ix_upload_expires_at_us", upload.c.expires_at_us)

upload_piece = Table(
    "upload_piece",
    metadata,
    Column("upload_id", String(36), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)
