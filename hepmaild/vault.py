# SPDX-License-Identifier: Apache-2.0
"""Secrets that the database holds but must not show: sealed with AES-256-GCM under a key that is not in it.

The keys are in `secrets.key` in the state folder (mode 0600), one a line, the newest last; it is made when the first
secret is sealed.  A sealed value names its key and is bound to its table, row and column: moved to another place it
does not open.  Several processes on one database need the same file.

Python cannot wipe memory: a key or an opened secret may stay in the process after its last use.  Nothing here logs.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hepmaild.errors import SecretsUnavailable
from hepmaild.private_files import write_beside

FILE_NAME = "secrets.key"
KEY_OCTETS, NONCE_OCTETS = 32, 12
ID_OCTETS = 8
VERSION = b"\x01"
HEAD_OCTETS = len(VERSION) + ID_OCTETS  # what stands before the nonce
LOCK_WAIT_S = 10.0
_MAX_FILE_OCTETS = 64 << 10
_STAGED = "next"
_INTRODUCTION = """\
# hepmaild: the keys that open the secrets in the database.  Keep a copy in a safe place, apart from the database's:
# without it they cannot be read.  Every process on the same database needs the same file.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value belongs.  row: the primary key."""

    table: str
    column: str
    row: tuple[str, ...]

    def octets(self, head: bytes) -> bytes:
        """The associated data."""
        return head + json.dumps(["hepmaild", self.table, self.column, *self.row]).encode("ascii")


@dataclass(frozen=True, slots=True)
class SealingKey:
    """A line of the file.  staged: to be used from the next rotation on, so that it can be copied before."""

    id: bytes
    made_at: str
    secret: bytes = field(repr=False)
    staged: bool = False

    def line(self) -> str:
        """As it stands in the file."""
        words = [self.id.hex(), self.made_at, base64.b64encode(self.secret).decode("ascii")]
        return " ".join([*words, _STAGED] if self.staged else words)


def id_of(secret: bytes) -> bytes:
    """A key's id is made from it: one that was copied wrongly does not fit its id."""
    return hashlib.sha256(b"hepmaild sealing key id\0" + secret).digest()[:ID_OCTETS]


def new_key(*, staged: bool = False) -> SealingKey:
    """A fresh key from the system's secure random source."""
    secret = secrets.token_bytes(KEY_OCTETS)
    return SealingKey(id_of(secret), datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), secret, staged)


class Vault:
    """The keys of one state folder.  Every method raises `SecretsUnavailable` with a line that says what to do.

    The file is read when it is first needed, and again when a value names a key that was not in it.  All methods are
    quick (one small file), and safe to call from several threads.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._keys: tuple[SealingKey, ...] | None = None

    def seal(self, place: Place, secret: bytes) -> bytes:
        """The sealed form, under the newest key.  Call within `holding`, until it is committed."""
        used = [key for key in self.read() if not key.staged]
        head = VERSION + used[-1].id
        nonce = secrets.token_bytes(NONCE_OCTETS)
        return head + nonce + AESGCM(used[-1].secret).encrypt(nonce, secret, place.octets(head))

    def open(self, place: Place, sealed: bytes) -> bytes:
        """The secret."""
        head, nonce = sealed[:HEAD_OCTETS], sealed[HEAD_OCTETS : HEAD_OCTETS + NONCE_OCTETS]
        key = self._key(head)
        try:
            return AESGCM(key.secret).decrypt(nonce, sealed[HEAD_OCTETS + NONCE_OCTETS :], place.octets(head))
        except (InvalidTag, ValueError):
            raise SecretsUnavailable(
                f"a secret in the database ({place.table} {' '.join(place.row)}) was changed or moved: make it anew"
            ) from None

    def check(self, heads: Collection[bytes]) -> None:
        """Whether the file has the key of every one of these sealed values (their first `HEAD_OCTETS`)."""
        for head in heads:
            self._key(head)

    def make(self) -> None:
        """Make the file with one key, unless it is there.  For the first secret of a database only."""
        if self.path.exists():
            return
        temporary = self._write_beside([new_key()])
        try:
            os.link(temporary, self.path)  # fails where another process was quicker: then theirs counts
        except FileExistsError:
            pass
        except OSError as error:
            raise SecretsUnavailable(f"{self.path} cannot be made: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(self.path.parent)

    def replace(self, keys: Collection[SealingKey]) -> None:
        """Write the file anew, whole or not at all.  Call within `holding(alone=True)`."""
        temporary = self._write_beside(keys)
        try:
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise SecretsUnavailable(f"{self.path} cannot be written: {error.strerror}") from None
        _sync_folder(self.path.parent)
        self._keys = tuple(keys)

    def read(self) -> tuple[SealingKey, ...]:
        """The keys in the file as it is now, oldest first; at least one that is not staged."""
        self._keys = None
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                octets = file.read(_MAX_FILE_OCTETS)
        except FileNotFoundError:
            raise SecretsUnavailable(
                f"{self.path} is missing: copy it from a backup or from another machine of this service"
            ) from None
        except OSError as error:
            raise SecretsUnavailable(f"{self.path} cannot be read: {error.strerror}") from None
        if stat.S_IMODE(mode) & 0o077:
            raise SecretsUnavailable(f"{self.path} may be read by others: run `chmod 600 {self.path}`")
        self._keys = self._parse(octets)
        return self._keys

    @contextlib.contextmanager
    def holding(self, *, alone: bool = False) -> Iterator[None]:
        """Sealing goes on beside sealing, but not beside a rotation (alone), of this machine's processes.

        Waits `LOCK_WAIT_S` at most, blocking: for the command line.
        """
        descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise SecretsUnavailable("another command uses the secrets: try again") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)

    def _key(self, head: bytes) -> SealingKey:
        if len(head) != HEAD_OCTETS or not head.startswith(VERSION):
            raise SecretsUnavailable("a secret in the database is damaged, or a newer hepmaild sealed it")
        wanted = head[len(VERSION) :]
        for keys in (self._keys, None):  # what was read before, then the file as it is now
            for key in self.read() if keys is None else keys:
                if key.id == wanted:
                    return key
        raise SecretsUnavailable(
            f"{self.path} has not the key {wanted.hex()} that secrets in the database were sealed with: "
            "copy the file from the machine that sealed them"
        )

    def _parse(self, octets: bytes) -> tuple[SealingKey, ...]:
        keys: list[SealingKey] = []
        for number, line in enumerate(octets.decode("ascii", "replace").splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            try:
                secret = binascii.a2b_base64(words[2], strict_mode=True)
                if len(secret) != KEY_OCTETS or id_of(secret).hex() != words[0] or words[3:] not in ([], [_STAGED]):
                    raise ValueError
            except (ValueError, IndexError):
                raise SecretsUnavailable(f"{self.path}, line {number} is damaged: restore the file") from None
            keys.append(SealingKey(id_of(secret), words[1], secret, words[3:] == [_STAGED]))
        if all(key.staged for key in keys):
            raise SecretsUnavailable(f"{self.path} has no key: restore the file")
        return tuple(keys)

    def _write_beside(self, keys: Collection[SealingKey]) -> Path:
        """A temporary file with these keys, durable, for its owner's eyes only."""
        try:
            return write_beside(self.path, (_INTRODUCTION + "".join(f"{key.line()}\n" for key in keys)).encode("ascii"))
        except OSError as error:
            raise SecretsUnavailable(f"{self.path} cannot be written: {error.strerror}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["FILE_NAME", "HEAD_OCTETS", "Place", "SealingKey", "SecretsUnavailable", "Vault", "new_key"]
