# SPDX-License-Identifier: Apache-2.0
"""The second factor: time-based one-time passwords (RFC 6238 over RFC 4226), and recovery codes.

Pure: the time and randomness are arguments.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator
from urllib.parse import quote

SECRET_OCTETS = 20  # RFC 4226 §4: at least 128 bits, 160 recommended
STEP_S = 30
DIGITS = 6
DRIFT_STEPS = 1  # RFC 6238 §5.2: the phone's clock may be a step early or late
RECOVERY_CODES = 10
RECOVERY_OCTETS = 10  # 80 bits, shown as 4 groups of 4 characters
_RECOVERY = re.compile(r"[A-Z2-7]{16}")


def step_of(now_us: int) -> int:
    """The time step of an instant (Unix microseconds)."""
    return now_us // (STEP_S * 1_000_000)


def code(secret: bytes, step: int, *, digits: int = DIGITS, algorithm: str = "sha1") -> str:
    """The code of a step (RFC 4226 §5.3).  Only tests want other digits or algorithms than apps have."""
    digest = hmac.new(secret, step.to_bytes(8, "big"), algorithm).digest()
    offset = digest[-1] & 0x0F
    number = int.from_bytes(digest[offset : offset + 4], "big") & 0x7FFF_FFFF
    return str(number % 10**digits).zfill(digits)


def matching_step(secret: bytes, given: str, now_us: int) -> int | None:
    """The step that this code belongs to, within the drift; None: it is wrong.  Takes the same time for every code."""
    wanted = given.encode("utf-8", "replace")
    present = step_of(now_us)
    found: int | None = None
    for step in range(max(0, present - DRIFT_STEPS), present + DRIFT_STEPS + 1):
        if hmac.compare_digest(code(secret, step).encode("ascii"), wanted):
            found = step
    return found


def clean(given: str) -> str:
    """A code as people type it, without spaces and dashes, in capitals."""
    return re.sub(r"[\s-]+", "", given[:64]).upper()


def looks_like_recovery(cleaned: str) -> bool:
    """Whether this has the form of a recovery code."""
    return _RECOVERY.fullmatch(cleaned) is not None


def recovery_codes(noise: bytes) -> Iterator[str]:
    """Recovery codes of random octets, `RECOVERY_OCTETS` each: `ABCD-EFGH-IJKL-MNOP`."""
    for at in range(0, len(noise), RECOVERY_OCTETS):
        text = base64.b32encode(noise[at : at + RECOVERY_OCTETS]).decode("ascii")
        yield "-".join(text[n : n + 4] for n in range(0, len(text), 4))


def hash_recovery(cleaned: str) -> bytes:
    """What is kept of a recovery code.  80 random bits need no slow hash."""
    return hashlib.sha256(b"hepmaild recovery code\0" + cleaned.encode("utf-8", "replace")).digest()


def secret_text(secret: bytes) -> str:
    """The secret as people type it into an app (base32)."""
    return base64.b32encode(secret).decode("ascii").rstrip("=")


def enrolment_uri(secret: bytes, *, issuer: str, email: str) -> str:
    """What an app reads from a QR code."""
    label = quote(f"{issuer}:{email}", safe="")
    return f"otpauth://totp/{label}?secret={secret_text(secret)}&issuer={quote(issuer, safe='')}"
