# SPDX-License-Identifier: Apache-2.0
"""The door that most tests here talk to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.http.door import Running, open_door


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Running]:
    """HTTPS and plain HTTP on loopback."""
    async with open_door(tmp_path, plain=True) as running:
        yield running
