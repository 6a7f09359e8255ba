# SPDX-License-Identifier: Apache-2.0
"""Files for their owner's eyes only, written whole or not at all; made by root they belong to the service's user."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def give_to_owner_of(folder: Path, path: Path) -> None:
    """Let a file made by root belong to whom its folder belongs to; nothing for anybody else."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an OSError in here say which file it is about: one of a descriptor (a full disk) does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_beside(path: Path, content: bytes) -> Path:
    """A temporary file in the folder of `path`, durable, of mode 0600.

    Raises OSError with the name `path`, which people know, and leaves nothing then.
    """
    with named(path):
        return _write_beside(path, content)


def _write_beside(path: Path, content: bytes) -> Path:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        give_to_owner_of(path.parent, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path`: never readable by others, never half written.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = write_beside(path, content)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
