# SPDX-License-Identifier: Apache-2.0
"""A next hop that writes down everything it is given: `python -m tests.peers.capture_server --help`.

An own program, in an own process, sharing no code with what is tested.  Every message past its final dot becomes one
JSON line in LOG, written *before* the reply goes out, so that whatever a relay was told was delivered is there, and
every duplicate with it.  The local part of a recipient says how it is treated:

  reject-…   550 at RCPT          defer-…      451 at RCPT
  nodot-…    554 after the dot    deferdot-…   451 after the dot
  drop-…     taken and written down, then the connection is cut without a reply
  slow-…     the reply to the dot comes two seconds late

`--treat reject=anna@example.com` does the same to an address that looks like anybody's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import ssl
import sys
from pathlib import Path

SLOW_S = 2.0
MAX_COMMAND = 8192


class ConnectionCut(Exception):
    """The peer is gone, or we decided to be."""


class Buffer:
    """Lines and dot-terminated content out of a stream."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader
        self.data = bytearray()

    async def _more(self) -> None:
        chunk = await self.reader.read(262_144)
        if not chunk:
            raise ConnectionCut
        self.data += chunk

    async def line(self) -> bytes:
        while (end := self.data.find(b"\r\n")) < 0:
            if len(self.data) > MAX_COMMAND:
                raise ConnectionCut
            await self._more()
        line = bytes(self.data[:end])
        del self.data[: end + 2]
        return line

    async def content(self) -> bytes:
        """Everything up to CRLF dot CRLF, dots removed, the last CRLF kept."""
        if self.data.startswith(b".\r\n"):
            del self.data[:3]
            return b""
        searched = 0
        while True:
            end = self.data.find(b"\r\n.\r\n", searched)
            if end >= 0:
                break
            searched = max(0, len(self.data) - 4)
            await self._more()
            if self.data.startswith(b".\r\n"):
                del self.data[:3]
                return b""
        raw = bytes(self.data[: end + 2])
        del self.data[: end + 5]
        if raw.startswith(b"."):
            raw = raw[1:]
        return raw.replace(b"\r\n.", b"\r\n")


