# SPDX-License-Identifier: Apache-2.0
"""The client machine by dialogues: `<` is what the peer says, `>` what we send, `!` what the driver is told."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepmaild.config import TlsMode
from hepmaild.delivery.capabilities import Capabilities, parse_capabilities, refuse_locally
from hepmaild.delivery.client import Action, ClientMachine, Credentials, Do, Envelope, Failed, Send, Stage
from hepmaild.delivery.job import Result
from hepmaild.delivery.outcome import Verdict, judge
from hepmaild.delivery.reader import MAX_LINE_OCTETS, MAX_LINES, ProtocolError, ReplyReader
from hepmaild.events import Transcript
from hepmaild.mail.reply import MAX_TEXT, Reply, from_lines

ENVELOPE = Envelope("s@example.com", ("a@example.net", "b@example.net"), 100)
PLAIN = base64.b64encode(b"\0user\0secret").decode()

EHLO_ALL = "250-peer;250-PIPELINING;250-SIZE 1000;250-8BITMIME;250-STARTTLS;250-AUTH PLAIN LOGIN;250 SMTPUTF8"
EHLO_BARE = "250 peer"
PIPELINED = "MAIL FROM:<s@example.com> SIZE=100;RCPT TO:<a@example.net>;RCPT TO:<b@example.net>;DATA"


def wire(text: str) -> bytes:
    return "".join(f"{line}\r\n" for line in text.split(";")).encode()


class Dialogue:
    """Plays one, splitting what the peer says as told."""

    def __init__(
        self, *, tls: TlsMode = TlsMode.NONE, login: bool = False, envelope: Envelope = ENVELOPE, split: int = 0
    ) -> None:
        self.transcript = Transcript()
        credentials = Credentials("user", "secret") if login else None
        self.machine = ClientMachine("me", tls=tls, credentials=credentials, transcript=self.transcript)
        self.envelope = envelope
        self.split = split
        self.pending: Action | None = None

    def play(self, text: str) -> Dialogue:
        for line in filter(None, (line.strip() for line in text.splitlines())):
            mark, rest = line[0], line[2:]
            if mark == "<":
                assert self.pending is None, self.pending
                self.pending = self.feed(wire(rest))
            elif mark == ">":
                assert self.pending == Send(wire(rest)), self.pending
                self.pending = None
            else:
                self.told(rest)
        return self

    def feed(self, data: bytes) -> Action | None:
        step = self.split or len(data)
        action = None
        for at in range(0, len(data), step):
            assert action is None
            action = self.machine.receive(data[at : at + step], 1)
        return action

    def told(self, what: str) -> None:
        action, self.pending = self.pending, None
        if what == "begin":
            assert action in {None, Do.READY, Do.FINISHED}
            self.pending = self.machine.begin(self.envelope, self.transcript, 1)
        elif what == "dot":
            self.machine.dot_sent(1)
        elif what == "tls":
            assert action is Do.START_TLS
            self.pending = self.machine.tls_established("TLSv1.3", "X", 1)
        elif what == "eof":
            self.pending = self.machine.eof()
        elif what.startswith("failed"):
            assert isinstance(action, Failed), action
            assert action.stage.value == what[7:]
            assert not self.machine.usable
        else:
            assert action is Do[what], action


HAPPY = f"""
    < 220-welcome;220 peer
    > EHLO me
    < {EHLO_ALL}
    ! READY
    ! begin
    > {PIPELINED}
    < 250 2.1.0 ok;250 2.1.5 ok;250 2.1.5 ok;354 go
    ! WANT_CONTENT
    ! dot
    < 250 2.0.0 queued
    ! FINISHED
