# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.simulation SEED [RUNS]`: run seeds; the first violation is shown with its trace.  See docs."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from contextlib import closing

from tests.simulation.database import Database
from tests.simulation.runner import Run, run_seed, spare_the_collector

HANGS_S = 120


def main() -> int:
    """0 if every run held."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--runs", type=int, default=1000, help="how many, one after the other")
    parser.add_argument("--verbose", action="store_true", help="show the whole trace of each run")
    parser.add_argument("--keep-going", action="store_true", help="do not end at the first violation")
    parser.add_argument("--lines", type=int, default=60, help="how much of a failed run's trace is shown")
    options = parser.parse_args()
    with closing(Database()) as database:
        return _run(options, database)


def _run(options: argparse.Namespace, database: Database) -> int:
    spare_the_collector()
    failed = 0
    begun = time.monotonic()
    done = 0
    for seed in range(options.seed, options.seed + options.runs):
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        run = run_seed(seed, database)
        done += 1
        if options.verbose:
            print(run.plan)
            print(run.trace.text.decode())
        if options.verbose or options.runs == 1:
            print(f"seed {seed}: trace {run.trace.digest}, {len(run.trace.lines)} lines")
        if run.problem:
            failed += 1
            show(run, 0 if options.verbose else options.lines)
            if not options.keep_going:
                break
    faulthandler.cancel_dump_traceback_later()
    took_s = time.monotonic() - begun
    print(f"{done} runs, {failed} violations, {took_s:.1f} s ({1000 * took_s / max(1, done):.1f} ms a run)")
    return 1 if failed else 0


def show(run: Run, lines: int) -> None:
    """A violated run for people."""
    print(f"\n=== seed {run.plan.seed} violates:\n{run.problem}\n--- the last {lines} lines of its trace:")
    if lines:
        print("\n".join(run.trace.lines[-lines:]))
    print(f"--- again: make simulate SEED={run.plan.seed} RUNS=1 VERBOSE=1\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