class Capture:
    """The server's state: where it writes and how it behaves."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.count = 0
        self.treats = {address: name for name, _, address in (one.partition("=") for one in options.treat)}
        self.tls: ssl.SSLContext | None = None
        if options.certificate:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.tls.load_cert_chain(options.certificate, options.private_key)

    def treatment(self, address: str) -> str:
        """What is to be done with mail to this address; for most a word that means nothing."""
        return self.treats.get(address) or address.partition("-")[0]

    def write_down(self, content: bytes, mail_from: str, recipients: list[str], reply: str | None, tls: bool) -> None:
        self.count += 1
        header = content.split(b"\r\n\r\n", 1)[0]
        file = None
        if self.options.content:
            file = f"{self.count:06d}.eml"
            Path(self.options.content, file).write_bytes(content)
        entry = {
            "n": self.count,
            "id": _field(header, b"X-Test-Id"),
            "message_id": _field(header, b"Message-ID"),
            "received": _field(header, b"Received"),
            "mail_from": mail_from,
            "recipients": recipients,
            "octets": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "file": file,
            "reply": reply,
            "tls": tls,
        }
        os.write(self.log, json.dumps(entry).encode() + b"\n")


def _field(header: bytes, name: bytes) -> str | None:
    match = re.search(rb"(?:^|\r\n)" + re.escape(name) + rb":[ \t]*((?:[^\r]|\r\n[ \t])*)", header, re.IGNORECASE)
    return None if match is None else match.group(1).decode("utf-8", "replace").strip()


def _address(argument: str) -> str:
    match = re.search(r"<([^>]*)>", argument)
    return match.group(1) if match else argument


class Session:
    """One connection."""

    def __init__(self, capture: Capture, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.capture = capture
        self.buffer = Buffer(reader)
        self.writer = writer
        self.tls = writer.get_extra_info("ssl_object") is not None
        self.authenticated = not capture.options.user
        self.reset()

    def reset(self) -> None:
        self.mail_from: str | None = None
        self.recipients: list[str] = []

    async def say(self, *lines: str) -> None:
        self.writer.write("".join(line + "\r\n" for line in lines).encode())
        await self.writer.drain()

    async def run(self) -> None:
        await self.say("220 capture.test ESMTP")
        while True:
            line = (await self.buffer.line()).decode("utf-8", "surrogateescape")
            verb, _, argument = line.partition(" ")
            handler = getattr(self, f"do_{verb.lower()}", None)
            if handler is None:
                await self.say("500 5.5.2 unknown command")
            else:
                await handler(argument)

    async def do_ehlo(self, _argument: str) -> None:
        self.reset()
        offers = ["capture.test", "PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        if self.capture.tls is not None and not self.tls:
            offers.append("STARTTLS")
        if self.capture.options.user:
            offers.append("AUTH PLAIN LOGIN")
        last = offers.pop()
        await self.say(*(f"250-{offer}" for offer in offers), f"250 {last}")

    async def do_helo(self, _argument: str) -> None:
        self.reset()
        await self.say("250 capture.test")

    async def do_starttls(self, _argument: str) -> None:
        if self.capture.tls is None or self.tls:
            await self.say("503 5.5.1 no STARTTLS now")
            return
        await self.say("220 2.0.0 go ahead")
        self.buffer.data.clear()
        await self.writer.start_tls(self.capture.tls)
        self.tls = True
        self.authenticated = not self.capture.options.user
        self.reset()

    async def do_auth(self, argument: str) -> None:
        mechanism, _, initial = argument.partition(" ")
        if mechanism.upper() == "PLAIN":
            if not initial:
                await self.say("334 ")
                initial = (await self.buffer.line()).decode()
            user, password = base64.b64decode(initial).decode().split("\0")[1:]
        elif mechanism.upper() == "LOGIN":
            if not initial:
                await self.say("334 VXNlcm5hbWU6")
                initial = (await self.buffer.line()).decode()
            user = base64.b64decode(initial).decode()
            await self.say("334 UGFzc3dvcmQ6")
            password = base64.b64decode(await self.buffer.line()).decode()
        else:
            await self.say("504 5.5.4 unknown mechanism")
            return
        options = self.capture.options
        self.authenticated = (user, password) == (options.user, options.password)
        await self.say("235 2.7.0 welcome" if self.authenticated else "535 5.7.8 wrong user or password")

    async def do_mail(self, argument: str) -> None:
        if not self.authenticated:
            await self.say("530 5.7.0 log in first")
            return
        self.reset()
        self.mail_from = _address(argument)
        await self.say("250 2.1.0 ok")

    async def do_rcpt(self, argument: str) -> None:
        if self.mail_from is None:
            await self.say("503 5.5.1 MAIL first")
            return
        address = _address(argument)
        treatment = self.capture.treatment(address)
        if treatment == "reject":
            await self.say("550 5.1.1 no such mailbox here")
        elif treatment == "defer":
            await self.say("451 4.2.0 try again later")
        else:
            self.recipients.append(address)
            await self.say("250 2.1.5 ok")

    async def do_data(self, _argument: str) -> None:
        if self.mail_from is None or not self.recipients:
            await self.say("503 5.5.1 no valid recipients")
            return
        await self.say("354 go on")
        content = await self.buffer.content()
        treatment = {self.capture.treatment(address) for address in self.recipients}
        reply: str | None = "250 2.0.0 captured"
        if "nodot" in treatment:
            reply = "554 5.7.1 refused for its content"
        elif "deferdot" in treatment:
            reply = "451 4.3.0 not now"
        elif "drop" in treatment:
            reply = None
        self.capture.write_down(content, self.mail_from, self.recipients, reply, self.tls)
        self.reset()
        delay_s = SLOW_S if "slow" in treatment else self.capture.options.delay_ms / 1000
        if delay_s:
            await asyncio.sleep(delay_s)
        if reply is None:
            raise ConnectionCut
        await self.say(reply)

    async def do_rset(self, _argument: str) -> None:
        self.reset()
        await self.say("250 2.0.0 ok")

    async def do_noop(self, _argument: str) -> None:
        await self.say("250 2.0.0 ok")

    async def do_quit(self, _argument: str) -> None:
        await self.say("221 2.0.0 bye")
        raise ConnectionCut


async def serve(options: argparse.Namespace) -> None:
    capture = Capture(options)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionCut, ConnectionError, ssl.SSLError, TimeoutError):
            await Session(capture, reader, writer).run()
        with contextlib.suppress(Exception):
            writer.close()
            await writer.wait_closed()

    implicit = capture.tls if options.implicit else None
    server = await asyncio.start_server(handle, "127.0.0.1", options.port, ssl=implicit, backlog=1024)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(f"listening {server.sockets[0].getsockname()[1]}", flush=True)
    await stop.wait()
    server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", required=True, help="file that gets one JSON line for each message")
    parser.add_argument("--content", default="", help="folder that gets each message as a file")
    parser.add_argument("--treat", action="append", default=[], metavar="HOW=ADDRESS", help="as its local part would")
    parser.add_argument("--certificate", default="", help="offer STARTTLS with this certificate")
    parser.add_argument("--private-key", default="")
    parser.add_argument("--implicit", action="store_true", help="TLS from the first byte instead")
    parser.add_argument("--user", default="", help="ask for AUTH")
    parser.add_argument("--password", default="")
    parser.add_argument("--delay-ms", type=float, default=0, help="before every reply to a final dot")
    options = parser.parse_args()
    asyncio.run(serve(options))
    sys.exit(0)


if __name__ == "__main__":
    main()
