# SPDX-License-Identifier: Apache-2.0
"""Addresses: is this one, and are these two the same?  Both doors judge by these functions.

Syntax only, no DNS.  A domain is normalised to its lower-case ASCII form (RFC 5891 A-labels), so that only the local
part decides whether a next hop must offer SMTPUTF8 (RFC 6531).
"""

from __future__ import annotations

import re
from functools import lru_cache

import email_validator
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES

from hepmaild.config import RouteKind
from hepmaild.mail.submission import Mailbox

# `.test`, `.local` and the like are somebody's domain on a private network.  This list is the library's documented
# way of saying so; there is no argument for it.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

MAX_ADDRESS_OCTETS = 254  # RFC 5321 §4.5.3.1.3, without the angle brackets
MAX_NAME_LENGTH = 100  # smtp-relay.md, send-api.md: a longer display name is cut
_CACHED_ADDRESSES = 4096

_ATEXT = r"[A-Za-z0-9_!#$%&'*+\-/=?^`{|}~]"
# No label with "--" in its third and fourth place: those are Punycode or reserved, and the library looks at them.
_LABEL = r"(?![A-Za-z0-9-]{2}--)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_PLAIN = re.compile(rf"({_ATEXT}+(?:\.{_ATEXT}+)*)@({_LABEL}(?:\.{_LABEL})*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_CASELESS_LOCALS = frozenset(CASE_INSENSITIVE_MAILBOX_NAMES)  # RFC 2142


def has_control_characters(text: str) -> bool:
    """Whether `text` holds anything that could end a header line, or that no header may hold."""
    return _CONTROL.search(text) is not None


@lru_cache(maxsize=_CACHED_ADDRESSES)
def check_address(address: str) -> str:
    """The normalised address.  Raises ValueError with a sentence that says what is wrong.

    Internationalised addresses are allowed; address literals and quoted local parts are not.  Costs 1 to 2 µs when
    plain ASCII, 70 µs when internationalised, 0.1 µs when seen recently.
    """
    plain = _PLAIN.fullmatch(address) if len(address) <= MAX_ADDRESS_OCTETS else None
    if plain is not None and len(plain[2]) <= 253:
        local = plain[1]
        if local.lower() in _CASELESS_LOCALS:
            local = local.lower()
        return f"{local}@{plain[2].lower()}"
    if len(address) > 4 * MAX_ADDRESS_OCTETS:  # the library takes long over very long ones
        raise ValueError(f"The email address is longer than {MAX_ADDRESS_OCTETS} octets.")
    if has_control_characters(address):
        raise ValueError("The email address contains a line break or another control character.")
    found = email_validator.validate_email(address, check_deliverability=False, globally_deliverable=False)
    return f"{found.local_part}@{found.ascii_domain}"


def key_of(address: str) -> str:
    """What two spellings of the same address have in common: compare and count by this."""
    return address.lower()


def domain_of(address: str) -> str:
    """The part behind the last `@`."""
    return address.rpartition("@")[2]


def destination_of(address: str, kind: RouteKind) -> str:
    """Which queue of its route a recipient waits in.

    On routes of kind `mx` the domain, lower case, in A-labels (RFC 5891); "" on those with one next hop.
    """
    if kind is not RouteKind.MX:
        return ""
    domain = domain_of(address)
    if domain.isascii():
        return domain.lower()
    try:
        return domain_of(check_address(address))
    except ValueError:
        return domain.casefold()  # no name server knows it, and will say so


def parse_mailbox(text: str) -> Mailbox:
    """`a@b.c`, `<a@b.c>`, `Acme, Inc. <a@b.c>` or `"Acme" <a@b.c>`.  Raises ValueError with a sentence.

    The name is free of control characters and cut to `MAX_NAME_LENGTH`; the address is normalised.
    """
    if has_control_characters(text):
        raise ValueError("The email address or its display name contains a line break or another control character.")
    text = text.strip()
    if not text.endswith(">"):
        return Mailbox(check_address(text))
    name, bracket, address = text[:-1].rpartition("<")
    if not bracket:
        raise ValueError("The email address ends with '>' but has no '<' before it.")
    name = name.strip()
    if name.startswith('"'):
        quoted = _QUOTED.fullmatch(name)
        if quoted is None:
            raise ValueError("The quotes around the display name are not closed before the email address.")
        name = _ESCAPED.sub(r"\1", quoted[1])
    return Mailbox(check_address(address.strip()), name.strip()[:MAX_NAME_LENGTH])
