# SPDX-License-Identifier: Apache-2.0
"""From a TOML file, the environment and secret files to `Settings`; every mistake is told, not only the first.

Order, later wins: the defaults of `config`, the file, `HEPMAILD_<SECTION>__<KEY>` in the environment.  A secret `KEY`
(`database.url`, a route's `password`) may also stand in a file named by `KEY_file`, or be a systemd credential named
`database.url` or `route.<name>.password` (`$CREDENTIALS_DIRECTORY`), which wins over all; `KEY_file` is read when
neither that nor the variable is there.  Reads only the settings file and secret files.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli

from hepmaild import config_check, config_read
from hepmaild.config import SHIPPED_PLANS, STANDARD_PLAN, Plan, RouteSettings, SenderSettings, Settings
from hepmaild.config_read import Problem, Reader

DEFAULT_FILES = (Path("hepmaild.toml"), Path("/etc/hepmaild.toml"))
_PREFIX = "HEPMAILD_"
_MAX_FILE_OCTETS = 1_048_576
_LISTS: dict[str, type[Any]] = {"route": RouteSettings, "sender": SenderSettings}
_SECTIONS = {f.name: type(f.default) for f in dataclasses.fields(Settings)} | _LISTS | {"plans": Plan}
_NOTHING = "names nothing in the settings: HEPMAILD_<SECTION>__<KEY>"


class SettingsError(ValueError):
    """The settings cannot be used.  `problems` has each mistake with its file or variable, key and what is allowed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(p) for p in problems))
        self.problems = problems


def find_settings_file(option: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: `-c`, else `$HEPMAILD_CONFIG`, else `./hepmaild.toml`, else `/etc/hepmaild.toml`, else none.

    A file that was named must exist, or loading fails; the last two are used only if they do.
    """
    named = option or environ.get("HEPMAILD_CONFIG")
    if named:
        return Path(named)
    # Path.is_file raises where the working directory is closed to us, as root's is to `sudo -u hepmaild`.
    return next((path for path in DEFAULT_FILES if os.path.isfile(path)), None)  # noqa: PTH113


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of this file (None: only defaults and environment).  Raises SettingsError with all mistakes."""
    if path is None:
        return parse("", source="the environment", base=Path.cwd(), environ=environ)
    try:
        with path.open("rb") as file:
            octets = file.read(_MAX_FILE_OCTETS + 1)
        text = octets.decode("utf-8-sig")  # some editors begin a file with a mark of its encoding
    except OSError as error:
        raise SettingsError((Problem(str(path), "", f"cannot be read: {error.strerror}"),)) from None
    except UnicodeDecodeError as error:
        raise SettingsError((Problem(str(path), "", f"is not UTF-8 at octet {error.start}"),)) from None
    if len(octets) > _MAX_FILE_OCTETS:
        raise SettingsError((Problem(str(path), "", "is larger than 1 MB: this is no settings file"),))
    return parse(text, source=str(path), base=path.resolve().parent, environ=environ)


def parse(text: str, *, source: str, base: Path, environ: Mapping[str, str]) -> Settings:
    """The settings in this TOML text.  source: what to call it in messages.  base: what relative paths start from."""
    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise SettingsError((Problem(source, "", f"is not TOML: {error}"),)) from None
    except RecursionError:
        raise SettingsError((Problem(source, "", "is nested far too deeply: no setting is"),)) from None
    except ValueError:  # Python's own, about thousands of digits
        raise SettingsError((Problem(source, "", "has a number that is far too long: no setting needs it"),)) from None
    reader = Reader(source, base, _credentials(environ))
    _merge_environment(tables, environ, reader)
    settings = _build(tables, reader)
    config_check.check(settings, reader)
    if reader.problems:
        raise SettingsError(tuple(reader.problems))
    return settings


def _credentials(environ: Mapping[str, str]) -> Path | None:
    directory = environ.get("CREDENTIALS_DIRECTORY")
    return Path(directory) if directory else None


def _build(tables: dict[str, Any], reader: Reader) -> Settings:
    values: dict[str, Any] = {}
    known = {f.name: f for f in dataclasses.fields(Settings)}
    for name in tables:
        if name not in known:
            of_it = (variable for key, variable in reader.variables.items() if key.startswith(f"{name}."))
            where = next(of_it, reader.source)
            reader.problems.append(Problem(where, name, config_read.unknown("section", name, known)))
    for name, cls in _LISTS.items():
        values[name] = _build_list(name, cls, tables.get(name, []), reader)
    values["plans"] = _build_plans(tables.get("plans", {}), reader)
    for name, spec in known.items():
        if name not in values:
            cls = type(spec.default)
            values[name] = reader.table(cls, tables.get(name, {}), (name,), spec.default)
    settings = Settings(**values)
    server = settings.server
    if not server.state_dir.is_absolute():
        server = dataclasses.replace(server, state_dir=reader.base / server.state_dir)
    tls = dataclasses.replace(
        settings.tls,
        certificate=reader.absolute(settings.tls.certificate),
        private_key=reader.absolute(settings.tls.private_key),
    )
    own = dataclasses.replace(settings.own_smtp, tls_ca=reader.absolute(settings.own_smtp.tls_ca))
    routes = tuple(dataclasses.replace(route, tls_ca=reader.absolute(route.tls_ca)) for route in settings.route)
    return dataclasses.replace(settings, server=server, tls=tls, own_smtp=own, route=routes)


def _build_list(name: str, cls: type[Any], rows: Any, reader: Reader) -> tuple[Any, ...]:
    if not isinstance(rows, list):
        reader.report(name, f"must be a list of tables: write [[{name}]] before each")
        return ()
    built = []
    for index, row in enumerate(rows):
        label = row.get("name", "") if isinstance(row, dict) and name == "route" else ""
        made = reader.table(cls, row, (name, str(index)), None, label=str(label))
        if made is not None:
            built.append(made)
    return tuple(built)


def _build_plans(tables: Any, reader: Reader) -> dict[str, Plan]:
    """Shipped plans, changed and added to by the file; what a new plan leaves out is `standard`'s."""
    if not isinstance(tables, dict):
        reader.report("plans", "must be tables: write [plans.NAME] before each")
        return dict(SHIPPED_PLANS)
    standard = reader.table(Plan, tables.get(STANDARD_PLAN, {}), ("plans", STANDARD_PLAN), SHIPPED_PLANS[STANDARD_PLAN])
    plans = {**SHIPPED_PLANS, STANDARD_PLAN: standard}
    for name, table in tables.items():
        if name != STANDARD_PLAN:
            if not config_read.is_name(name):
                reader.report(f"plans.{name!r}", f"a plan's name must be {config_read.NAME_RULE}")
            plans[name] = reader.table(Plan, table, ("plans", name), SHIPPED_PLANS.get(name, standard))
    return plans


def _merge_environment(tables: dict[str, Any], environ: Mapping[str, str], reader: Reader) -> None:
    """Put `HEPMAILD_SECTION__KEY` into the tables, as text that `Reader` understands by the key's type.

    Lists go by position or, for routes, by name: `HEPMAILD_ROUTE__UPSTREAM__PASSWORD`, `HEPMAILD_SENDER__0__DAILY_CAP`.
    """
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX):
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if "__" not in variable:
            if meant := _meant_by(name):
                reader.report_at(variable, f"is no setting: two underscores stand before its key; write {meant}")
            continue
        path = name.split("__")
        section: dict[str, Any] | list[Any] = tables
        real: list[str] = []
        for step in path[:-1]:
            found = _descend(section, step, inside="".join(real))
            if isinstance(found, str):
                reader.report_at(variable, found)
                break
            section, called = found
            real.append(called)
        else:
            if isinstance(section, list):
                which = "its number, or the name of a route" if real == ["route"] else "its number"
                whose = f"which [[{real[0]}]] it means, by {which}: HEPMAILD_{real[0].upper()}__0__<KEY>"
                reader.report_at(variable, f"does not say {whose}")
                continue
            section[path[-1]] = config_read.FromEnvironment(environ[variable])
            reader.variables[".".join([*real, path[-1]])] = variable


