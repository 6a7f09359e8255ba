# SPDX-License-Identifier: Apache-2.0
"""`docs/configuration.md` and the effective settings, both made from `config`'s dataclasses.

`python -m hepmaild.config_docs > docs/configuration.md`, or `make docs`; a test says when it was forgotten.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from hepmaild.config import SHIPPED_PLANS, Plan, RouteSettings, SenderSettings, Settings
from hepmaild.config_reload import AT_START

_INTRODUCTION = """\
<!-- Made by `make docs` from hepmaild/config.py; do not edit. -->
# Settings

One TOML file: `-c FILE`, else `$HEPMAILD_CONFIG`, else `./hepmaild.toml`, else `/etc/hepmaild.toml`.
[`etc/hepmaild.toml`](../etc/hepmaild.toml) is the commented reference. `hepmaild check-config` reads it, opens nothing,
and tells every mistake with its file, its key and what is allowed. An unknown key is a mistake. Every size and time
says its unit in its name. Relative file names start from the folder of the settings file.

**Environment.** `HEPMAILD_<SECTION>__<KEY>` wins over the file: `HEPMAILD_SERVER__HOSTNAME=smtp.example.com`,
`HEPMAILD_SMTP__STARTTLS=127.0.0.1:2587,[::1]:2587` (lists: words between commas, or a JSON array),
`HEPMAILD_PLANS__FREE__LOG_DAYS=14`. Members of lists go by their position, routes also by their name:
`HEPMAILD_SENDER__0__DAILY_CAP=500`, `HEPMAILD_ROUTE__UPSTREAM__HOST=mail.example.net` (what is neither letter nor digit
is an underscore there; where two routes are then called alike, by position). One underscore for two is a mistake, too.

**Secrets** (marked below) need not stand in the file: write `password_file = "/etc/hepmaild/upstream.password"` instead
of `password`, or hand them over as a systemd credential named `database.url` or `route.<name>.password`. A credential
wins over the environment and the file; the file that `password_file` names is read when neither a credential nor
`HEPMAILD_ROUTE__UPSTREAM__PASSWORD` is there. So it may be one that only root can read: root's commands read it, and
the service has the credential.

**Reload.** `systemctl reload hepmaild` (SIGHUP) reads all of it again; the next connection, message or attempt obeys
it. What was changed of these is named in the log (`restart_needed`) and waits for the next start, pages included:
RESTART.
Settings from a pipe (`-c <(…)`, `-c /dev/stdin`) cannot be read again; the daemon keeps what it has, and says so.

**Memory.** The systemd units set `PYTHONMALLOC` and `GLIBC_TUNABLES` so that what is freed is overwritten, for a tenth
of the CPU of a busy service: [0120](decisions/0120-freed-memory.md) has the figures, and how to do without.
"""
_URL_PASSWORD = re.compile(r"(//[^:@/]*:)[^/]*(?=@)|([?&]password=)[^&#]*")


def render() -> str:
    """The whole page."""
    at_start = ", ".join(f"`{name}`" if "." in name else f"`[{name}]`" for name in AT_START)
    parts = [_INTRODUCTION.replace("RESTART", at_start)]
    for spec in dataclasses.fields(Settings):
        if spec.name in _SPECIAL:
            parts.append(_SPECIAL[spec.name]())
        else:
            parts.append("\n".join(_table(f"[{spec.name}]", type(spec.default))))
    return "\n".join(parts)


def effective(settings: Settings) -> dict[str, Any]:
    """The settings as JSON values, secrets masked: what `check-config --json` prints."""
    shown = _plain(settings)
    assert isinstance(shown, dict)
    return shown


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            spec.name: _mask(getattr(value, spec.name))
            if spec.metadata.get("secret")
            else _plain(getattr(value, spec.name))
            for spec in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, tuple):
        return [_plain(member) for member in value]
    if isinstance(value, Path | StrEnum):
        return str(value)
    return value


def _mask(secret: str) -> str:
    if "://" in secret:
        return _URL_PASSWORD.sub(r"\1\2…", secret)
    return "…" if secret else ""


def _table(title: str, cls: type[Any]) -> Iterator[str]:
    yield f"## `{title}`"
    yield (cls.__doc__ or "").strip()
    yield ""
    yield "| key | type | default | what it does |"
    yield "|---|---|---|---|"
    hints = typing.get_type_hints(cls)
    for spec in dataclasses.fields(cls):
        secret = " **Secret.**" if spec.metadata["secret"] else ""
        default = "required" if spec.default is dataclasses.MISSING else f"`{_toml(spec.default)}`"
        doc = spec.metadata["doc"].replace("|", "\\|")
        yield f"| `{spec.name}` | {_type(hints[spec.name], spec)} | {default} | {doc}{secret} |"
    yield ""


def _type(hint: Any, spec: dataclasses.Field[Any]) -> str:
    if typing.get_origin(hint) is tuple:
        return f"list of: {_type(typing.get_args(hint)[0], spec)}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return ", ".join(f'`"{member}"`' for member in hint)
    name = {bool: "true or false", int: "whole number", float: "number", str: "string", Path: "path"}[hint]
    low, high = spec.metadata["low"], spec.metadata["high"]
    if low is not None:
        name += f", {low:g} to {high:.10g}" if high is not None else f", at least {low:g}"
    return name


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(member) for member in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    return f'"{value}"'


def _plans() -> str:
    names = [spec.name for spec in dataclasses.fields(Plan)]
    lines = list(_table("[plans.NAME]", Plan))
    lines += [
        "Shipped plans, which a table of the same name changes. A new one may have any name; what it leaves out is",
        "`standard`'s.",
        "",
        "| plan | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, plan in SHIPPED_PLANS.items():
        lines.append(f"| `{name}` | " + " | ".join(str(getattr(plan, key)) for key in names) + " |")
    return "\n".join([*lines, ""])


_SPECIAL = {
    "route": lambda: "\n".join(_table("[[route]]", RouteSettings)),
    "sender": lambda: "\n".join(_table("[[sender]]", SenderSettings)),
    "plans": _plans,
}

if __name__ == "__main__":
    sys.stdout.write(render())
