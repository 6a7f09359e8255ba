# SPDX-License-Identifier: Apache-2.0
"""Random lives of messages, in which credits add up, nothing is lost and nobody writes without a lease."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from sqlalchemy import Connection, create_engine

from hepmaild.config import InDoubt
from hepmaild.storage import schema
from tests.storage.books import Clock
from tests.storage.conftest import Opener
from tests.storage.queue_play import KINDS, Play, Step

_number = st.integers(0, 30)


class Lives(RuleBasedStateMachine):
    """On SQLite, in memory, so that a failure shrinks quickly."""

    def __init__(self) -> None:
        super().__init__()
        self._engine = create_engine("sqlite://")
        self._conn = self._engine.connect()
        schema.metadata.create_all(self._conn)

    @initialize(in_doubt=st.sampled_from(InDoubt))
    def begin(self, in_doubt: InDoubt) -> None:
        self.play = Play(self._conn, Clock(), in_doubt)

    @rule(kind=st.sampled_from(KINDS), a=_number, b=_number, c=_number)
    def step(self, kind: str, a: int, b: int, c: int) -> None:
        self.play.do(Step(kind, a, b, c))

    def teardown(self) -> None:
        try:
            if hasattr(self, "play"):
                self.play.end()
        finally:
            self._conn.close()
            self._engine.dispose()


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def walk(conn: Connection, seed: int, steps: int) -> Counter[str]:
    dice = random.Random(seed)
    play = Play(conn, Clock(), dice.choice(list(InDoubt)))
    for _ in range(steps):
        play.do(play.any_step(dice))
    play.end()
    return play.seen


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_lives_on_both_engines(opener: Opener, seed: int) -> None:
    async with opener(unit_timeout_s=120) as store:
        await store.upgrade()
        seen = await store.write(walk, seed, 150)
        assert {"accept", "claim", "report", "mark", "hold"} <= {k for k, n in seen.items() if n}