def _meant_by(name: str) -> str:
    """The variable that `name`, which has no two underscores in a row, may have been meant for; "": none.

    Others' may begin with the same word: Kubernetes has `HEPMAILD_SMTP_PORT` for a service that is called so.
    """
    for section, cls in _SECTIONS.items():
        rest = name.removeprefix(f"{section}_")
        if rest == name:
            continue
        is_many = section in _LISTS or cls is Plan
        for key in sorted(_keys_of(cls), key=len, reverse=True):
            which = rest.removesuffix(key).strip("_")
            if rest == key or (is_many and rest.endswith(f"_{key}")):
                middle = f"{which or ('<NAME>' if cls is Plan else '0')}__" if is_many else ""
                return f"{_PREFIX}{section}__{middle}{key}".upper()
    return ""


def _keys_of(cls: type[Any]) -> list[str]:
    fields = dataclasses.fields(cls)
    return [*(f.name for f in fields), *(f"{f.name}_file" for f in fields if f.metadata["secret"])]


def _descend(table: Any, step: str, *, inside: str) -> tuple[dict[str, Any] | list[Any], str] | str:
    """The table called `step` inside this one, made if need be, and its exact name there; or what is wrong."""
    if isinstance(table, list):
        if step.isascii() and step.isdigit() and len(step) < 10:
            index = int(step)
            if index == len(table):
                table.append({})
            return (table[index], step) if index < len(table) and isinstance(table[index], dict) else _NOTHING
        named = [
            (n, row) for n, row in enumerate(table) if isinstance(row, dict) and _is_called(row.get("name", ""), step)
        ]
        if len(named) > 1:
            both = " and ".join(repr(row["name"]) for _, row in named)
            return f"means the {inside}s {both} alike: write the number of one, HEPMAILD_{inside.upper()}__0__<KEY>"
        return (named[0][1], str(named[0][0])) if named else _NOTHING
    if not isinstance(table, dict):
        return _NOTHING
    names = [key for key in table if _is_called(key, step)] or [step]
    if len(names) > 1:
        return f"means {' and '.join(map(repr, names))} alike: write one of them in the file"
    made = table.setdefault(names[0], [] if not inside and names[0] in _LISTS else {})
    return (made, names[0]) if isinstance(made, dict | list) else _NOTHING


def _is_called(name: Any, step: str) -> bool:
    """Whether this name, in which a variable may have only letters, digits and underscores, is written as `step`."""
    return "".join(ch if ch.isalnum() else "_" for ch in str(name)).lower() == step
