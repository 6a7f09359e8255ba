# SPDX-License-Identifier: Apache-2.0
"""One table of the settings into its dataclass: types, limits and forms, each mistake with what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import json
import math
import os
import re
import typing
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from hepmaild.config import format_address, parse_address
from hepmaild.mail.address import check_address

NAME_RULE = "1 to 100 letters, digits, '-', '_' or '.', beginning with a letter or digit"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_TLS_LEVELS = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# Of a PostgreSQL URL, each with its possible values (none: anything).
_DATABASE_OPTIONS: dict[str, tuple[str, ...]] = {
    "sslmode": _TLS_LEVELS,
    "ssl": _TLS_LEVELS,
    "host": (),
    "port": (),
    "user": (),
    "password": (),
    "passfile": (),
    "application_name": (),
    "target_session_attrs": ("any", "primary", "standby", "read-write", "read-only", "prefer-standby"),
}
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One mistake.  where: the file or the environment variable.  key: `section.key`, empty for the whole file."""

    where: str
    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.key}: {self.text}" if self.key else f"{self.where}: {self.text}"


class FromEnvironment(str):
    """A value that came as text and takes the type of its key."""

    __slots__ = ()


class Reader:
    """Reads tables and collects problems.

    variables: which `section.key` came from which environment variable.  base: what relative paths start from.
    """

    def __init__(self, source: str, base: Path, credentials: Path | None) -> None:
        self.source = source
        self.base = base
        self.credentials = credentials
        self.problems: list[Problem] = []
        self.variables: dict[str, str] = {}

    def report(self, key: str, text: str) -> None:
        """Note a mistake at `section.key`."""
        self.problems.append(Problem(self.variables.get(key, self.source), key, text))

    def is_wrong(self, *keys: str) -> bool:
        """Whether a mistake at one of these was noted: what is missing on its account needs no second word."""
        return any(problem.key in keys for problem in self.problems)

    def report_at(self, where: str, text: str) -> None:
        """Note a mistake in an environment variable or another file."""
        self.problems.append(Problem(where, "", text))

    def absolute(self, path: str) -> str:
        """A path of the settings file, which is relative to that file; empty stays empty."""
        return str(self.base / path) if path else ""

    def table(self, cls: type[Any], table: Any, path: tuple[str, ...], base: Any, *, label: str = "") -> Any:
        """`table` as an instance of `cls`; what it leaves out is taken from `base` (None: it has required keys).

        None when a required key is missing or wrong.  label: the name of a list's member, for credentials.
        """
        where = _show_path(path)
        if not isinstance(table, dict):
            heading = f"[{where}]" if base is not None else f"[[{path[0]}]]"  # of a list's members
            self.report(where, f"must be a table: write {heading} before its keys")
            return base
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for key, value in table.items():
            owner = key.removesuffix("_file")
            if key in fields:
                values[key] = self._value(value, hints[key], fields[key], f"{where}.{key}", _Unset)
            elif owner not in fields or owner == key or not fields[owner].metadata["secret"]:
                self.report(f"{where}.{key}", unknown("key", key, fields))
        for name in (name for name, spec in fields.items() if spec.metadata["secret"]):
            judge = functools.partial(convert, hint=hints[name], rules=fields[name].metadata)
            found = self._secret(name, table, where, ".".join((path[0], label) if label else path), judge)
            if found is not None:
                values[name] = found
        values = {key: value for key, value in values.items() if value is not _Unset}
        if base is not None:
            return dataclasses.replace(base, **values)
        return self._make(cls, fields, table, values, where)

    def _make(
        self, cls: type[Any], fields: dict[str, Any], table: dict[str, Any], values: dict[str, Any], at: str
    ) -> Any:
        complete = True
        for name, spec in fields.items():
            if spec.default is dataclasses.MISSING and name not in values:
                complete = False
                if name not in table:
                    self.report(f"{at}.{name}", f"is missing: {spec.metadata['doc']}")
        return cls(**values) if complete else None

    def _value(self, value: Any, hint: Any, spec: dataclasses.Field[Any], key: str, wrong: Any) -> Any:
        try:
            return convert(value, hint, spec.metadata)
        except ValueError as error:
            shown = "" if spec.metadata["secret"] else f", not {_shorten(value)}"
            self.report(key, f"must be {error}{shown}")
            return wrong

    def _secret(self, name: str, table: dict[str, Any], where: str, section: str, judge: Callable[[str], Any]) -> Any:
        """A secret from where it is looked for first: a credential, the environment, the file that `KEY_file` names.

        None: none of them, or the table has it.  A file is read only for want of the others: the settings may name one
        for root's commands, which the service may not read and gets as a credential (section: what that is called by).
        judge: makes the setting of it, or says by a ValueError what is allowed.
        """
        value, named, key = table.get(name), table.get(f"{name}_file"), f"{where}.{name}"
        if named is not None and (not isinstance(named, str) or not named):
            self.report(f"{key}_file", "must be the name of a file")
            return _Unset
        if not any(given is None or isinstance(given, FromEnvironment) for given in (value, named)):
            self.report(f"{key}_file", f"stands beside {name}: give one of them")
        credential = f"{section}.{name}"
        if self.credentials is not None and os.path.isfile(self.credentials / credential):  # noqa: PTH113
            return self._read_secret(self.credentials / credential, key, credential, judge)
        if named is None or isinstance(value, FromEnvironment):
            return None
        return self._read_secret(self.base / named, f"{key}_file", credential, judge)

    def _read_secret(self, file: Path, key: str, credential: str, judge: Callable[[str], Any]) -> Any:
        try:
            with open(file, encoding="utf-8", opener=_open_at_once) as stream:
                text = stream.read()
        except PermissionError as error:
            todo = f"be its owner, or hand it over as the credential {credential} (LoadCredential= of the unit)"
            self.report(key, f"{file} cannot be read: {error.strerror}; {todo}")
            return _Unset
        except OSError as error:
            self.report(key, f"{file} cannot be read: {error.strerror}")
            return _Unset
        except UnicodeDecodeError:
            self.report(key, f"{file} is not UTF-8 text")
            return _Unset
        secret = text.removesuffix("\n").removesuffix("\r")
        if not secret or "\n" in secret:
            self.report(key, f"{file} must hold the secret in one line and nothing else")
            return _Unset
        try:
            return judge(secret)
        except ValueError as error:
            self.report(key, f"{file} must hold {error}")
            return _Unset