"""

DIALOGUES = {
    "pipelined": HAPPY,
    "lock-step": f"""
        < 220 peer
        > EHLO me
        < {EHLO_BARE}
        ! begin
        > MAIL FROM:<s@example.com>
        < 250 ok
        > RCPT TO:<a@example.net>
        < 550 5.1.1 no
        > RCPT TO:<b@example.net>
        < 250 ok
        > DATA
        < 354 go
        ! WANT_CONTENT
        ! dot
        < 250 ok
        ! FINISHED
        ! begin
        > MAIL FROM:<s@example.com>
    """,
    "lock-step, MAIL refused, then RSET": f"""
        < 220 peer
        > EHLO me
        < {EHLO_BARE}
        ! begin
        > MAIL FROM:<s@example.com>
        < 451 later
        ! FINISHED
        ! begin
        > RSET
        < 250 ok
        > MAIL FROM:<s@example.com>
    """,
    "lock-step, nobody accepted: no DATA": f"""
        < 220 peer
        > EHLO me
        < {EHLO_BARE}
        ! begin
        > MAIL FROM:<s@example.com>
        < 250 ok
        > RCPT TO:<a@example.net>
        < 550 no
        > RCPT TO:<b@example.net>
        < 450 no
        ! FINISHED
    """,
    "nobody accepted but 354: a lone dot": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;550 no;550 no;354 go
        ! SEND_LONE_DOT
        ! dot
        < 554 no valid recipients
        ! FINISHED
    """,
    "pipelined, DATA refused, then RSET goes along": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;550 no;550 no;554 nobody
        ! FINISHED
        ! begin
        > RSET;{PIPELINED}
        < 250 ok;250 ok;250 ok;250 ok;354 go
        ! WANT_CONTENT
    """,
    "HELO where EHLO is unknown": """
        < 220 peer
        > EHLO me
        < 502 what
        > HELO me
        < 250 peer
        ! READY
    """,
    "greeting refuses": """
        < 554 no service
        ! failed greeting
    """,
    "421 in the middle": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;421 4.3.2 bye
        ! failed RCPT
    """,
    "2yz to DATA is no 354": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;250 ok;250 ok;250 ok
        ! failed DATA
    """,
    "praise before the dot is a lie": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;250 ok;250 ok;354 go
        ! WANT_CONTENT
        < 250 2.0.0 got it
        ! failed content
    """,
    "a refusal before the dot counts": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        < 250 ok;250 ok;250 ok;354 go
        ! WANT_CONTENT
        < 552 5.3.4 too large
        ! failed content
    """,
    "lost before the dot": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > {PIPELINED}
        ! eof
        ! failed MAIL
    """,
}

