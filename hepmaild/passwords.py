# SPDX-License-Identifier: Apache-2.0
"""Passwords of people: which are good enough, how they are kept (argon2id), how they are checked.

Hashing takes a tenth of a second of CPU and 64 MiB: inside the daemon call it in a thread with its own limiter
(design.md P10), never on the event loop.
"""

from __future__ import annotations

import base64
import re
import secrets
import unicodedata
from typing import NamedTuple

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

MIN_LENGTH = 10
_MIN_DIGITS = 14  # of a password of nothing else
MAX_LENGTH = 1000  # beyond it nobody means well: hashing costs by length


class Cost(NamedTuple):
    """What guessing costs, and checking too: rounds, memory, threads at once (argon2id)."""

    rounds: int
    memory_kib: int
    lanes: int

    def hasher(self) -> argon2.PasswordHasher:
        return argon2.PasswordHasher(time_cost=self.rounds, memory_cost=self.memory_kib, parallelism=self.lanes)


# The first choice of RFC 9106 §4 needs 2 GiB; this is its second, for a machine that does other things too.
COST = Cost(rounds=3, memory_kib=65_536, lanes=4)

_OBVIOUS = frozenset(
    """
    password passw0rd passwort motdepasse contrasena welcome letmein iloveyou sunshine princess football baseball
    superman batman trustno1 changeme changeit default secret administrator admin root qwertyuiop qwertzuiop
    asdfghjkl zxcvbnm qwerty qwertz azerty 1q2w3e4r5t 1q2w3e4r 1qaz2wsx q1w2e3r4t5 abcdefghij abc123 monkey dragon
    master hepmaild hepmail computer internet whatever test testing
    """.split()  # noqa: SIM905  # a text of words reads better than a list of them
)
_RUNS = ("01234567890123456789", "98765432109876543210", "abcdefghijklmnopqrstuvwxyz", "zyxwvutsrqponmlkjihgfedcba")


def check_password(password: str, *, email: str = "") -> None:
    """Raise ValueError with a sentence when this password is too short, too long or obvious."""
    if len(password) < MIN_LENGTH:
        raise ValueError(f"a password has at least {MIN_LENGTH} characters")
    if len(password) > MAX_LENGTH:
        raise ValueError(f"a password has at most {MAX_LENGTH} characters")
    folded = unicodedata.normalize("NFKC", password).casefold()
    if _is_obvious(folded) or _repeats_address(folded, email.casefold()):
        raise ValueError("this password is among the first that anybody would try: choose another one")


def _is_obvious(folded: str) -> bool:
    if len(set(folded)) < 4:
        return True
    if any(folded in run * 2 for run in _RUNS):
        return True
    # A well-known word stays one with a year, digits or an exclamation mark around it, or twice in a row.
    core = re.sub(r"^[\W\d_]+|[\W\d_]+$", "", folded.translate(str.maketrans("@$", "as")))
    bare = re.sub(r"[\W_]+", "", folded)
    half = bare[: len(bare) // 2]
    if core in _OBVIOUS or bare in _OBVIOUS or (folded.isdigit() and len(folded) < _MIN_DIGITS):
        return True
    return half * 2 == bare and half in _OBVIOUS


def _repeats_address(folded: str, email: str) -> bool:
    local, _, domain = email.partition("@")
    if not local:
        return False
    core = re.sub(r"[\W\d_]+$", "", folded)
    return folded == email or core in {email, local, domain, domain.partition(".")[0]}


def hash_password(password: str, cost: Cost = COST) -> str:
    """The argon2id hash to keep, with its salt and parameters.  Takes about a tenth of a second."""
    return cost.hasher().hash(_octets(password))


def verify_password(kept: str, password: str) -> bool:
    """Whether this is the password.  Takes as long for a wrong one; False too for a hash that is none.

    What it costs stands in the hash.
    """
    try:
        return COST.hasher().verify(kept, _octets(password))
    except (VerificationError, InvalidHashError):
        return False


def _octets(password: str) -> bytes:
    """The same characters are the same password, however the keyboard composed them (RFC 8265 §4.2)."""
    return unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")


def decoy(cost: Cost = COST) -> str:
    """A hash that no password fits, to be checked when there is no other: it takes as long."""

    def noise(octets: int) -> str:
        return base64.b64encode(secrets.token_bytes(octets)).decode("ascii").rstrip("=")

    made = cost.hasher()
    parameters = f"m={made.memory_cost},t={made.time_cost},p={made.parallelism}"
    return f"$argon2id$v=19${parameters}${noise(made.salt_len)}${noise(made.hash_len)}"


def needs_rehash(kept: str, cost: Cost = COST) -> bool:
    """Whether the hash was made at another cost."""
    return cost.hasher().check_needs_rehash(kept)