def _open_at_once(path: str, flags: int) -> int:
    """As `open` does it; but a pipe that nobody writes into is empty, where a reload would wait, and all with it."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


class _Unset:
    """Stands for a value that was wrong and has been reported."""


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence about a name that does not exist."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"there is no such {what}" + (f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}")


def convert(value: Any, hint: Any, rules: typing.Mapping[str, Any]) -> Any:
    """`value` as `hint` says, within `rules` (`config.setting`).  Raises ValueError with what is allowed."""
    if typing.get_origin(hint) is tuple:
        members = _split(value) if isinstance(value, FromEnvironment) else value
        inner = typing.get_args(hint)[0]
        if not isinstance(members, list):
            raise ValueError("a list" + (" of whole numbers" if inner is int else " of strings"))
        return tuple(convert(member, inner, rules) for member in members)
    if hint is bool:
        return _bool(value)
    if hint in (int, float):
        return _number(value, hint, rules)
    if not isinstance(value, str):
        raise ValueError("a string")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise ValueError(" or ".join(f'"{member}"' for member in hint))
        return hint(str(value))
    text = str(value)
    if any(ord(ch) < 32 or ord(ch) == 127 for ch in text):
        raise ValueError("text without control characters")
    if hint is Path:
        if not text:
            raise ValueError("a path")
        return Path(text)
    if rules["form"]:
        FORMS[rules["form"]](text)
    return _NORMALISED.get(rules["form"], str)(text)


def _split(value: str) -> Any:
    """A list from the environment: a JSON array, or words between commas."""
    text = value.strip()
    if text.startswith("[") and not text.startswith("[:"):
        try:
            return [FromEnvironment(m) if isinstance(m, str) else m for m in json.loads(text)]
        except ValueError:
            pass
    return [FromEnvironment(part.strip()) for part in text.split(",") if part.strip()]


def _bool(value: Any) -> bool:
    if isinstance(value, FromEnvironment) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _number(value: Any, kind: type[int | float], rules: typing.Mapping[str, Any]) -> float:
    low, high = rules["low"], rules["high"]
    what = "a whole number" if kind is int else "a number"
    if low is not None and high is not None:
        what += f" from {low:g} to {high:,}".replace(",", "")
    elif low is not None:
        what += f" of at least {low:g}"
    if isinstance(value, FromEnvironment):
        try:
            value = int(value) if kind is int else float(value)
        except ValueError:
            raise ValueError(what) from None
    if (
        isinstance(value, bool)
        or not isinstance(value, int if kind is int else int | float)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise ValueError(what)
    if (low is not None and value < low) or (high is not None and value > high) or abs(value) >= 2**53:
        raise ValueError(what)
    return value


def is_name(text: str) -> bool:
    """Whether this may be the name of a route or a plan."""
    return _NAME.fullmatch(text) is not None


def _check_name(text: str) -> None:
    if not is_name(text):
        raise ValueError(NAME_RULE)


def check_host(text: str) -> None:
    """ValueError unless it is a host name, an IP address or empty."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if text and (len(text) > 253 or not _HOST.fullmatch(text)):
            raise ValueError("a host name or an IP address") from None


def _check_email(text: str) -> None:
    try:
        check_address(text)
    except ValueError as error:
        raise ValueError(f'an address such as "noreply@example.com" ({str(error).removesuffix(".")})') from None


