# SPDX-License-Identifier: Apache-2.0
"""What holds for the machine whatever the octets: splits, rubbish, memory, secrets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepmaild.smtp import actions as act
from hepmaild.smtp.core import MAX_SKIPPED_OCTETS, Mode
from hepmaild.smtp.state import REFUSALS, State, Verb
from tests.smtp.harness import MachineDriver
from tests.smtp.scripted import Script

SECRET = "hyd-mail-very-secret"
LINES = st.sampled_from(
    [
        b"EHLO client\r\n",
        b"HELO client\r\n",
        b"AUTH PLAIN AHVzZXIAcGFzcw==\r\n",
        b"AUTH LOGIN\r\n",
        b"dXNlcg==\r\n",
        b"*\r\n",
        b"MAIL FROM:<a@example.com>\r\n",
        b"MAIL FROM:<> SIZE=99999999999\r\n",
        b"RCPT TO:<b@example.com>\r\n",
        b"RCPT TO:<c@example.com>\r\n",
        b"RCPT TO:<nobody>\r\n",
        b"DATA\r\n",
        b"Subject: x\r\n\r\nbody\r\n",
        b"..\r\n",
        b".\r\n",
        b"\n.\n",
        b"BDAT 5\r\n12345",
        b"BDAT 5 LAST\r\n1\r\n45",
        b"BDAT 0 LAST\r\n",
        b"BDAT 3000\r\n" + b"x" * 3000,
        b"RSET\r\n",
        b"NOOP\r\n",
        b"VRFY x\r\n",
        b"QUIT\r\n",
        b"WHAT\r\n",
        b"x" * 600 + b"\r\n",
        b"\r",
        b"\0",
    ]
)
STREAMS = st.lists(LINES, max_size=40).map(b"".join)
# Most of the time the dialogue gets as far as a transaction.
GOOD_STARTS = st.sampled_from(
    [
        b"",
        b"EHLO client\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n",
        b"EHLO client\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n",
    ]
)
SCRIPTS = st.fixed_dictionaries(
    {
        "auth": st.lists(st.sampled_from(["ok", "INVALID_KEY", "store-down"]), min_size=1, max_size=3),
        "mail": st.lists(st.sampled_from(["ok", "ok", "KEY_DISABLED", "BACKLOG_FULL"]), min_size=1, max_size=3),
        "call": st.lists(
            st.sampled_from(["ok", "ok", "RATE_LIMITED:3", "INSUFFICIENT_CREDITS"]), min_size=1, max_size=3
        ),
        "message": st.lists(st.sampled_from(["queued", "sent", "SENDER_NOT_ALLOWED"]), min_size=1, max_size=3),
    }
)


def run(script: dict[str, list[str]], parts: list[bytes]) -> MachineDriver:
    driver = MachineDriver(Script(dict(script)), size=2000, recipients=3)
    for part in parts:
        driver.receive(part)
    return driver


@settings(max_examples=300, deadline=None)
@given(SCRIPTS, GOOD_STARTS, STREAMS, st.lists(st.integers(1, 40), max_size=80))
def test_any_split_of_the_octets_gives_the_same_actions(
    script: dict[str, list[str]], start: bytes, stream: bytes, sizes: list[int]
) -> None:
    stream = start + stream
    parts, at = [], 0
    for size in sizes:
        parts.append(stream[at : at + size])
        at += size
    parts = [part for part in (*parts, stream[at:]) if part]
    whole, split = run(script, [stream] if stream else []), run(script, parts)
    assert (whole.trace, whole.sent, whole.contents, whole.closed) == (
        split.trace,
        split.sent,
        split.contents,
        split.closed,
    )
    assert whole.machine.state is split.machine.state


@settings(max_examples=200, deadline=None)
@given(GOOD_STARTS, st.lists(st.one_of(st.binary(max_size=200), LINES), max_size=30))
def test_rubbish_raises_nothing(start: bytes, parts: list[bytes]) -> None:
    driver = MachineDriver(size=2000, recipients=3)
    driver.receive(start or b"\r\n")
    for part in parts:
        if part:
            driver.receive(part)
        assert driver.machine.buffered_octets < 13_000
        if driver.wants_tls:
            driver.tls_done()
    for line in driver.sent.split(b"\r\n")[:-1]:
        assert line[:3].isdigit()
        assert line[3:4] in (b" ", b"-")


def test_every_reply_but_banner_ehlo_and_3yz_has_an_enhanced_code() -> None:
    """RFC 2034 §4, RFC 3463, RFC 5248."""
    for column in REFUSALS.values():
        for line in column.values():
            assert line is None or line.text.split()[1].count(".") == 2
    driver = MachineDriver()
    driver.receive(b"NOOP\r\nHELP\r\nVRFY x\r\nRSET\r\nEXPN x\r\nHELO\r\nWHAT\r\nQUIT\r\n")
    for line in driver.sent.decode().split("\r\n")[1:-1]:
        code, enhanced = line.split()[:2]
        assert enhanced.startswith(f"{code[0]}."), line


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("verb", Verb)
def test_the_table_says_something_about_every_verb_in_every_state(state: State, verb: Verb) -> None:
    assert verb in REFUSALS[state]


def test_an_endless_line_needs_no_memory() -> None:
    driver = MachineDriver()
    for _ in range(MAX_SKIPPED_OCTETS // 1000):
        driver.receive(b"x" * 1000)
        assert driver.machine.buffered_octets < 2000
    assert driver.sent.count(b"500 5.5.6") == 1
    driver.receive(b"x" * 2000)
    assert driver.closed is act.CloseReason.ENDLESS_LINE


AUTHED = b"EHLO c\r\nAUTH PLAIN AHVzZXIAaHlkLW1haWwtdmVyeS1zZWNyZXQ=\r\n"
ENVELOPE = b"MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\n"


def test_no_secret_in_the_steps() -> None:
    driver = MachineDriver(Script({"auth": ["INVALID_KEY", "ok"]}))
    word = b"aHlkLW1haWwtdmVyeS1zZWNyZXQ="
    driver.receive(
        b"EHLO c\r\n" + word + b"\r\nauth PLAIN" + word + b"\r\nAUTH X " + word + b"\r\nAUTH LOGIN " + word + b"\r\n"
    )
    driver.receive(word + b"\r\nAUTH PLAIN\r\n" + word + b"\r\n")
    driver.receive(AUTHED + ENVELOPE + b"DATA\r\n")
    driver.receive(b"Subject: x\r\n\r\n" + SECRET.encode() + b"\r\n.\r\n")
    (envelope,) = driver.envelopes
    assert SECRET in driver.secrets
    text = repr(envelope)
    assert word.decode() not in text
    assert SECRET not in text
    assert "AUTH PLAIN ***" in text
    assert "message content, " in text
    assert SECRET not in repr(act.Verify(SECRET))


def test_the_steps_of_a_later_message_are_its_own() -> None:
    driver = MachineDriver()
    driver.receive(AUTHED)
    for _ in range(2):
        driver.receive(ENVELOPE + b"DATA\r\n")
        driver.receive(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    first, second = [[step.text for step in envelope.steps] for envelope in driver.envelopes]  # type: ignore[attr-defined]
    assert first[0].startswith("connected")
    assert "EHLO c" in first
    assert second[0].startswith("message 2 of this connection")
    assert second[1:] == first[-len(second) + 1 :]


def test_replies_of_pipelined_commands_travel_together() -> None:
    """RFC 2920."""
    driver = MachineDriver()
    driver.receive(AUTHED)
    machine = driver.machine
    assert [type(a) for a in machine.receive(ENVELOPE + b"NOOP\r\n", 0)] == [act.OpenTransaction]
    from tests.smtp.scripted import KEY

    (send,) = machine.mail_result(KEY, 0)
    assert isinstance(send, act.Send)
    assert send.octets.count(b"\r\n") == 3


def test_while_it_waits_it_consumes_nothing() -> None:
    driver = MachineDriver()
    driver.receive(AUTHED)
    machine = driver.machine
    machine.receive(b"MAIL FROM:<a@example.com>\r\n", 0)
    assert machine.receive(b"NOOP\r\n" * 3, 0) == []
    assert machine.buffered_octets == 18
    with pytest.raises(RuntimeError):
        machine.call_result(None, 0)


def test_plaintext_behind_starttls_never_runs() -> None:
    """RFC 3207."""
    driver = MachineDriver(implicit=False)
    driver.receive(b"EHLO c\r\nSTARTTLS\r\nEHLO evil\r\n")
    assert driver.closed is act.CloseReason.PLAINTEXT_BEHIND_STARTTLS
    assert not driver.wants_tls
    driver.receive(b"NOOP\r\n")
    assert driver.machine._mode is Mode.CLOSED


def test_an_aborted_content_is_dropped_before_the_next() -> None:
    driver = MachineDriver()
    driver.receive(AUTHED + ENVELOPE + b"BDAT 5\r\nabcde")
    actions = driver.machine.receive(b"RSET\r\n", 0)
    assert [type(a) for a in actions] == [act.AbortMessage, act.Send]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        (b"MAIL FROM:<a@b.c>", "a@b.c"),
        (b"mail from: <a@b.c> ", "a@b.c"),
        (b"MAIL FROM:<@x.example,@y.example:a@b.c>", "a@b.c"),
        (b'MAIL FROM:<"a b>c"@d.e> SIZE=1', '"a b>c"@d.e'),
        (b"MAIL FROM:<>", ""),
        (b"MAIL FROM:<root>", "root"),
        (b"MAIL FROM:<a@[IPv6:::1]>", "a@[IPv6:::1]"),
        (b"MAIL FROM:<a+b=c@d.e> AUTH=a+2Bb@c.d BODY=8BITMIME", "a+b=c@d.e"),
    ],
)
def test_reverse_paths(line: bytes, address: str) -> None:
    """RFC 5321 Appendix C, RFC 4954 §5."""
    driver = MachineDriver()
    driver.receive(AUTHED + line + b"\r\nRCPT TO:<b@example.com>\r\nBDAT 2 LAST\r\n\r\n")
    (envelope,) = driver.envelopes
    assert envelope.reverse_path == address  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "line",
    [
        b"MAIL FROM:<a@b.c",
        b"MAIL FROM:<a b@c.d>",
        b"MAIL FROM:<a@b.c>SIZE=1",
        b"MAIL FROM:<a\x01@b.c>",
        b"MAIL FROM:\xff",
        b"MAIL FROM:<a@b.c> AUTH=" + b"<>" * 400 + b"=",  # not one step for each of 2^400 ways to read it
    ],
)
def test_reverse_paths_that_are_none(line: bytes) -> None:
    driver = MachineDriver()
    driver.receive(AUTHED)
    before = len(driver.sent)
    driver.receive(line + b"\r\n")
    assert driver.sent[before:].startswith(b"501 5.")


def test_a_hundred_refused_recipients_are_no_wrong_commands() -> None:
    driver = MachineDriver(Script({"mail": ["BACKLOG_FULL"]}))
    driver.receive(AUTHED + b"MAIL FROM:<a@b.c>\r\n" + b"RCPT TO:<x@y.z>\r\n" * 100 + b"DATA\r\nNOOP\r\n")
    assert driver.closed is None
    assert driver.sent.endswith(b"250 2.0.0 OK\r\n")


@pytest.mark.parametrize(
    ("line", "code", "wrong"),
    [
        ("MAIL FROM:<jürgen@example.com>", "553 5.6.7 ", 0),
        ("MAIL FROM:<a@b.c> SIZE=99999999", "552 5.3.4 ", 0),
        ("MAIL FROM:<a@b.c> RET=HDRS", "555 5.5.4 ", 1),
        ("MAIL FROM:<a@b.c> BODY=BINARYMIME", "501 5.5.4 ", 1),
        ("MAIL FROM:<a@b.c", "501 5.1.7 ", 1),
    ],
)
def test_what_is_pipelined_behind_a_refused_mail_is_no_wrong_command(line: str, code: str, wrong: int) -> None:
    """RFC 2920: it left before the refusal came.  A RSET ends the pardon, and the next MAIL that is taken."""
    driver = MachineDriver()
    driver.receive(AUTHED)
    before = len(driver.sent)
    driver.receive(line.encode() + b"\r\n" + b"RCPT TO:<x@y.z>\r\n" * 100 + b"DATA\r\nBDAT 2 LAST\r\n\r\n")
    assert driver.sent[before:].startswith(code.encode())
    assert (driver.closed, driver.machine.session.wrong) == (None, wrong)
    driver.receive(b"RSET\r\nRCPT TO:<x@y.z>\r\n")
    assert driver.machine.session.wrong == wrong + 1


def test_lost_content_is_answered_at_its_end() -> None:
    driver = MachineDriver()
    driver.receive(AUTHED + ENVELOPE + b"DATA\r\n")
    driver.machine.content_lost()
    driver.receive(b"Subject: x\r\n\r\nbody\r\n.\r\n")
    assert driver.sent.endswith(b"451 4.3.0 Temporary failure, nothing was accepted, try again\r\n")
    assert driver.contents == []
