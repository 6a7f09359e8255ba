# SPDX-License-Identifier: Apache-2.0
"""The latest refresh tokens of a session are found without the old ones."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_refresh_token_session_id_used_at_us", "refresh_token", ["session_id", "used_at_us"])
    op.drop_index("ix_refresh_token_session_id", table_name="refresh_token")
