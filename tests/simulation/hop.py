# SPDX-License-Identifier: Apache-2.0
"""Next hops that misbehave: each connection by dice of its own, until the hop calms down.

A hop remembers what it kept, and for whom it told the client so; that is what the invariants are checked against.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import trio

from tests.simulation.plan import GONE, HopPlan, Temper, dice
from tests.simulation.trace import Trace
from tests.simulation.wire import Cut, End, make_wire

_OUR_ID = re.compile(rb"with ESMTPSA id ([0-9a-f]{16})")
_ADDRESS = re.compile(rb"<([^>]*)>")
LATER = ("451 4.3.0 later", "450 4.2.0 greylisted, try again in 30 seconds", "452 4.5.3 too many", "430 odd")
NEVER = ("550 5.1.1 nobody here", "554 5.7.1 no", "530 5.7.0 log in first", "552 5.5.3 too many", "503 5.5.1 eh")
WRONG = ("250 fine", "354 go on", "220 hello", "334 VXNlcm5hbWU6", "299 odd")
GARBAGE = (b"\x00\xff\xfe\r\n", b"250-a\r\n550 b\r\n", b"25\r\n", b"x" * 3000, b"250", b"\r\n", b"999 hm\r\n")
DOT_FATES = (
    *("keep+close", "keep+hang", "keep+partial", "keep+garbage", "late", "twice"),
    *("lose+close", "lose+hang", "lose+garbage", "4xx", "421", "5xx", "3xx"),
)
SLOW_S = (0.1, 3, 20)
LATE_S = (3, 100, 299, 301)
DOT_DELAYS_S = (1, 20, 300, 595, 605, 700, 1200)
LONGEST_S = 3600.0

Key = tuple[str, str]  # our message id, address


class Gone(Exception):
    """The connection is over."""


@dataclass(frozen=True)
class Kept:
    """One message that a hop took responsibility for."""

    at_s: float
    message_id: str
    address: str
    sender: str
    hop: str


class Ledger:
    """What all hops of a run know.

    kept: every delivery.  said: how often a client was told yes to the dot.  open_dots: contents whose dot may have
    come and that got no whole, honest answer.  lied: addresses that somebody lied about (or answered out of step).
    asked: every RCPT.
    """

    def __init__(self) -> None:
        self.kept: list[Kept] = []
        self.times: Counter[Key] = Counter()
        self.said: Counter[Key] = Counter()
        self.open_dots: Counter[str] = Counter()
        self.lied: set[str] = set()
        self.asked: list[tuple[float, str]] = []

    def keep(self, hop: str, message_id: str, addresses: list[str], sender: str) -> None:
        for address in addresses:
            self.kept.append(Kept(trio.current_time(), message_id, address, sender, hop))
            self.times[message_id, address] += 1


class Hop:
    """One next hop.  `connect` is called by the engine's `Connect`."""

    def __init__(self, seed: int, plan: HopPlan, ledger: Ledger, trace: Trace, nursery: trio.Nursery) -> None:
        self.plan = plan
        self.ledger = ledger
        self.trace = trace
        self.open = 0
        self._seed = seed
        self._nursery = nursery
        self._connections = 0

    @property
    def is_calm(self) -> bool:
        """Whether it behaves from now on."""
        return self.plan.temper is Temper.GOOD or trio.current_time() >= self.plan.until_s

    async def connect(self, opened: Callable[[End], None]) -> End:
        """A connection, or OSError, or a long silence.  opened: told the client's end."""
        self._connections += 1
        r = dice(self._seed, "hop", self.plan.name, self._connections)
        await trio.sleep(self.plan.latency_s)
        if not self.is_calm:
            await self._maybe_refuse(r)
        cut = self._cut(r)
        client, server = make_wire(r, self.plan.latency_s, cut, fragments=self.plan.fragments)
        talk = Talk(self, self._connections, server, r)
        opened(client)
        self._nursery.start_soon(talk.run)
        return client

    async def _maybe_refuse(self, r: object) -> None:
        rnd = dice(self._seed, "connect", self.plan.name, self._connections)
        temper = self.plan.temper
        bad = temper in {Temper.MOODY, Temper.VILE} and rnd.random() < self.plan.trouble / 2
        if temper is Temper.REFUSING or (bad and rnd.random() < 0.6):
            self.trace.add(self.plan.name, "refuses a connection")
            raise ConnectionRefusedError(111, "Connection refused")
        if bad or (temper is Temper.SILENT and rnd.random() < 0.3):
            self.trace.add(self.plan.name, "does not answer SYN")
            await trio.sleep(LONGEST_S)

    def _cut(self, r: object) -> Cut:
        rnd = dice(self._seed, "cut", self.plan.name, self._connections)
        if self.is_calm or self.plan.temper not in {Temper.MOODY, Temper.VILE}:
            return Cut()
        if rnd.random() > self.plan.trouble:
            return Cut()
        octets = rnd.randrange(900)
        reset = rnd.random() < 0.5
        return Cut(to_server=octets, reset=reset) if rnd.random() < 0.5 else Cut(to_client=octets // 2, reset=reset)


class Talk:
    """One connection as the hop sees it."""

    def __init__(self, hop: Hop, number: int, end: End, r: object) -> None:
        self.hop = hop
        self.end = end
        self.r = dice(hop._seed, "talk", hop.plan.name, number)
        self.name = f"{hop.plan.name}#{number}"
        self.buffer = bytearray()
        self.sender = ""
        self.accepted: list[str] = []
        self.named: list[str] = []
        self.lying = False
        self.mails = 0

    async def run(self) -> None:
        """Until the client goes or is left."""
        self.hop.open += 1
        try:
            await self._talk()
        except (Gone, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.hop.open -= 1
            self.end.close()
            self._say_trace("closed")

    def _say_trace(self, text: str) -> None:
        self.hop.trace.add(self.name, text)

    async def _talk(self) -> None:
        self._say_trace("connected")
        await self._reply("GREETING", "220 hop ESMTP")
        while True:
            line = await self._line()
            self._say_trace(f"< {line[:120].decode('utf-8', 'replace')}")
            verb = line[:4].upper()
            ways = self.hop.plan.ways
            if verb == b"HELO":
                await self._reply("EHLO", "250 hop")
            elif verb == b"EHLO" and not ways.knows_ehlo:
                await self._reply("EHLO", "502 5.5.1 not here")
            elif verb == b"EHLO":
                tail = "250-PIPELINING\r\n" if self.hop.plan.pipelining else ""
                await self._reply("EHLO", f"250-hop\r\n{tail}250-SIZE 1000000\r\n250-8BITMIME\r\n250 SMTPUTF8")
            elif verb == b"MAIL":
                self.mails += 1
                if ways.most_mail and self.mails > ways.most_mail:
                    await self._send("421 4.7.0 too many messages in this connection")
                    return
                self._reset(line)
                await self._reply("MAIL", "250 2.1.0 ok")
            elif verb == b"RCPT":
                await self._rcpt(_address(line))
            elif verb == b"DATA":
                await self._data()
            elif verb == b"RSET":
                self._reset(b"<>")
                await self._reply("RSET", "250 2.0.0 ok")
            elif verb == b"QUIT":
                await self._send("221 2.0.0 bye")
                return
            else:
                await self._reply("WHAT", "500 5.5.1 what?")

    def _reset(self, line: bytes) -> None:
        self.sender = _address(line)
        self.accepted = []
        self.named = []

    # Answers

    async def _reply(self, stage: str, good: str) -> str:
        """Answer a command, by the hop's temper; the code that was said ("" for none)."""
        trouble = self._trouble(stage)
        if not trouble:
            await self._send(good)
            return good[:3]
        self._say_trace(f"{stage}: {trouble}")
        return await self._misbehave(stage, trouble, good)

    def _trouble(self, stage: str) -> str:
        plan, r = self.hop.plan, self.r
        if self.hop.is_calm:
            return ""
        if plan.temper is Temper.SILENT:
            return "hang"
        if plan.temper is Temper.LATER:
            return "4xx" if stage in {"MAIL", "RCPT", "DATA"} and r.random() < 0.7 else ""
        if plan.temper is Temper.SLOW:
            return "late"
        if plan.temper in {Temper.MOODY, Temper.VILE} and r.random() < plan.trouble:
            kinds = ["4xx", "4xx", "421", "5xx", "hang", "late", "close", "partial", "garbage", "twice", "wrong"]
            return r.choice(kinds)
        return ""

    async def _misbehave(self, stage: str, trouble: str, good: str) -> str:
        r = self.r
        if trouble in {"4xx", "5xx"}:
            return await self._say(r.choice(LATER if trouble == "4xx" else NEVER))
        if trouble == "421":
            await self._send("421 4.3.2 shutting down")
            raise Gone
        if trouble == "hang":
            await self._hang()
        if trouble == "late":
            await trio.sleep(r.choice(SLOW_S if self.hop.plan.temper is Temper.SLOW else LATE_S))
            return await self._say(good)
        if trouble == "close":
            raise Gone
        if trouble == "partial":
            octets = good.encode() + b"\r\n"
            await self.end.send_all(octets[: r.randrange(1, len(octets))])
            raise Gone
        self._lie()
        if trouble == "twice":
            await self._send(good)
            return await self._say(good)
        if trouble == "wrong":
            return await self._say(r.choice(WRONG))
        await self.end.send_all(r.choice(GARBAGE))
        return ""

    async def _say(self, text: str) -> str:
        await self._send(text)
        return text[:3]

    def _lie(self) -> None:
        """From here on nothing that was said on this connection can be trusted."""
        self.lying = True
        self.hop.ledger.lied.update(self.named)

    async def _hang(self) -> None:
        """Say nothing until the client leaves."""
        while await self.end.receive_some():
            pass
        raise Gone

    async def _send(self, text: str) -> None:
        self._say_trace(f"> {text.splitlines()[-1]}")
        await self.end.send_all(text.encode() + b"\r\n")

    async def _line(self) -> bytes:
        while (at := self.buffer.find(b"\r\n")) < 0:
            with trio.move_on_after(self.hop.plan.idle_s) as waiting:
                await self._more()
            if waiting.cancelled_caught:
                self._say_trace("idle: 421")
                await self._send("421 4.4.2 idle for too long")
                raise Gone
        line = bytes(self.buffer[:at])
        del self.buffer[: at + 2]
        return line

    async def _more(self) -> None:
        data = await self.end.receive_some()
        if not data:
            raise Gone
        self.buffer += data

    # A transaction

    async def _rcpt(self, address: str) -> None:
        self.named.append(address)
        self.hop.ledger.asked.append((trio.current_time(), address))
        if address.startswith(GONE):
            await self._send("550 5.1.1 there is no such mailbox")
            return
        if self.lying:
            self.hop.ledger.lied.add(address)
        ways = self.hop.plan.ways
        if ways.most_rcpt and len(self.accepted) >= ways.most_rcpt:
            await self._send(ways.too_many)
            return
        code = await self._reply("RCPT", "250 2.1.5 ok")
        if code[:1] == "2":
            self.accepted.append(address)

    async def _data(self) -> None:
        if not self.accepted:
            await self._send("554 5.5.1 no valid recipients")
            return
        if await self._reply("DATA", "354 go") != "354":
            return
        for address in self.named:
            self.hop.ledger.open_dots[address] += 1
        content = await self._content()
        if not content:  # a lone dot, where the client took nobody to be accepted (RFC 2920 §3.1)
            self.lying = True
            await self._send("554 5.6.0 nothing came")
            return
        found = _OUR_ID.search(content)
        message_id = found[1].decode() if found else "?"
        self._say_trace(f"content of {message_id}, {len(content)} octets")
        await self._dot(message_id)

    async def _content(self) -> bytes:
        self.buffer[:0] = b"\r\n"
        start = 0
        while (at := self.buffer.find(b"\r\n.\r\n", start)) < 0:
            start = max(0, len(self.buffer) - 4)
            await self._more()
        content = bytes(self.buffer[2:at])
        del self.buffer[: at + 5]
        return content

    async def _dot(self, message_id: str) -> None:
        plan, r = self.hop.plan, self.r
        fate = "ok"
        if not self.hop.is_calm:
            if plan.temper is Temper.SLOW:
                fate = "late"
            elif plan.temper is Temper.DROPPING:
                fate = r.choice(("keep+close", "keep+close", "ok", "lose+close"))
            elif plan.temper in {Temper.MOODY, Temper.VILE} and r.random() < plan.trouble:
                fate = r.choice(DOT_FATES)
        if fate != "ok":
            self._say_trace(f"dot: {fate}")
        if fate.startswith("keep") or fate in {"ok", "late", "twice"}:
            self.hop.ledger.keep(plan.name, message_id, self.accepted, self.sender)
        if fate == "late":
            await trio.sleep(r.choice(DOT_DELAYS_S))
        await self._answer_dot(fate, message_id)

    async def _answer_dot(self, fate: str, message_id: str) -> None:
        r = self.r
        if fate in {"ok", "late", "twice"}:
            await self._send("250 2.0.0 kept")
            for address in self.accepted:
                self.hop.ledger.said[message_id, address] += 1
            if fate == "twice":
                self._lie()
                await self._send("250 2.0.0 kept")
        elif fate.endswith("close"):
            raise Gone
        elif fate.endswith("hang"):
            await self._hang()
        elif fate == "keep+partial":
            octets = b"250 2.0.0 kept\r\n"
            await self.end.send_all(octets[: r.randrange(len(octets) - 1)])
            raise Gone
        elif fate.endswith("garbage"):
            await self.end.send_all(r.choice((b"\xff\x00\r\n", b"250-a\r\n451 b\r\n", b"2x0 hm\r\n", b"x" * 3000)))
        elif fate == "4xx":
            await self._send("451 4.3.0 not now")
        elif fate == "5xx":
            await self._send("554 5.6.0 not this")
        elif fate == "3xx":
            await self._send("354 go on?")
        else:
            await self._send("421 4.3.2 not now, bye")
            raise Gone


def _address(line: bytes) -> str:
    found = _ADDRESS.search(line)
    return found[1].decode("utf-8", "replace") if found else ""
