# SPDX-License-Identifier: Apache-2.0
"""The daemon's clock, over what happens to a machine's."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest

from hepmaild.daemon import Clock

HOUR_NS = 3_600_000_000_000


@dataclass
class Machine:
    """Its three clocks, as Linux keeps them (clock_gettime(2))."""

    real: int = 1_795_000_000_000_000_000
    monotonic: int = 70_000_000_000
    boot: int = 70_000_000_000

    def read(self, clock: int) -> int:
        return {time.CLOCK_REALTIME: self.real, time.CLOCK_MONOTONIC: self.monotonic, time.CLOCK_BOOTTIME: self.boot}[
            clock
        ]

    def run(self, ns: int) -> None:
        self.real, self.monotonic, self.boot = self.real + ns, self.monotonic + ns, self.boot + ns

    def sleep(self, ns: int) -> None:
        self.real, self.boot = self.real + ns, self.boot + ns


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(time, "time_ns", lambda: machine.real)
    monkeypatch.setattr(time, "monotonic_ns", lambda: machine.monotonic)
    monkeypatch.setattr(time, "clock_gettime_ns", machine.read)
    return machine


def test_what_the_machine_slept_counts(machine: Machine) -> None:
    """Else it would be hours behind until the next start: in `Date:`, in codes of second factors, in what is due."""
    clock = Clock()
    machine.run(HOUR_NS)
    machine.sleep(8 * HOUR_NS)
    machine.run(HOUR_NS)
    assert clock.now_us() == machine.real // 1000


def test_a_step_of_the_clock_does_not(machine: Machine) -> None:
    clock = Clock()
    expected_us = (machine.real + 2 * HOUR_NS) // 1000
    machine.run(HOUR_NS)
    machine.real -= 1000 * HOUR_NS
    machine.run(HOUR_NS)
    assert clock.now_us() == expected_us
