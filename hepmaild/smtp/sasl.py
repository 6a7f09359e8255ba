# SPDX-License-Identifier: Apache-2.0
"""AUTH PLAIN (RFC 4616) and AUTH LOGIN, as pure exchanges (RFC 4954).

The user name is ignored: the password is the key.  An exchange takes the client's lines and gives a `Challenge`, the
`Secret`, or a refusal.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field

from hepmaild.smtp import replies
from hepmaild.smtp.replies import Line


@dataclass(frozen=True, slots=True)
class Challenge:
    """Ask the client for its next line: `334 ` and this base64 word."""

    word: bytes


@dataclass(frozen=True, slots=True)
class Secret:
    """The exchange is over: what is to be verified."""

    value: str = field(repr=False)


class SaslError(Exception):
    """The exchange failed; `line` is the reply."""

    def __init__(self, line: Line) -> None:
        super().__init__(line.text)
        self.line = line


_USERNAME = Challenge(b"VXNlcm5hbWU6")  # "Username:"
_PASSWORD = Challenge(b"UGFzc3dvcmQ6")  # "Password:"


class Exchange:
    """One AUTH command until its secret is known.

    begin(initial) takes the initial response of the AUTH line (None: there was none), step(line) each line after a
    challenge, without CRLF.  Both raise SaslError: 501 5.5.2 bad base64, 501 5.7.0 cancelled by `*`.
    """

    __slots__ = ("_is_plain", "_username_known")

    def __init__(self, mechanism: bytes) -> None:
        if mechanism not in MECHANISMS:
            raise SaslError(replies.UNKNOWN_MECHANISM)
        self._is_plain = mechanism == b"PLAIN"
        self._username_known = False

    def begin(self, initial: bytes | None) -> Challenge | Secret:
        """The AUTH line itself.  An initial response of `=` is an empty one (RFC 4954 §4)."""
        if initial is None:
            return Challenge(b"") if self._is_plain else _USERNAME
        return self._take(b"" if initial == b"=" else _decode(initial))

    def step(self, line: bytes) -> Challenge | Secret:
        """A line that answers a challenge."""
        if line == b"*":
            raise SaslError(replies.AUTH_CANCELLED)
        return self._take(_decode(line))

    def _take(self, response: bytes) -> Challenge | Secret:
        if self._is_plain:
            parts = response.split(b"\0")  # authorization identity, authentication identity, password
            if len(parts) != 3:
                raise SaslError(replies.BAD_BASE64)
            return _secret(parts[2])
        if not self._username_known:
            self._username_known = True
            return _PASSWORD
        return _secret(response)


MECHANISMS = (b"PLAIN", b"LOGIN")


def _decode(word: bytes) -> bytes:
    try:
        return base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        raise SaslError(replies.BAD_BASE64) from None


def _secret(octets: bytes) -> Secret:
    try:
        return Secret(octets.decode("utf-8"))
    except UnicodeDecodeError:
        raise SaslError(replies.BAD_BASE64) from None
