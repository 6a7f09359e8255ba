# SPDX-License-Identifier: Apache-2.0
"""The chance in message ids is drawn a page at a time: nobody gets what somebody else got."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from hepmaild.prepare import random_octets


def test_no_two_draws_are_alike_in_any_thread() -> None:
    def draw(_: int) -> list[bytes]:
        return [random_octets(16) for _ in range(1000)]

    with ThreadPoolExecutor(8) as threads:
        drawn = [octets for part in threads.map(draw, range(16)) for octets in part]
    assert len(set(drawn)) == 16_000
    assert {len(octets) for octets in drawn} == {16}


def test_more_than_there_is_in_one_draw_is_never_given() -> None:
    with pytest.raises(AssertionError):
        random_octets(33)