STARTTLS = {
    "STARTTLS, login, all learned before TLS forgotten": f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        > STARTTLS
        < 220 go
        ! tls
        > EHLO me
        < 250-peer;250 AUTH LOGIN PLAIN
        > AUTH PLAIN {PLAIN}
        < 235 in
        ! READY
        ! begin
        > MAIL FROM:<s@example.com>
    """,
    "LOGIN where PLAIN is missing, old-fashioned offer": """
        < 220 peer
        > EHLO me
        < 250-peer;250 STARTTLS
        > STARTTLS
        < 220 go
        ! tls
        > EHLO me
        < 250-peer;250 AUTH=LOGIN
        > AUTH LOGIN
        < 334 VXNlcm5hbWU6
        > dXNlcg==
        < 334 UGFzc3dvcmQ6
        > c2VjcmV0
        < 235 in
        ! READY
    """,
    "login refused": f"""
        < 220 peer
        > EHLO me
        < 250-peer;250 STARTTLS
        > STARTTLS
        < 220 go
        ! tls
        > EHLO me
        < 250-peer;250 AUTH PLAIN
        > AUTH PLAIN {PLAIN}
        < 535 5.7.8 {PLAIN} secret
        ! failed AUTH
    """,
    "STARTTLS not offered": """
        < 220 peer
        > EHLO me
        < 250 peer
        ! failed STARTTLS
    """,
    "STARTTLS refused": """
        < 220 peer
        > EHLO me
        < 250-peer;250 STARTTLS
        > STARTTLS
        < 454 later
        ! failed STARTTLS
    """,
    "plaintext behind 220": """
        < 220 peer
        > EHLO me
        < 250-peer;250 STARTTLS
        > STARTTLS
        < 220 go;250 injected
        ! failed STARTTLS
    """,
}


@pytest.mark.parametrize("name", DIALOGUES)
def test_dialogue(name: str) -> None:
    Dialogue().play(DIALOGUES[name])


@pytest.mark.parametrize("name", STARTTLS)
def test_starttls_dialogue(name: str) -> None:
    """RFC 3207 §4.2."""
    dialogue = Dialogue(tls=TlsMode.STARTTLS, login=True).play(STARTTLS[name])
    said = "\n".join(step.text for step in dialogue.transcript.steps)
    assert "secret" not in said
    assert PLAIN not in said
    assert "c2VjcmV0" not in said


@given(split=st.integers(1, 30), name=st.sampled_from(sorted(set(DIALOGUES) - {"praise before the dot is a lie"})))
@settings(deadline=None)
def test_any_split_gives_the_same_actions(split: int, name: str) -> None:
    whole, pieces = Dialogue().play(DIALOGUES[name]), Dialogue(split=split).play(DIALOGUES[name])
    assert whole.transcript.steps == pieces.transcript.steps
    assert whole.machine.transaction == pieces.machine.transaction


def test_no_password_without_tls() -> None:
    Dialogue(tls=TlsMode.OPPORTUNISTIC, login=True).play(
        """
        < 220 peer
        > EHLO me
        < 250-peer;250 AUTH PLAIN
        ! failed AUTH
        """
    )


def test_opportunistic_goes_on_without() -> None:
    Dialogue(tls=TlsMode.OPPORTUNISTIC).play(
        """
        < 220 peer
        > EHLO me
        < 250-peer;250 STARTTLS
        > STARTTLS
        < 454 later
        ! READY
        """
    )


def test_masks_what_the_peer_repeats() -> None:
    machine = Dialogue(tls=TlsMode.STARTTLS, login=True).play(STARTTLS["login refused"]).machine
    assert machine.stage is Stage.AUTH


LONG = "eyJhbGciOiJIUzI1NiJ9." + "0123456789abcdefghijklmnopqrstuvwxyz" * 12  # as tokens are that serve as passwords


def cut_out(text: str) -> str:
    """As Sendmail repeats a command in its refusal: without the middle."""
    return f"{text[:97]}...{text[-100:]}"


@pytest.mark.parametrize("password", ["correct horse battery staple, and more of it", LONG])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize(
    "repeat", [str, cut_out, lambda text: text[:30], lambda text: f"{text[:60]}\r\n501-{text[60:]}"]
)
def test_masks_what_the_peer_repeats_in_part(repeat: Callable[[str], str], mechanism: str, password: str) -> None:
    """And what we cut of it ourselves, since it is long."""
    transcript = Transcript()
    credentials = Credentials("user", password)
    machine = ClientMachine("me", tls=TlsMode.IMPLICIT, credentials=credentials, transcript=transcript, tls_is_on=True)
    assert machine.receive(b"220 peer\r\n", 1) == Send(b"EHLO me\r\n")
    said = machine.receive(f"250-peer\r\n250 AUTH {mechanism}\r\n".encode(), 1)
    for _ in range(2 if mechanism == "LOGIN" else 0):
        said = machine.receive(b"334 VXNlcm5hbWU6\r\n", 1)
    assert isinstance(said, Send)
    line = said.data.decode().strip()
    failed = machine.receive(f"501-cannot decode {repeat(line)}\r\n501 that was it\r\n".encode(), 1)
    assert isinstance(failed, Failed)
    assert failed.reply is not None
    shown = [failed.reply.text, *(step.text for step in transcript.steps)]
    encoded = line.split()[-1]
    pieces = {encoded[n : n + 8] for n in range(len(encoded) - 7)}
    assert not [piece for piece in pieces if any(piece in text for text in shown)]
    assert failed.reply.text.startswith("cannot decode")
    assert failed.reply.text.endswith("\nthat was it")


def test_masks_api_keys_in_what_the_peer_repeats() -> None:
    """One may stand in an address, which a refusal names; replies are kept with the recipient."""
    key = "hyd-mail-" + "k" * 35 + "12345"
    refusal = f"550 5.1.1 <{key}@example.net>: no such mailbox"
    dialogue = Dialogue().play(HAPPY.replace("250 2.1.5 ok", refusal, 1))
    assert dialogue.machine.transaction is not None
    (*_, reply) = [reply for reply in dialogue.machine.transaction.rcpt if reply is not None and reply.code == 550]
    assert reply.text == "<hyd-mail-…12345@example.net>: no such mailbox"
    assert not [step for step in dialogue.transcript.steps if key in step.text]


@pytest.mark.parametrize("garbage", ["250 ok;250 more", "250 ok;25"])
def test_a_reply_to_nothing_ends_the_connection_but_not_the_verdict(garbage: str) -> None:
    dialogue = Dialogue().play(HAPPY.replace("250 2.0.0 queued", garbage))
    assert dialogue.machine.transaction is not None
    assert dialogue.machine.transaction.dot == Reply(250, "", "ok")
    assert not dialogue.machine.usable


def test_a_goodbye_behind_a_refusal_is_what_the_others_are_told() -> None:
    """Of a server without PIPELINING that ends the session after so many bad recipients, as Postfix does."""
    dialogue = Dialogue().play(
        f"""
        < 220 peer
        > EHLO me
        < {EHLO_BARE}
        ! begin
        > MAIL FROM:<s@example.com>
        < 250 ok
        > RCPT TO:<a@example.net>
        """
    )
    goodbye = Reply(421, "4.7.0", "too many errors, try again in 90 seconds")
    failure = dialogue.feed(b"550 5.1.1 no\r\n" + goodbye.encode())
    assert failure == Failed(Stage.RCPT, goodbye, "the next hop ended the session")
    assert dialogue.machine.transaction is not None
    refused, other = judge(dialogue.machine.transaction, failure)
    assert (refused.result, refused.reply) == (Result.FAILED, Reply(550, "5.1.1", "no"))
    assert other == Verdict(Result.DEFERRED, goodbye, 90)


def test_something_said_before_the_dot_stops_the_dot() -> None:
    dialogue = Dialogue().play(HAPPY.partition("! dot")[0])
    assert dialogue.machine.check_in_step() is None
    assert dialogue.machine.receive(b"250 2.", 1) is None
    assert isinstance(dialogue.machine.check_in_step(), Failed)


def test_the_dot_only_after_354() -> None:
    dialogue = Dialogue().play(HAPPY)
    with pytest.raises(RuntimeError):
        dialogue.machine.dot_sent(1)


# Replies


def read(data: bytes) -> list[Reply]:
    reader = ReplyReader()
    reader.feed(data)
    replies = []
    while (reply := reader.next()) is not None:
        replies.append(reply)
    return replies


@pytest.mark.parametrize(
    "data",
    [
        b"xyz\r\n",
        b"\r\n",
        b"25\r\n",
        b"199 one\r\n",
        b"650 six\r\n",
        b"2500 four\r\n",
        b"250_ok\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 " + b"x" * MAX_LINE_OCTETS + b"\r\n",
        b"x" * (MAX_LINE_OCTETS + 1),
        b"250-x\r\n" * (MAX_LINES + 1),
        "２50 wide digits\r\n".encode(),
        b"\x00250 ok\r\n",
    ],
)
def test_hostile_replies_are_protocol_errors(data: bytes) -> None:
    """RFC 5321 §4.2, §4.5.3.1.5."""
    with pytest.raises(ProtocolError):
        read(data)


def test_odd_but_readable_replies() -> None:
    """RFC 5321 §4.2."""
    assert read(b"250\r\n") == [Reply(250, "", "")]
    assert read(b"250 ok\n220-\r\n220 x\r\n") == [Reply(250, "", "ok"), Reply(220, "", "\nx")]
    assert read(b"250 a\x00b\xff\r\n") == [Reply(250, "", "a?b\ufffd")]


def test_nothing_in_a_reply_is_unseen() -> None:
    """What follows U+202E would be read from right to left, on a page and in a terminal."""
    hostile = "550 no \u202erefused\u2066\u200b x\ufeffy\u00ad \u061c\U000e0041.\r\n"
    assert read(hostile.encode()) == [Reply(550, "", "no ?refused? x?y? ?.")]
    kept = "grüße, 日本語, עברית, \U0001f642\u00a0\u2026"
    assert read(f"550 {kept}\r\n".encode()) == [Reply(550, "", kept)]


@given(st.binary(max_size=300), st.integers(1, 20))
@settings(deadline=None)
def test_any_octets_in_any_split(data: bytes, split: int) -> None:
    def run(step: int) -> list[object]:
        reader, seen = ReplyReader(), []
        try:
            for at in range(0, len(data), step):
                reader.feed(data[at : at + step])
                while (reply := reader.next()) is not None:
                    seen.append(reply)
        except ProtocolError as error:
            seen.append(str(error))
        return seen

    assert run(split) == run(len(data) or 1)


# Offers and our own refusals


def test_capabilities() -> None:
    """RFC 5321 §4.1.1.1, RFC 9422."""
    reply = from_lines(
        ["250-peer SIZE 5", "250-size 123", "250-Pipelining", "250-LIMITS RCPTMAX=7 MAILMAX=9", "250 AUTH=login"]
    )
    offered = parse_capabilities(reply)
    assert (offered.size, offered.pipelining, offered.auth) == (123, True, {"LOGIN"})
    assert (offered.rcpt_max, offered.mail_max) == (7, 9)
    assert parse_capabilities(from_lines(["250-x", "250-SIZE", "250 LIMITS RCPTMAX=x"])).rcpt_max == 0


def codes(envelope: Envelope, offered: Capabilities) -> list[str]:
    return [reply.enhanced if reply else "" for reply in refuse_locally(envelope, offered)]


@pytest.mark.parametrize(
    ("envelope", "offered", "expected"),
    [
        (ENVELOPE, Capabilities(), ["", ""]),
        (ENVELOPE, Capabilities(size=99), ["5.3.4", "5.3.4"]),
        (ENVELOPE, Capabilities(rcpt_max=1), ["", "4.5.3"]),
        (Envelope("s@x", ("ä@x", "b@x"), 1), Capabilities(), ["5.6.7", ""]),
        (Envelope("s@x", ("ä@x", "b@x"), 1), Capabilities(smtputf8=True), ["", ""]),
        (Envelope("ä@x", ("a@x",), 1), Capabilities(), ["5.6.7"]),
        (Envelope("s@x", ("a@x",), 1, headers_utf8=True), Capabilities(), ["5.6.7"]),
        (Envelope("s@x", ("a@x>\r\nDATA", "a b@x", 'a"@x', "<a@x", ""), 1), Capabilities(), ["5.1.3"] * 5),
        (Envelope("s@x", ('"a> b"@x', '"q\\"u"@x'), 1), Capabilities(), ["", ""]),
        (Envelope("s@x\r\nRSET", ("a@x",), 1), Capabilities(), ["5.1.3"]),
    ],
)
def test_local_refusals(envelope: Envelope, offered: Capabilities, expected: list[str]) -> None:
    """RFC 1870, RFC 6531, RFC 6532, RFC 9422."""
    assert codes(envelope, offered) == expected


def test_parameters_of_mail() -> None:
    """RFC 1870, RFC 6152, RFC 6531."""
    envelope = Envelope("ä@example.com", ("a@example.net",), 5, eight_bit=True)
    dialogue = Dialogue(envelope=envelope).play(
        f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        > MAIL FROM:<ä@example.com> SIZE=5 BODY=8BITMIME SMTPUTF8;RCPT TO:<a@example.net>;DATA
        """
    )
    assert dialogue.machine.transaction is not None


