# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, as the settings name them."""

from __future__ import annotations

import errno
import socket

import structlog
import trio

from hepmaild.config import parse_address
from hepmaild.seldom import Seldom

log = structlog.get_logger()

_BACKLOG = 1024
TRY_AGAIN_S = 0.1
# What accept(2) says when we have no room for a connection.  All else it says is of that connection, which ended or was
# forbidden while it waited: the next one may be good.
OUT_OF = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Shortage:
    """What a loop that accepts does when there is no room for a connection: it waits a moment, and says so at times."""

    def __init__(self) -> None:
        self._told = Seldom()

    async def wait(self, door: str, problem: str) -> None:
        """Until it is worth another try."""
        if self._told.is_due():
            log.warning("accept_failed", door=door, error=problem)
        await trio.sleep(TRY_AGAIN_S)


def host_to_bind(host: str) -> str:
    """Of `parse_address`: every address of the machine means those of IPv4 where there is no IPv6."""
    return "0.0.0.0" if host == "::" and not socket.has_dualstack_ipv6() else host  # noqa: S104


async def open_listener(address: str) -> socket.socket:
    """A listening socket on "host:port"; "[::]:port" takes IPv4 as well.  Raises OSError that names the address."""
    name, port = parse_address(address)
    host = host_to_bind(name)
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, _kind, _protocol, _name, where = found[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
            listening.bind(where)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as problem:
        raise OSError(problem.errno, f"cannot listen on {address}: {problem.strerror or problem}") from problem
    return listening
