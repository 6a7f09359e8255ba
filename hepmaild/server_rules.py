# SPDX-License-Identifier: Apache-2.0
"""What an account's own SMTP server may be: what was typed becomes a wish, or sentences about what is wrong.  Pure.

The password is not among it: it goes straight into the vault.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hepmaild.config import MAX_CAP, TlsMode
from hepmaild.config_read import check_host
from hepmaild.mail.address import MAX_NAME_LENGTH, check_address, has_control_characters, key_of

MAX_NAME = 100
MAX_USERNAME = 255
MAX_PASSWORD = 1000
# Not `opportunistic`: who meant TLS would not notice that there is none.
TLS_MODES: dict[str, str] = {
    TlsMode.STARTTLS.value: "STARTTLS",
    TlsMode.IMPLICIT.value: "TLS from the first octet",
    TlsMode.NONE.value: "none, in clear text",
}
DEFAULT_PORTS = {TlsMode.STARTTLS.value: 587, TlsMode.IMPLICIT.value: 465, TlsMode.NONE.value: 25}


@dataclass(frozen=True, slots=True)
class ServerWish:
    """What a server is to be.  address: what its mail has in From, and a sender of the account."""

    name: str
    host: str
    port: int
    tls: str
    username: str
    address: str
    from_name: str
    daily_cap: int

    def values(self) -> dict[str, Any]:
        """By the names of the columns."""
        return {**asdict(self), "address_key": key_of(self.address)}


class _Wrong(ValueError):
    """field: which input is wrong."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


def read_server(typed: dict[str, str], *, has_password: bool) -> tuple[ServerWish | None, dict[str, str]]:
    """The wish (None: something is wrong), and what is wrong, by field.

    typed: `name`, `host`, `port`, `tls`, `username`, `address`, `from_name`, `daily_cap`; what is empty or missing gets
    its default.  has_password: whether one was given, or is there already.
    """
    errors: dict[str, str] = {}
    found: dict[str, Any] = {}
    given = {field: typed.get(field, "").strip() for field in _READERS}
    for field, reader in _READERS.items():
        try:
            found[field] = reader(given[field])
        except _Wrong as wrong:
            errors[wrong.field] = str(wrong)
    if not errors:
        found["port"] = found["port"] or DEFAULT_PORTS[found["tls"]]
        errors = _contradictions(found, has_password=has_password)
    if errors:
        return None, errors
    return ServerWish(**found), {}


def check_password(password: str) -> str | None:
    """What is wrong with it; None: nothing."""
    if len(password) > MAX_PASSWORD or has_control_characters(password):
        return f"A password has up to {MAX_PASSWORD} characters and no line breaks."
    try:
        password.encode("utf-8")
    except UnicodeEncodeError:
        return "This password holds what is no character."
    return None


def leads_elsewhere(before: dict[str, Any], wish: ServerWish) -> bool:
    """Whether the password would be shown to somebody else than before: then it must be typed again, or whoever may
    change the host could have it sent to himself."""
    return any(before[name] != getattr(wish, name) for name in ("host", "port", "tls", "username"))


def _contradictions(found: dict[str, Any], *, has_password: bool) -> dict[str, str]:
    errors: dict[str, str] = {}
    if found["username"] and not has_password:
        errors |= {"password": "A login needs a password."}
    if found["username"] and found["tls"] == TlsMode.NONE.value:
        errors["tls"] = "A password is never sent in clear text: choose TLS, or leave the user name empty."
    user = _address_or_none(found["username"])
    if user is None:
        if not found["address"]:
            errors["address"] = "The user name is no e-mail address, so the address for From must be given."
    elif found["address"] and key_of(found["address"]) != key_of(user):
        errors["address"] = "From must be the user name here: leave the address empty."
    else:
        found["address"] = user
    return errors


def _address_or_none(text: str) -> str | None:
    try:
        return check_address(text)
    except ValueError:
        return None


def _name(text: str) -> str:
    if not 1 <= len(text) <= MAX_NAME or not text.isprintable():
        raise _Wrong("name", f"Give the server a name of 1 to {MAX_NAME} printable characters.")
    return text


def _host(text: str) -> str:
    host = text.removeprefix("[").removesuffix("]").lower()
    try:
        if not host:
            raise ValueError
        check_host(host)
    except ValueError:
        raise _Wrong("host", "Give a host name or an IP address, such as smtp.example.com.") from None
    return host


def _port(text: str) -> int:
    """0: the one that belongs to the TLS mode."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65_535):
        raise _Wrong("port", "A port is a number from 1 to 65535.")
    return int(text)


def _tls(text: str) -> str:
    if text and text not in TLS_MODES:
        raise _Wrong("tls", f"Choose one of {', '.join(TLS_MODES)}.")
    return text or TlsMode.STARTTLS.value


def _username(text: str) -> str:
    if len(text) > MAX_USERNAME or has_control_characters(text):
        raise _Wrong("username", f"A user name has up to {MAX_USERNAME} printable characters.")
    return text


def _address(text: str) -> str:
    if not text:
        return ""
    try:
        return check_address(text)
    except ValueError as error:
        raise _Wrong("address", f"This is not an e-mail address: {error}.") from None


def _from_name(text: str) -> str:
    if len(text) > MAX_NAME_LENGTH or has_control_characters(text):
        raise _Wrong("from_name", f"A From name has up to {MAX_NAME_LENGTH} printable characters.")
    return text


def _daily_cap(text: str) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_CAP):
        raise _Wrong("daily_cap", "A daily cap is a whole number; 0 or empty: none.")
    return int(text)


_READERS = {
    "name": _name,
    "host": _host,
    "port": _port,
    "tls": _tls,
    "username": _username,
    "address": _address,
    "from_name": _from_name,
    "daily_cap": _daily_cap,
}
