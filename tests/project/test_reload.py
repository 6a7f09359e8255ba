# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: every setting there is is either obeyed from then on or named as one that needs a restart."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
import trio.testing

from hepmaild.config import Plan, RouteKind, RouteSettings, SenderSettings, Settings
from hepmaild.config_reload import AT_START
from hepmaild.daemon import Clock, _Daemon
from hepmaild.delivery.route import from_settings
from hepmaild.directory import settings_senders
from hepmaild.sdnotify import Notifier
from hepmaild.smtp.session import SmtpSession
from hepmaild.storage.store import open_store
from hepmaild.storage.unit import UnitRunner
from hepmaild.tls import ServerTls
from tests.conftest import LogEvents

BOX = RouteSettings("box", RouteKind.SANDBOX)
KEYS = {
    f"{section.name}.{key.name}"
    for section in dataclasses.fields(Settings)
    if dataclasses.is_dataclass(section.default)
    for key in dataclasses.fields(section.default)
} | {"route", "sender", "plans"}


@asynccontextmanager
async def new_daemon(folder: Path) -> AsyncIterator[_Daemon]:
    """A daemon with the default settings that is built in this process and never run."""
    settings = Settings(route=(BOX,))
    settings = dataclasses.replace(settings, server=dataclasses.replace(settings.server, state_dir=folder))
    tls = ServerTls(settings.tls, state_dir=folder, hostname="smtp.example.com")
    clock, notifier = Clock(), Notifier({})
    try:
        async with open_store(settings.database, folder, UnitRunner(clock.now_us), exclusive=False) as store:
            yield _Daemon(settings, store, tls, notifier, clock, None)
    finally:
        notifier.close()


def another(value: Any) -> Any:
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, StrEnum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, int | float):
        return value + 7
    if isinstance(value, tuple):
        return (*value, *(value[:1] or ("127.0.0.1:7",)))
    return value / "other" if isinstance(value, Path) else f"{value}x"


def changed(settings: Settings, name: str) -> tuple[Settings, Any]:
    """Settings in which one key, or one of the lists, is another; and what it is."""
    whole: dict[str, Any] = {
        "route": (dataclasses.replace(BOX, directory="other"), RouteSettings("more", RouteKind.SANDBOX)),
        "sender": (SenderSettings("a@example.com", "box", daily_cap=3),),
        "plans": {**settings.plans, "tiny": Plan(log_days=1)},
    }
    if name in whole:
        return dataclasses.replace(settings, **{name: whole[name]}), whole[name]
    section, _, key = name.partition(".")
    table = getattr(settings, section)
    value = another(getattr(table, key))
    return dataclasses.replace(settings, **{section: dataclasses.replace(table, **{key: value})}), value


def new_session(daemon: _Daemon) -> SmtpSession:
    """What the SMTP door makes of its next connection."""
    near, _ = trio.testing.memory_stream_pair()
    return SmtpSession(daemon.smtp._setup, near, peer_ip="192.0.2.1", session_id="x", implicit=False)


def failures(daemon: _Daemon) -> int:
    """How many unknown keys of one address are answered without a wait."""
    count = 0
    while not daemon.intake._failed_keys.note("192.0.2.1"):
        count += 1
    return count


async def backlog(daemon: _Daemon) -> int:
    """The least at which the daemon says to `/readyz` and to clients that it is full."""
    for waiting in (daemon.intake.settings.limits.backlog - 1, daemon.intake.settings.limits.backlog):
        daemon.outbox.backlog = waiting
        assert ("the backlog is full" in await daemon.problems()) == (daemon.intake.check_backlog() is not None)
    return daemon.outbox.backlog


