# SPDX-License-Identifier: Apache-2.0
"""The form of a key: what was typed, what it means, and what is wrong with it, field by field.  Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from werkzeug.datastructures import MultiDict

from hepmaild.config import DAY_US
from hepmaild.key_rules import LATEST_US, parse_expiry, parse_networks
from hepmaild.mail.chaos import KINDS
from hepmaild.mail.submission import Permission

MAX_TEXT = 10_000
MAX_NETWORKS = 100
PERMISSIONS: dict[str, str] = {
    Permission.SMTP.value: "Send over SMTP",
    Permission.HTTP.value: "Send over HTTP",
    Permission.TEMPLATES.value: "Use templates",
    Permission.OWN_SMTP.value: "Send by the account's own SMTP servers",
}


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a key is to be.  None: no restriction, or (chaos) an ordinary key."""

    name: str
    permissions: list[str] | None
    senders: list[str] | None
    addresses: list[str] | None
    expires_at_us: int | None
    chaos: str | None = None

    def values(self) -> dict[str, Any]:
        """By the names of the columns."""
        return {
            "name": self.name,
            "permissions": self.permissions,
            "senders": self.senders,
            "addresses": self.addresses,
            "expires_at_us": self.expires_at_us,
            "chaos": self.chaos,
        }


def typed_of(row: dict[str, Any] | None) -> dict[str, Any]:
    """The form as it stands before anybody types: of a key, or (None) of a new one."""
    if row is None:
        return {
            "name": "",
            "permissions": list(PERMISSIONS),
            "senders": [],
            "addresses": "",
            "expires": "",
            "chaos": "",
        }
    return {
        "name": row["name"],
        "permissions": list(PERMISSIONS) if row["permissions"] is None else row["permissions"],
        "senders": row["senders"] or [],
        "addresses": "\n".join(row["addresses"] or ()),
        "expires": "" if row["expires_at_us"] is None else show_expiry(row["expires_at_us"]),
        "chaos": row["chaos"] or "",
    }


def show_expiry(at_us: int) -> str:
    """As it may be typed: a date for the end of a day (UTC), else an instant."""
    at_us = min(at_us, LATEST_US)
    if at_us % DAY_US == 0:
        return datetime.fromtimestamp(at_us // 1_000_000 - 1, UTC).strftime("%Y-%m-%d")
    text = datetime.fromtimestamp(at_us / 1_000_000, UTC).isoformat(
        timespec="microseconds" if at_us % 1_000_000 else "seconds"
    )
    return text.replace("+00:00", "Z")


def read_wish(
    form: MultiDict[str, str], senders: Collection[str]
) -> tuple[KeyWish | None, dict[str, Any], dict[str, str]]:
    """The wish (None: something is wrong), what was typed, and what is wrong, by field.

    senders: the address keys that may be chosen.
    """
    typed: dict[str, Any] = {
        "name": form.get("name", "")[:MAX_TEXT].strip(),
        "permissions": [name for name in PERMISSIONS if name in form.getlist("permission")],
        "senders": list(dict.fromkeys(form.getlist("sender")))[:MAX_TEXT],
        "addresses": form.get("addresses", "")[:MAX_TEXT].replace("\r\n", "\n"),
        "expires": form.get("expires", "")[:MAX_TEXT].strip(),
        "chaos": form.get("chaos", "")[:MAX_TEXT],
    }
    errors: dict[str, str] = {}
    if not 1 <= len(typed["name"]) <= 100 or not typed["name"].isprintable():
        errors["name"] = "Give the key a name of 1 to 100 printable characters."
    if not typed["permissions"]:
        errors["permissions"] = "Choose one thing at least that the key may do."
    if not set(typed["senders"]) <= set(senders):  # leaving them out could lift the restriction
        errors["senders"] = "One of these is no sender of the account any more: choose again."
        typed["senders"] = [sender for sender in typed["senders"] if sender in senders]
    if typed["chaos"] and typed["chaos"] not in KINDS:
        errors["chaos"] = "Choose one of these."
    addresses = _networks(typed["addresses"], errors)
    expires_at_us = _expiry(typed["expires"], errors)
    if errors:
        return None, typed, errors
    chosen = sorted(typed["permissions"])
    wish = KeyWish(
        typed["name"],
        None if len(chosen) == len(PERMISSIONS) else chosen,
        sorted(typed["senders"]) or None,
        addresses or None,
        expires_at_us,
        typed["chaos"] or None,
    )
    return wish, typed, {}


def _networks(text: str, errors: dict[str, str]) -> list[str]:
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if len(words) > MAX_NETWORKS:
        errors["addresses"] = f"At most {MAX_NETWORKS} addresses or ranges."
        return []
    try:
        return parse_networks(words)
    except ValueError as error:
        errors["addresses"] = f"{error}."
        return []


def _expiry(text: str, errors: dict[str, str]) -> int | None:
    if not text:
        return None
    try:
        return parse_expiry(text)
    except ValueError as error:
        errors["expires"] = f"{error}."
        return None
