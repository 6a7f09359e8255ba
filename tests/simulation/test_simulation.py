# SPDX-License-Identifier: Apache-2.0
"""The simulator: old finds, a few hundred seeds, that a seed replays, and that broken engines are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.simulation.database import Database
from tests.simulation.mutants import MUTANTS
from tests.simulation.process import Variants
from tests.simulation.runner import kept_seeds, run_seed

ROOT = Path(__file__).parents[2]
BLOCKS = 10
RUNS_OF_A_BLOCK = 25
MUTANT_SEEDS = 400
_SHOWN_LINES = 60


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with closing(Database()) as database:
        yield database


def must_hold(seed: int, database: Database) -> None:
    run = run_seed(seed, database)
    if run.problem:
        tail = "\n".join(run.trace.lines[-_SHOWN_LINES:])
        pytest.fail(f"seed {seed}: {run.problem}\n{tail}\nagain: make simulate SEED={seed} RUNS=1 VERBOSE=1")


@pytest.mark.parametrize(("seed", "found"), kept_seeds())
def test_what_once_found_a_fault(seed: int, found: str, database: Database) -> None:
    must_hold(seed, database)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_few_hundred_seeds(block: int, database: Database) -> None:
    for seed in range(block * RUNS_OF_A_BLOCK, (block + 1) * RUNS_OF_A_BLOCK):
        must_hold(seed, database)


@pytest.mark.parametrize("seed", [3, 6, 16, 101])
def test_a_seed_replays_octet_for_octet(seed: int, database: Database) -> None:
    """In this process after others, and in one of its own whose sets and dictionaries have another order."""
    here = run_seed(seed, database).trace
    again = run_seed(seed, database).trace
    assert here.text == again.text
    ran = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--runs", "1", "--verbose"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(seed + 1)},
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert f"trace {here.digest}," in ran.stdout.decode()
    assert here.text in ran.stdout


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_a_broken_engine_is_found(mutant: type[Variants], database: Database) -> None:
    seeds = range(mutant.found_from, mutant.found_from + MUTANT_SEEDS)
    found = (run_seed(seed, database, mutant).problem for seed in seeds)
    assert any(re.search(mutant.found_as, problem) for problem in found if problem), mutant.__doc__
