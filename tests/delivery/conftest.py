# SPDX-License-Identifier: Apache-2.0
"""DNS for the tests of the resolver: one pair of servers for all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.delivery.zones import ZONES
from tests.peers.nameservers import Nameservers, open_nameservers, require_nameservers


@pytest.fixture(scope="session")
def nameservers() -> Iterator[Nameservers]:
    """Knot and Unbound with `zones.ZONES`."""
    require_nameservers()
    with open_nameservers(ZONES) as servers:
        yield servers