def _check_listen(text: str) -> None:
    host, _port = parse_address(text)
    try:
        check_host(host)
    except ValueError as error:
        raise ValueError(f'"host:port" with {error}') from None


def _check_hostname(text: str) -> None:
    if len(text) > 253 or not _HOST.fullmatch(text):
        raise ValueError('a host name such as "smtp.example.com"')


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError('a network or address such as "10.0.0.0/8" or "::1"') from None


def _normal_url(text: str) -> str:
    """As browsers write it in Origin, which is compared as text: no capitals, A-labels, no port 443, no slash."""
    allowed = 'an address such as "https://mail.example.com", or empty'
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host = host if ":" in host else host.encode("idna").decode("ascii")
        check_host(host)
    except ValueError:
        raise ValueError(allowed) from None
    fine = parts.scheme == "https" and host and parts.path in {"", "/"} and port != 0
    if text and (not fine or parts.query or parts.fragment or parts.username):
        raise ValueError(allowed)
    return "https://" + format_address(host, port or 443).removesuffix(":443") if text else ""


def _check_database(text: str) -> None:
    allowed = '"sqlite:///FILE" or "postgresql://USER:PASSWORD@HOST/NAME"'
    if text.startswith("postgresql:"):  # what a password generator likes
        allowed += '; in its password "/" is written %2F, "@" %40, "#" %23, "?" %3F, "[" %5B and "%" %25'
    try:
        parts = urlsplit(text)
        _check_database_host(parts.hostname or "")
        port = parts.port
        if parts.netloc.count("@") > 1 or "\0" in unquote(text):
            raise ValueError
    except ValueError:
        raise ValueError(allowed) from None
    if parts.scheme == "sqlite":
        name = text.removeprefix("sqlite:///")
        if name == text or not name.strip("/") or name == ":memory:" or "?" in name:
            raise ValueError(f"{allowed} (a file: what is accepted must survive)")
    elif not text.startswith("postgresql://") or not parts.path.strip("/") or port == 0:
        raise ValueError(allowed)
    else:
        _check_options(parts.query)


def _check_database_host(host: str) -> None:
    """ValueError for one that nobody can ask name servers for.  It may be in the letters of its language."""
    check_host(host if ":" in host else host.encode("idna").decode("ascii"))


def _check_options(query: str) -> None:
    """What stands behind the "?" of a PostgreSQL URL: what the driver would not understand, it would crash at."""
    given = parse_qsl(query, keep_blank_values=True)
    names = [name for name, _ in given]
    for name, value in given:
        if name not in _DATABASE_OPTIONS or names.count(name) > 1:
            raise ValueError(
                f'an address with no options but {", ".join(_DATABASE_OPTIONS)}, each once, behind its "?"'
            )
        known = _DATABASE_OPTIONS[name]
        if known and value not in known:
            raise ValueError(f"an address with one of {', '.join(known)} as its {name}")
        if name == "port" and not (value.isascii() and value.isdigit() and 0 < int(value[:6]) < 65_536):
            raise ValueError("an address with a number from 1 to 65535 as its port")
        if name == "host" and not value.startswith("/"):
            try:
                _check_database_host(value)
            except ValueError:
                raise ValueError("an address with one host, or the folder of a socket, as its host") from None


def parse_nameserver(text: str) -> tuple[str, int]:
    """`"address"` or `"address:port"` of a name server, port 53 if none is given; ValueError with what is allowed."""
    try:
        return str(ipaddress.ip_address(text.strip("[]"))), 53
    except ValueError:
        pass
    try:
        host, port = parse_address(text)
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        raise ValueError('an IP address, or "address:port" as in "127.0.0.1:5353" or "[::1]:53"') from None


def parse_next_hop(text: str) -> tuple[str, int]:
    """`"host"` or `"host:port"` of a next hop, port 0 if none is given; ValueError with what is allowed."""
    if text.count(":") == 1 or text.startswith("["):
        host, port = parse_address(text if not text.endswith("]") else f"{text}:0")
    else:
        host, port = text, 0
    check_host(host)
    return host, port


FORMS: dict[str, Callable[[str], object]] = {
    "address": _check_listen,
    "database": _check_database,
    "email": _check_email,
    "host": check_host,
    "hostname": _check_hostname,
    "name": _check_name,
    "nameserver": parse_nameserver,
    "next hop": parse_next_hop,
    "network": _check_network,
    "url": _normal_url,
}
# Whoever compares them has them normalised: two spellings of an address are the same sender, or the same place.
_NORMALISED: dict[str, Callable[[str], str]] = {"email": check_address, "url": _normal_url}


def _show_path(path: tuple[str, ...]) -> str:
    return ".".join(path)


def _shorten(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 2**256:  # Python shows none of thousands of digits
        return "a number so long"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
