# SPDX-License-Identifier: Apache-2.0
"""Customers that never stop sending, whatever happens to the service, and remember what they were promised."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import smtplib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.peers.daemon import ACCOUNT, SENDER, Daemon, open_smtp, post
from tests.peers.messages import new_id, plain_message
from tests.peers.processes import PeerFailed, wait_until
from tests.peers.sink import CaptureSink

TO = "someone@example.net"
REPLY_TIMEOUT_S = 60.0
PAUSE_S = 0.05  # between two tries while the service is away
_GONE = (OSError, smtplib.SMTPException, http.client.HTTPException, ssl.SSLError)

# A connection that is reset between connect and handshake: `ssl` of Python 3.11 raises, and leaves its socket open.
daemons_die = pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")


@dataclass
class Promises:
    """What customers were told.  Thread-safe by the interpreter's own lock: single appends only.

    acknowledged: X-Test-Id → messageId.  unanswered: sent past the dot (or as a whole request) without an answer.
    temporary, permanent: the refusals' codes.  silences: waits for an answer that ended without any.
    """

    acknowledged: dict[str, str] = field(default_factory=dict)
    unanswered: set[str] = field(default_factory=set)
    temporary: list[str] = field(default_factory=list)
    permanent: list[str] = field(default_factory=list)
    silences: list[str] = field(default_factory=list)


Mail = tuple[str, str]  # sender, recipient
MAILS: tuple[Mail, ...] = ((SENDER, TO),)


class Load:
    """Threads that send one message after the other until `stop`.

    mails: from whom to whom; a message keeps its own however often it is sent again.
    """

    def __init__(
        self, daemons: list[Daemon], key: str, *, smtp: int = 6, https: int = 2, mails: tuple[Mail, ...] = MAILS
    ) -> None:
        self.promises = Promises()
        self._mails = mails
        self._daemons = daemons
        self._key = key
        self._stop = threading.Event()
        ways = [self._by_smtp] * smtp + [self._by_https] * https
        self._threads = [
            threading.Thread(target=way, args=(number,), name=f"customer-{number}") for number, way in enumerate(ways)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Send nothing new, and wait until every customer has the answer that he insists on."""
        self._stop.set()
        for thread in self._threads:
            thread.join(REPLY_TIMEOUT_S * 3)
            assert not thread.is_alive(), "a customer waits for ever"

    def wait_for(self, more: int, *, timeout_s: float = 120) -> None:
        """Wait until so many further messages were acknowledged."""
        goal = len(self.promises.acknowledged) + more
        try:
            wait_until(
                lambda: len(self.promises.acknowledged) >= goal,
                f"{more} more acknowledged messages",
                timeout_s=timeout_s,
            )
        except PeerFailed as error:  # with what customers were told meanwhile
            raise PeerFailed(f"{error} ({self.promises.temporary[-3:]}, {self.promises.permanent[-3:]})") from None

    def wait_for_refusals(self, more: int, *, timeout_s: float = 120) -> None:
        """Wait until so many further temporary refusals were given."""
        goal = len(self.promises.temporary) + more
        wait_until(lambda: len(self.promises.temporary) >= goal, "temporary refusals", timeout_s=timeout_s)

    # ------------------------------------------------------------------ customers

    def _mail(self, test_id: str) -> Mail:
        return self._mails[int(test_id, 16) % len(self._mails)]

    def _refused(self, code: int, text: str) -> None:
        kind = self.promises.temporary if code // 100 == 4 or code == 503 else self.promises.permanent
        kind.append(f"{code} {text}")

    def _by_smtp(self, number: int) -> None:
        """Kept sessions.  A lost reply is answered as clients do: the same message again (RFC 1047)."""
        daemons = itertools.cycle(self._daemons[number % len(self._daemons) :] + self._daemons)
        again: str | None = None
        current = ""
        while again or not self._stop.is_set():
            session = None
            try:
                session = open_smtp(next(daemons), self._key, timeout_s=REPLY_TIMEOUT_S)
                while again or not self._stop.is_set():
                    test_id = current = again or new_id()
                    again = test_id if number % 2 else None
                    self._transaction(session, test_id)
                    again = None
            except smtplib.SMTPResponseException as error:
                self._refused(error.smtp_code, bytes(error.smtp_error)[:60].decode("utf-8", "replace"))  # type: ignore[arg-type]
                self._stop.wait(PAUSE_S)
            except _GONE as error:
                if "timed out" in str(error):  # smtplib makes a disconnection of it
                    self.promises.silences.append(f"smtp {current}: {error}")
                self._stop.wait(PAUSE_S)
            finally:
                if session is not None:
                    session.close()

    def _transaction(self, session: smtplib.SMTP, test_id: str) -> None:
        sender, to = self._mail(test_id)
        message = plain_message(test_id, sender=sender, to=to)
        for code, text in (session.mail(sender), session.rcpt(to)):
            if code != 250:
                raise smtplib.SMTPResponseException(code, text)
        self.promises.unanswered.add(test_id)
        code, text = session.data(message)
        self.promises.unanswered.discard(test_id)
        if code != 250:
            raise smtplib.SMTPResponseException(code, text)
        found = re.search(rb"(sent|queued) as ([0-9a-f]{16})", text)
        assert found, text
        self.promises.acknowledged[test_id] = found[2].decode()

    def _by_https(self, number: int) -> None:
        """One request each; a lost answer is asked for again with the same Idempotency-Key."""
        daemons = itertools.cycle(self._daemons[number % len(self._daemons) :] + self._daemons)
        again: str | None = None
        while again or not self._stop.is_set():
            test_id = again or new_id()
            again = test_id
            sender, to = self._mail(test_id)
            body = {"from": sender, "to": to, "subject": "x", "text": "x", "headers": {"X-Test-Id": test_id}}
            try:
                self.promises.unanswered.add(test_id)
                status, answer, _ = post(
                    next(daemons), body, self._key, headers={"Idempotency-Key": test_id}, timeout_s=REPLY_TIMEOUT_S
                )
            except TimeoutError:
                self.promises.silences.append(f"https {again}")
                continue
            except _GONE:
                self._stop.wait(PAUSE_S)
                continue
            self.promises.unanswered.discard(test_id)
            if status in {200, 202}:
                self.promises.acknowledged[test_id] = answer["data"]["messageId"]
                again = None
            elif answer.get("code") != "IDEMPOTENCY_IN_PROGRESS":
                self._refused(status, str(answer.get("code")))
                again = None
                self._stop.wait(PAUSE_S)


