# SPDX-License-Identifier: Apache-2.0
"""Telling other processes that something changed: a topic, never the data.

A topic says what to read again ("keys", "queue").  Announcements are hints: equal ones that wait are merged, and where
some may have been missed there comes `RESYNC`: read everything again.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from hepmaild.private_files import give_to_owner_of

RESYNC = "*"
SOCKET_NAME = "hepmaild.sock"
MAX_PENDING = 1000  # distinct topics that wait for one listener; beyond, RESYNC says it all

_TOPIC = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")


def check_topic(topic: str) -> str:
    """The topic; ValueError unless it is 1 to 200 letters, digits or `_.:/-`."""
    if not _TOPIC.fullmatch(topic):
        raise ValueError(f"no topic: {topic!r}")
    return topic


class Inbox:
    """The announcements that one listener has not taken yet, in order, each once.  Iterating waits for more."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._arrived = trio.Event()

    def put(self, topic: str) -> None:
        """Add one; never blocks."""
        if len(self._pending) >= MAX_PENDING:
            self._pending.clear()
            topic = RESYNC
        self._pending[topic] = None
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while not self._pending:
            self._arrived = trio.Event()
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        topic = next(iter(self._pending))
        del self._pending[topic]
        return topic


class Hub:
    """Hands what was heard to every listener of this process.

    look: how much came from outside so far, what has just arrived among it; None: nothing is heard here.
    """

    def __init__(self) -> None:
        self._inboxes: set[Inbox] = set()
        self.look: Callable[[], int] | None = None
        self._heard = 0

    def tell(self, topic: str) -> None:
        """To all that listen now."""
        for inbox in self._inboxes:
            inbox.put(topic)

    def hear(self, text: str) -> None:
        """What came from outside: passed on if it is a topic."""
        self._heard += 1
        if _TOPIC.fullmatch(text):
            self.tell(text)

    def listen_at(self, descriptor: int) -> None:
        """What comes from outside comes by this socket, from which somebody reads."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)

        def look() -> int:
            # What is there is only counted: its reader is on its way.
            if poll.poll(0):
                self._heard += 1
            return self._heard

        self.look = look

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[str]]:
        """An inbox that gets everything from now on."""
        inbox = Inbox()
        self._inboxes.add(inbox)
        try:
            yield inbox
        finally:
            self._inboxes.discard(inbox)


@contextmanager
def _address(folder: Path) -> Iterator[str]:
    """The socket's address.  Through the folder's descriptor, since an address may have 107 octets and a path more."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)


async def serve_datagrams(
    folder: Path, hub: Hub, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Hear what commands on this machine say, until cancelled.

    The caller holds the lock of the folder, so a socket that is there was left by a dead daemon.
    """
    path = folder / SOCKET_NAME
    path.unlink(missing_ok=True)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        with _address(folder) as address:
            previous = os.umask(0o177)
            try:
                await listener.bind(address)
            finally:
                os.umask(previous)
        give_to_owner_of(folder, path)
        try:
            hub.listen_at(listener.fileno())
            task_status.started()
            while True:
                hub.hear((await listener.recv(512)).decode("ascii", "replace"))
        finally:
            hub.look = None
            path.unlink(missing_ok=True)


def send_datagram(folder: Path, topic: str) -> None:
    """Tell the daemon of this folder, if one runs.  Never waits."""
    with (
        contextlib.suppress(OSError),  # nobody listens, or it has a full hand and will read everything anyway
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender,
        _address(folder) as address,
    ):
        sender.sendto(topic.encode("ascii"), address)