def test_our_refusal_of_everybody_sends_nothing() -> None:
    Dialogue(envelope=Envelope("s@x", ("a@x\r\n",), 1)).play(
        f"""
        < 220 peer
        > EHLO me
        < {EHLO_ALL}
        ! begin
        ! FINISHED
        """
    )


def test_what_a_peer_says_of_many_recipients_stays_small() -> None:
    """It is in the record of every attempt, and in the answer to who waits; what EHLO offers is read to its end."""
    many = Envelope("s@example.com", tuple(f"r{n}@example.net" for n in range(100)), 100)
    dialogue = Dialogue(envelope=many)
    assert dialogue.feed(b"220 peer\r\n") == Send(b"EHLO me\r\n")
    offer = b"".join(b"250-X-%b\r\n" % (b"x" * 380) for _ in range(MAX_LINES - 1)) + b"250 PIPELINING\r\n"
    assert dialogue.feed(b"250-peer\r\n" + offer) is Do.READY
    machine = dialogue.machine
    assert machine.capabilities.pipelining
    machine.begin(many, dialogue.transcript, 0)
    refusal = b"550-5.1.1 " + b"no " * 130 + b"\r\n"
    assert dialogue.feed(b"250 ok\r\n") is None
    for _ in range(100):
        assert dialogue.feed(refusal * MAX_LINES + refusal.replace(b"550-", b"550 ")) is None
    assert dialogue.feed(b"554 nobody\r\n") is Do.FINISHED
    replies = [reply for reply in machine.transaction.rcpt if reply is not None] if machine.transaction else []
    assert [reply.enhanced for reply in replies] == ["5.1.1"] * 100
    assert all(380 < len(str(reply)) < MAX_TEXT + 20 for reply in replies)
