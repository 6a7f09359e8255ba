# SPDX-License-Identifier: Apache-2.0
"""Connecting to what a stranger named, without becoming his way into our own network (Trio).

The name is looked up once, every address is judged, and the connection goes to an address that was judged: a name whose
answer changes meanwhile gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from hepmaild.delivery.connections import Connect, connect_first
from hepmaild.threads import in_thread

if TYPE_CHECKING:
    from trio.abc import Stream

# A name that nobody answers for holds a thread until the system's resolver gives up, whoever gave up before.  With
# threads of their own, accounts' servers keep nobody from looking up the next hops of the service's routes.
NAMES_AT_ONCE = 64

_EMBEDDING = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in its last four octets
_UNICAST = ipaddress.ip_network("2000::/3")  # all that was ever given out (RFC 4291 §2.4)
_COMPATIBLE = ipaddress.ip_network("::/96")  # RFC 4291 §2.5.5.1


def is_public(text: str) -> bool:
    """Whether an address is one of the public Internet, and not a way around that either (mapped, 6to4, Teredo …)."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address.teredo is not None:
            inner = address.teredo[1]
        if address in _EMBEDDING or address in _COMPATIBLE:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast


async def connect_public(
    connect: Connect, host: str, port: int, *, names: trio.CapacityLimiter | None = None
) -> Stream:
    """Connect to a host of the public Internet, by one of its public addresses.  Raises OSError; cancel-safe.

    names: for looking up, see `NAMES_AT_ONCE`; None: Trio's own.
    """
    found = await _look_up(host, port, names)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    allowed = [address for address in addresses if is_public(address)]
    if not allowed:
        raise OSError(
            f"{addresses[0] if addresses else host} is no address of the public Internet, and this service connects to "
            "no other for its accounts"
        )
    stream, _address = await connect_first(connect, allowed, port)
    if isinstance(stream, trio.SocketStream) and _is_ourselves(stream.socket):
        await trio.aclose_forcefully(stream)
        raise OSError("this is the address of this service itself")
    return stream


async def _look_up(host: str, port: int, names: trio.CapacityLimiter | None) -> list[Any]:
    name = host.encode()  # as octets no codec refuses it with an error of another kind
    with suppress(OSError):  # an address needs no thread
        return socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    ask = partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
    return await in_thread(ask, limiter=names, abandon_on_cancel=True)


def _is_ourselves(connected: trio.socket.SocketType) -> bool:
    """What listens at our own public address may be meant for this machine only."""
    try:
        return bool(connected.getsockname()[0] == connected.getpeername()[0])
    except OSError:
        return False
