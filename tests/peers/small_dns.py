# SPDX-License-Identifier: Apache-2.0
"""A name server of one page: TXT records that a test gives it as lines of a zone file, by UDP and TCP.

In a thread of the test, or as a program: `python -m tests.peers.small_dns PORT FILE COMMAND…` serves the records of
FILE on 127.0.0.1:PORT while COMMAND runs, and ends with its status.
"""

from __future__ import annotations

import contextlib
import socketserver
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.zonefile

from tests.peers.threaded import Server, running


@dataclass
class SmallDns:
    """port: 0 before it runs.  asked: the names of all questions so far.  rcode: what everything is answered with."""

    port: int = 0
    records: dict[dns.name.Name, dns.rrset.RRset] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    rcode: dns.rcode.Rcode = dns.rcode.NOERROR

    def publish(self, zone_text: str) -> None:
        """Add records, written as in a zone file; one name may come several times."""
        for rrset in dns.zonefile.read_rrsets(zone_text, rdclass=None, default_ttl=60):
            if rrset.name in self.records:
                self.records[rrset.name].update(rrset)
            else:
                self.records[rrset.name] = rrset

    def withdraw(self) -> None:
        """Take all records away."""
        self.records.clear()

    def answer(self, octets: bytes, *, by_udp: bool) -> bytes:
        query = dns.message.from_wire(octets)
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        self.asked.append(question.name.to_text(omit_final_dot=True))
        found = self.records.get(question.name)
        if self.rcode != dns.rcode.NOERROR:
            reply.set_rcode(self.rcode)
        elif found is None:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == found.rdtype:
            reply.answer.append(found)
        try:
            return reply.to_wire(max_size=max(512, query.payload) if by_udp else 65535)
        except dns.exception.TooBig:
            reply.answer.clear()
            reply.flags |= dns.flags.TC
            return reply.to_wire()


@contextlib.contextmanager
def small_dns(port: int = 0) -> Iterator[SmallDns]:
    """A server on 127.0.0.1, gone on leaving."""
    served = SmallDns()

    class ByUdp(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            octets, link = self.request
            with contextlib.suppress(dns.exception.DNSException):
                link.sendto(served.answer(octets, by_udp=True), self.client_address)

    class ByTcp(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = self.rfile.read(2)
            if len(length) == 2:
                octets = served.answer(self.rfile.read(int.from_bytes(length, "big")), by_udp=False)
                self.wfile.write(len(octets).to_bytes(2, "big") + octets)

    udp, tcp = _bind(port, ByUdp, ByTcp)
    with udp, tcp, running(udp), running(tcp):
        served.port = udp.server_address[1]
        yield served


def _bind(port: int, by_udp: Any, by_tcp: Any) -> tuple[socketserver.UDPServer, socketserver.TCPServer]:
    """One number for both.  Where the system chooses it, somebody else may have its TCP side."""
    for attempts_left in reversed(range(50 if port == 0 else 1)):
        udp = socketserver.ThreadingUDPServer(("127.0.0.1", port), by_udp)
        try:
            return udp, Server(("127.0.0.1", udp.server_address[1]), by_tcp)
        except OSError:
            udp.server_close()
            if not attempts_left:
                raise
    raise AssertionError


def main(arguments: list[str]) -> int:
    """The program."""
    port, file, *command = arguments
    with small_dns(int(port)) as server:
        server.publish(Path(file).read_text())
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
