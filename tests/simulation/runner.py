# SPDX-License-Identifier: Apache-2.0
"""Runs seeds: one world each, looked at afterwards."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

from tests.simulation import invariants
from tests.simulation.database import Database, ProcessDied
from tests.simulation.plan import Plan, make_plan
from tests.simulation.process import Variants
from tests.simulation.trace import Trace, Violation
from tests.simulation.world import World, run_world

SEEDS = Path(__file__).with_name("seeds.txt")


@dataclass
class Run:
    """One run.  problem: what was violated, "" if all held."""

    plan: Plan
    trace: Trace
    problem: str
    world: World | None = None


def spare_the_collector() -> None:
    """Nothing here makes much garbage in cycles: look for it less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def run_seed(seed: int, database: Database, variants: type[Variants] = Variants) -> Run:
    """Run one seed and check it; nothing but an interruption leaves here as an exception."""
    plan = make_plan(seed)
    trace = Trace()
    world = None
    try:
        world = run_world(plan, database, trace, variants)
        invariants.check(world)
    except Violation as violation:
        return Run(plan, trace, str(violation), world)
    except (Exception, BaseExceptionGroup, ProcessDied) as crash:
        return Run(plan, trace, _describe(crash), world)
    return Run(plan, trace, "", world)


def _describe(crash: BaseException) -> str:
    """The violation inside, or the whole traceback."""
    import traceback

    if isinstance(crash, BaseExceptionGroup):
        found = crash.subgroup(Violation)
        if found is not None:
            return str(next(_leaves(found)))
    return "the run crashed\n" + "".join(traceback.format_exception(crash))


def _leaves(error: BaseException):  # type: ignore[no-untyped-def]
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def kept_seeds() -> list[tuple[int, str]]:
    """Seeds that once found a fault, and what it was."""
    found = []
    for line in SEEDS.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            number, _, what = line.partition(" ")
            found.append((int(number), what.strip()))
    return found