@contextlib.contextmanager
def running_load(daemons: list[Daemon], key: str, mails: tuple[Mail, ...] = MAILS) -> Iterator[Load]:
    """A load that certainly stops."""
    load = Load(daemons, key, mails=mails)
    load.start()
    try:
        yield load
    finally:
        load.stop()


def check_promises(daemon: Daemon, sink: CaptureSink, promises: Promises, *, grant: int) -> dict[str, Any]:
    """Once the load has stopped: nothing acknowledged is lost, what came twice was in doubt, the money adds up.

    Returns numbers worth printing.
    """
    assert promises.acknowledged, "nothing was accepted at all"
    assert not promises.permanent, promises.permanent[:5]
    assert not promises.silences, f"customers waited {REPLY_TIMEOUT_S:.0f} s in vain: {promises.silences}"
    wait_until(lambda: not promises.acknowledged.keys() - sink.ids().keys(), "everything acknowledged at the sink")
    wait_until(lambda: sum(daemon.json("queue", "stats")["by_state"].values()) == 0, "an empty queue", timeout_s=120)
    got = sink.ids()
    lost = promises.acknowledged.keys() - got.keys()
    assert not lost, f"{len(lost)} acknowledged messages are lost: {sorted(lost)[:5]}"

    by_id = {entry["id"]: entry for entry in sink.deliveries()}
    repeated = {test_id: times for test_id, times in got.items() if times > 1}
    for test_id, times in repeated.items():
        found = re.search(r"\b([0-9a-f]{16})\b", by_id[test_id]["received"] or "")
        message_id = promises.acknowledged.get(test_id) or (found[1] if found else "")
        (recipient,) = daemon.json("queue", "show", message_id)["recipients"]
        assert times <= 1 + recipient["in_doubt"], f"{message_id} came {times} times, in doubt {recipient}"

    daemon.cli("credits", "verify")
    balance = daemon.json("credits", "show", ACCOUNT)["balance"]
    # Charged once each: all that arrived, none that did not.
    assert grant - balance == len(got), f"{grant - balance} credits for {len(got)} messages"
    return {
        "acknowledged": len(promises.acknowledged),
        "delivered": sum(got.values()),
        "repeated": len(repeated),
        "unanswered but delivered": len(promises.unanswered & got.keys()),
        "temporary refusals": dict(Counter(refusal[:30] for refusal in promises.temporary)),
    }
