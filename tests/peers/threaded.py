# SPDX-License-Identifier: Apache-2.0
"""A server of the standard library's, in threads, while a test needs it."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator


class Server(socketserver.ThreadingTCPServer):
    """Each connection has a thread, which nobody waits for unless `daemon_threads` is taken back."""

    allow_reuse_address = True
    daemon_threads = True


@contextlib.contextmanager
def serving(handler: type[socketserver.BaseRequestHandler], *, to_its_end: bool = False) -> Iterator[int]:
    """The port on 127.0.0.1 where each connection has a thread that runs `handler`.

    to_its_end: what was connected is waited for at the end; `handler` has to bound it.
    """
    with Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = not to_its_end
        with running(server):
            yield server.server_address[1]


@contextlib.contextmanager
def running(server: socketserver.BaseServer) -> Iterator[None]:
    """Have a server answer until the end."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
