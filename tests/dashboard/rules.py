# SPDX-License-Identifier: Apache-2.0
"""Every address the daemon serves, from the application itself: what is added tomorrow is in it too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from hepmaild.config_load import load
from hepmaild.daemon import Clock, _Daemon
from hepmaild.sdnotify import Notifier
from hepmaild.storage.store import open_store
from hepmaild.storage.unit import UnitRunner
from hepmaild.tls import ServerTls
from tests.peers.daemon import base_settings, to_toml

_PLAIN = {"GET", "POST", "PUT", "PATCH", "DELETE"}


class NoValue(Exception):
    """A rule has a parameter for which nobody said what to put there."""


@dataclass(frozen=True, slots=True)
class Rule:
    """method: one of `_PLAIN`, or WEBSOCKET.  text: as werkzeug writes it.  names: of its parameters.

    choices: by name, for parameters that take a few words only.
    """

    method: str
    text: str
    names: tuple[str, ...]
    choices: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def filled(self, values: Mapping[str, str]) -> str:
        """The path.  Raises `NoValue`, which names what is missing: add it where the values are made."""
        path = ""
        choices = dict(self.choices)
        for piece in _pieces(self.text):
            if not isinstance(piece, tuple):
                path += piece
                continue
            (name,) = piece
            if name not in values and name not in choices:
                raise NoValue(f"{self.method} {self.text}: no value for <{name}>")
            path += values[name] if name in values else choices[name][0]
        return path

    def __str__(self) -> str:
        return f"{self.method} {self.text}"


def _pieces(text: str) -> list[str | tuple[str]]:
    """Text, and the names of parameters in tuples: `/a/<int:n>` is "/a/", ("n",)."""
    found: list[str | tuple[str]] = []
    while text:
        before, _, rest = text.partition("<")
        if before:
            found.append(before)
        inner, _, text = rest.partition(">")
        if inner:
            found.append((inner.rpartition(":")[2],))
    return found


def every_rule(folder: Path) -> list[Rule]:
    """All rules of a daemon with everything switched on, built in this process and never run."""
    config = folder / "rules.toml"
    config.write_text(to_toml(base_settings(folder, sink_port=1)))
    settings = load(config, {})
    settings.server.state_dir.mkdir(exist_ok=True)

    async def build() -> list[Rule]:
        tls = ServerTls(settings.tls, state_dir=settings.server.state_dir, hostname=settings.server.hostname)
        clock = Clock()
        notifier = Notifier({})
        runner = UnitRunner(clock.now_us)
        try:
            async with open_store(settings.database, settings.server.state_dir, runner, exclusive=False) as store:
                daemon = _Daemon(settings, store, tls, notifier, clock, None)
                return _rules_of(daemon.http.build().url_map)
        finally:
            notifier.close()

    return trio.run(build)


def _rules_of(url_map: object) -> list[Rule]:
    found = []
    for rule in url_map.iter_rules():  # type: ignore[attr-defined]
        choices = tuple(
            (name, tuple(sorted(converter.items)))
            for name, converter in rule._converters.items()
            if hasattr(converter, "items")
        )
        methods = {"WEBSOCKET"} if rule.websocket else (rule.methods or set()) & _PLAIN
        found += [Rule(method, rule.rule, tuple(rule._converters), choices) for method in sorted(methods)]
    return sorted(found, key=lambda rule: (rule.text, rule.method))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for each in every_rule(Path(name)):
            print(each, os.linesep, end="")
