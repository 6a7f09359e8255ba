# SPDX-License-Identifier: Apache-2.0
"""Routes of kind `sandbox`: messages are kept as files instead of being sent.

`<message_id>.eml` holds exactly the octets that a next hop would have got; `<message_id>.json` beside it the envelope.
Both appear whole or not at all, and the `.json` first.  Writing a message twice gives the same files, so that an
attempt that was cut off needs no in-doubt mark.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import trio

from hepmaild.delivery.job import Job
from hepmaild.mail.content import Content

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Sandbox:
    """Writes messages in threads of its own, a few at a time."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._limiter = trio.CapacityLimiter(4)

    async def keep(self, directory: str, job: Job, content: Content) -> Path:
        """Write both files, durably.  Raises OSError.  Not cancelled once begun: it takes milliseconds."""
        folder = self._state_dir / directory
        return await trio.to_thread.run_sync(_keep, folder, job, content, limiter=self._limiter)


def _keep(folder: Path, job: Job, content: Content) -> Path:
    if not _SAFE_ID.fullmatch(job.message_id):
        raise OSError(f"{job.message_id!r} cannot be a file name")
    folder.mkdir(parents=True, exist_ok=True)
    envelope = {
        "message_id": job.message_id,
        "reverse_path": job.reverse_path,
        "recipients": [recipient.address for recipient in job.recipients],
        "size": content.size,
        "accepted_at_us": job.accepted_at_us,
    }
    text = json.dumps(envelope, ensure_ascii=False, indent=2) + "\n"
    _write(folder / f"{job.message_id}.json", Content(text.encode()), job.token)
    path = folder / f"{job.message_id}.eml"
    _write(path, content, job.token)
    _sync_folder(folder)
    return path


def _write(path: Path, content: Content, token: int) -> None:
    """The whole file under its name, or no file."""
    unfinished = path.with_name(f".{path.name}.{token}")
    try:
        with unfinished.open("wb") as file:
            for piece in content.chunks():
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sync_folder(folder: Path) -> None:
    """Make the names durable too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
