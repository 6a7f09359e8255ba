# SPDX-License-Identifier: Apache-2.0
"""Listening sockets, as the settings name them."""

from __future__ import annotations

import socket

import trio

from hepmaild.config import parse_address

_BACKLOG = 1024


async def open_listener(address: str) -> socket.socket:
    """A listening socket on "host:port"; "[::]:port" takes IPv4 as well.  Raises OSError that names the address."""
    host, port = parse_address(address)
    try:
        found = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
        family, _kind, _protocol, _name, where = found[0]
        if host == "::" and not socket.has_dualstack_ipv6():
            family, where = socket.AF_INET, ("0.0.0.0", port)  # noqa: S104  (what "[::]" means without IPv6)
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
