# SPDX-License-Identifier: Apache-2.0
"""`hepmaild doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import trio

from hepmaild.cli import backend
from hepmaild.cli.common import json_option, with_settings
from hepmaild.cli.output import CommandFailed, clean, print_json
from hepmaild.config import Settings
from hepmaild.errors import StoreUnavailable

if TYPE_CHECKING:
    from hepmaild.doctor.checks import Check, Report

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red", "skipped": None}


@click.command()
@json_option
@with_settings
def doctor(settings: Settings, as_json: bool) -> None:
    """Try what the settings promise, and say what to do about what is not right.

    Database, disk, clock, certificate, ports, routes (connect, TLS, login), DNS of the senders' domains, queue.  Sends
    no mail.  Exit status 1 when something fails; warnings alone are 0.
    """
    report = trio.run(_examine, settings)
    if as_json:
        print_json(report.to_json())
    else:
        for check in report.checks:
            _print(check)
    if report.failed:
        failed = [clean(check.name) for check in report.checks if check.state == "fail"]
        raise CommandFailed(f"{report.failed} of {len(report.checks)} checks failed: {', '.join(failed[:10])}")


async def _examine(settings: Settings) -> Report:
    from hepmaild.delivery.lookups import Lookups
    from hepmaild.doctor.examination import Patient, examine
    from hepmaild.storage.store import open_store
    from hepmaild.storage.unit import UnitRunner

    lookups = Lookups(settings.dns)
    runner = UnitRunner(backend.now_us)
    is_open = False
    try:
        async with open_store(settings.database, settings.server.state_dir, runner, exclusive=False) as store:
            is_open = True
            return await examine(Patient(settings, lookups, backend.now_us, store))
    except (StoreUnavailable, OSError, ValueError) as error:
        if is_open:
            raise
        return await examine(Patient(settings, lookups, backend.now_us, None, str(error)))


def _print(check: Check) -> None:
    state = click.style(f"{check.state:<7}", fg=_COLOURS[check.state])
    click.echo(f"{state}  {clean(check.name)}: {clean(check.found)}")
    if check.todo:
        click.echo(f"         → {clean(check.todo)}")
