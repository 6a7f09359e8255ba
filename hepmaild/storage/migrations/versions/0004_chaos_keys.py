# SPDX-License-Identifier: Apache-2.0
"""Chaos keys: how the sandbox of a key misbehaves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("chaos", sa.String(length=20), nullable=True))