# Where each setting that a running daemon takes is obeyed: every place, and what stands there for a value.
TAKEN: dict[str, Callable[[_Daemon], list[Any]]] = {
    "smtp.recipients": lambda d: [d.intake.settings.smtp.recipients],
    "smtp.reply": lambda d: [d.intake.settings.smtp.reply],
    "smtp.replay_window_s": lambda d: [d.intake.settings.smtp.replay_window_s],
    "smtp.max_message_bytes": lambda d: [new_session(d)._machine._max_octets],
    "smtp.trace_client_address": lambda d: [d.intake.settings.smtp.trace_client_address],
    "limits.connections_per_ip": lambda d: [d.smtp._connections.limit, d.http._counter.limit],
    "limits.unknown_keys_per_minute": lambda d: [failures(d)],
    "limits.recipients_per_message": lambda d: [
        new_session(d)._machine._max_recipients,
        d.http._desk.max_recipients,
        d.intake.settings.limits.recipients_per_message,
    ],
    "limits.idle_timeout_s": lambda d: [new_session(d)._setup.limits.idle_timeout_s],
    "limits.upload_bytes_per_account": lambda d: [d.http._desk.materials.uploads._quota()],
    "limits.backlog": lambda d: [d.intake.settings.limits.backlog, d.outbox.backlog],
    "delivery.relay_wait_s": lambda d: [d.intake.settings.delivery.relay_wait_s],
    "delivery.retry_after_s": lambda d: [d.pool._runner._settings.retry_after_s],
    "delivery.expire_after_s": lambda d: [d.intake.settings.delivery.expire_after_s],
    "delivery.final_dot_timeout_s": lambda d: [d.pool._runner._courier.dot_timeout_s],
    "delivery.attempt_timeout_s": lambda d: [
        d.pool._settings.attempt_timeout_s,
        d.pool._runner._courier.attempt_timeout_s,
    ],
    "delivery.in_doubt": lambda d: [d.outbox.in_doubt, d.pool._runner._settings.in_doubt],
    "delivery.suppress_after": lambda d: [d.outbox.rule.after],
    "delivery.suppress_days": lambda d: [d.outbox.rule.for_us / 86_400_000_000],
    "own_smtp.allow_private_addresses": lambda d: [d.own_servers._settings().allow_private_addresses],
    "own_smtp.tls_ca": lambda d: [d.own_servers.placeholder("own:x").tls_ca],
    "own_smtp.connections": lambda d: [d.own_servers.placeholder("own:x").connections],
    "route": lambda d: [tuple(d.intake.settings.routes.values())],
    "sender": lambda d: [d.reaper.senders],
    "plans": lambda d: [d.intake.settings.plans, d.reaper.plans],
}


def test_every_setting_is_taken_or_named() -> None:
    """A new one has to be added to `config_reload`, or to what a reload takes and to `TAKEN`."""
    fixed = {key for key in KEYS for name in AT_START if key == name or key.startswith(f"{name}.")}
    assert not fixed & TAKEN.keys()
    assert fixed | TAKEN.keys() == KEYS


@pytest.mark.parametrize("name", sorted(KEYS))
async def test_a_reload_takes_a_setting_or_names_it(tmp_path: Path, log_events: LogEvents, name: str) -> None:
    async with new_daemon(tmp_path) as daemon:
        settings, value = changed(daemon._settings, name)
        daemon._take_settings(settings)
        named = [event["settings"] for event in log_events.named("restart_needed")]
        if name not in TAKEN:
            assert named == [name]
            assert daemon._shown == daemon._settings, "pages go by it, though the daemon does not"
            return
        assert named == []
        if name == "limits.backlog":
            assert await backlog(daemon) == value
        found = TAKEN[name](daemon)
        assert found == [value] * len(found)
        if name == "route":
            for route in value:
                track = daemon.pool._tracks.get(route.name)
                assert track is not None
                assert track.route == from_settings(route)
        if name == "sender":
            assert daemon.directory._from_settings == settings_senders(value)


async def test_what_waits_for_a_restart_is_named_at_every_reload(tmp_path: Path, log_events: LogEvents) -> None:
    async with new_daemon(tmp_path) as daemon:
        settings = changed(changed(daemon._settings, "http.trusted_proxies")[0], "delivery.workers")[0]
        for _ in range(2):
            daemon._take_settings(settings)
        daemon._take_settings(daemon._settings)
        named = [event["settings"] for event in log_events.named("restart_needed")]
        assert named == ["http.trusted_proxies,delivery.workers"] * 2
