# SPDX-License-Identifier: Apache-2.0
"""How a command reaches the store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from hepmaild.cli import backend
from hepmaild.config import Settings
from hepmaild.errors import StoreUnavailable


def count_slowly(conn: Connection) -> int:
    """Takes some seconds, as a look at a queue of a million does."""
    steps = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) SELECT count(*) FROM n"
    return int(conn.execute(text(steps)).scalar_one())


def test_a_look_may_take_longer_than_a_unit_of_the_daemon(tmp_path: Path) -> None:
    settings = Settings()
    settings = replace(
        settings,
        server=replace(settings.server, state_dir=tmp_path),
        database=replace(settings.database, unit_timeout_s=0.1),
    )
    assert backend.read(settings, count_slowly) == 3_000_000
    with pytest.raises(StoreUnavailable):
        backend.with_store(settings, lambda store: store.read(count_slowly))
