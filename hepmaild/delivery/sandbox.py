# SPDX-License-Identifier: Apache-2.0
"""Routes of kind `sandbox`: messages are kept as files instead of being sent.

`<message_id>.eml` holds exactly the octets that a next hop would have got; `<message_id>.json` beside it the envelope.
Both appear whole or not at all, and the `.json` first.  Writing a message twice gives the same files, so that an
attempt that was cut off needs no in-doubt mark.

A sandbox can misbehave, so that senders can test what they do about it: `play` says what happens to a message.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import trio

from hepmaild.config import Misbehaviour
from hepmaild.counted import counted
from hepmaild.delivery.job import Job, Result
from hepmaild.delivery.outcome import IN_DOUBT_REPLY, Verdict
from hepmaild.mail.content import Content
from hepmaild.mail.reply import Reply
from hepmaild.private_files import give_to_owner_of
from hepmaild.threads import in_thread

_TEMPORARY = Reply(451, "4.3.2", "the sandbox refuses everything for now (misbehave = 4xx)")
_PERMANENT = Reply(550, "5.7.1", "the sandbox refuses everything (misbehave = 5xx)")
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Part:
    """What a sandbox does with one message.

    refusals: a verdict for each recipient, and nothing is kept; None: it is kept.  doubts: the verdicts when no answer
    comes in time (the in-doubt mark comes first); None: it is kept and answered at once.  wait_s: before that.
    answers: whether it ever does.
    """

    refusals: tuple[Verdict, ...] | None = None
    doubts: tuple[Verdict, ...] | None = None
    wait_s: float = 0.0
    answers: bool = True


def play(manner: Misbehaviour, seconds: float, job: Job, now_us: int) -> Part:
    """What `manner` means for a message at this attempt; pure.  seconds: how long it refuses, or waits."""
    if manner is Misbehaviour.GREYLIST:
        return _greylist(seconds, job, now_us)
    everybody = len(job.recipients)
    if manner is Misbehaviour.TEMPORARY:
        return Part(refusals=(Verdict(Result.DEFERRED, _TEMPORARY),) * everybody)
    if manner is Misbehaviour.PERMANENT:
        return Part(refusals=(Verdict(Result.FAILED, _PERMANENT),) * everybody)
    doubts = (Verdict(Result.IN_DOUBT, IN_DOUBT_REPLY),) * everybody
    if manner is Misbehaviour.SLOW_DOT:
        return Part(doubts=doubts, wait_s=seconds)
    if manner is Misbehaviour.DROP_AFTER_DOT:
        return Part(doubts=doubts, answers=False)
    return Part()


def _greylist(seconds: float, job: Job, now_us: int) -> Part:
    """As greylisting servers do: whoever comes for the first time, or too early, is told to come again."""
    left_s = ceil(job.accepted_at_us / 1e6 + seconds - now_us / 1e6)
    if left_s <= 0 and all(recipient.attempts for recipient in job.recipients):
        return Part()
    wait_s = max(1, left_s)
    reply = Reply(451, "4.7.1", f"greylisted by the sandbox, try again in {counted(wait_s, 'second')}")
    return Part(refusals=(Verdict(Result.DEFERRED, reply, wait_s),) * len(job.recipients))


class Sandbox:
    """Writes messages in threads of its own, a few at a time."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._limiter = trio.CapacityLimiter(4)

    async def keep(self, directory: str, job: Job, content: Content) -> Path:
        """Write both files, durably.  Raises OSError.  Not cancelled once begun: it takes milliseconds."""
        folder = self._state_dir / directory
        return await in_thread(_keep, folder, job, content, limiter=self._limiter)


def _keep(folder: Path, job: Job, content: Content) -> Path:
    if not _SAFE_ID.fullmatch(job.message_id):
        raise OSError(f"{job.message_id!r} cannot be a file name")
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        give_to_owner_of(folder.parent, folder)
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
