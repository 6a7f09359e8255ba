# SPDX-License-Identifier: Apache-2.0
"""The DNS record that goes with a DKIM key (RFC 6376 §3.6, RFC 8463 §4): written for an operator, judged when found."""

from __future__ import annotations

import binascii
import re
from collections.abc import Sequence

from hepmaild.mail.address import check_address, domain_of
from hepmaild.mail.dkim import ED25519, RSA

MAX_STRING = 255  # octets in one character-string of a TXT record (RFC 1035 §3.3)
MAX_SELECTOR = 63
_KEY_TYPES = {RSA: "rsa", ED25519: "ed25519"}
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SELECTOR = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SPACE = re.compile(r"[ \t\r\n]+")


def check_domain(text: str) -> str:
    """A domain in lower-case A-labels.  Raises ValueError with a sentence."""
    try:
        return domain_of(check_address(f"postmaster@{text.strip().rstrip('.')}")).lower()
    except ValueError:
        raise ValueError(f"{text!r} is no domain: give one such as example.com") from None


def check_selector(text: str) -> str:
    """A selector (RFC 6376 §3.1) in lower case.  Raises ValueError with a sentence."""
    selector = text.lower()
    if len(selector) > MAX_SELECTOR or not _SELECTOR.fullmatch(selector):
        raise ValueError(f"{text!r} is no selector: 1 to {MAX_SELECTOR} letters, digits, hyphens and dots between them")
    return selector


def record_name(domain: str, selector: str) -> str:
    """Where the record stands."""
    return f"{selector}._domainkey.{domain}"


def record_value(algorithm: str, public_key: str) -> str:
    """The record as one string.  public_key: the value of `p=`."""
    return f"v=DKIM1; k={_KEY_TYPES[algorithm]}; p={public_key}"


def zone_line(name: str, value: str) -> str:
    """The record for a zone file, in strings of at most 255 octets (RFC 1035 §5.1)."""
    strings = [value[at : at + MAX_STRING] for at in range(0, len(value), MAX_STRING)]
    quoted = [f'"{text}"' for text in strings]
    data = quoted[0] if len(quoted) == 1 else "( " + "\n    ".join(quoted) + " )"
    return f"{name}. IN TXT {data}"


def judge(found: Sequence[str], algorithm: str, public_key: str) -> str | None:
    """What is wrong with the TXT records found at the key's name; None when a verifier will find this key there.

    found: each record with its strings joined.  They come from outside: the sentence quotes nothing of them.
    """
    if not found:
        return "there is no TXT record"
    if len(found) > 1:
        return f"there are {len(found)} TXT records, there must be one"
    try:
        tags = _parse(found[0])
    except ValueError as error:
        return str(error)
    return _judge_tags(tags, algorithm, public_key)


def _judge_tags(tags: dict[str, str], algorithm: str, public_key: str) -> str | None:
    wanted = _KEY_TYPES[algorithm]
    if tags.get("v", "DKIM1") != "DKIM1" or ("v" in tags and next(iter(tags)) != "v"):
        return "the record does not begin with v=DKIM1"
    if tags.get("k", "rsa") != wanted:
        return f"the record is not for a key of the type {wanted} (k=)"
    if "sha256" not in _listed(tags.get("h", "sha256")):
        return "the record does not allow sha256 (h=)"
    if not {"*", "email"} & _listed(tags.get("s", "*")):
        return "the record is not for mail (s=)"
    if "p" not in tags:
        return "the record has no key (p=)"
    shown = _SPACE.sub("", tags["p"])
    if not shown:
        return "the record says that the key was revoked (p= is empty)"
    try:
        same = binascii.a2b_base64(shown, strict_mode=True) == binascii.a2b_base64(public_key, strict_mode=True)
    except ValueError:
        return "the key in the record (p=) is damaged"
    return None if same else "the record has another key (p=)"


def _parse(text: str) -> dict[str, str]:
    """A tag list (RFC 6376 §3.2) in its order.  Raises ValueError with a sentence."""
    tags: dict[str, str] = {}
    for part in text.split(";"):
        if not part.strip():
            continue
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not _TAG.fullmatch(name) or name in tags:
            raise ValueError("the record is no list of tags")
        tags[name] = value.strip()
    return tags


def _listed(value: str) -> set[str]:
    return {word.strip() for word in value.split(":")}
