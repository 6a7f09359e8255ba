# SPDX-License-Identifier: Apache-2.0
"""What members of a unit count on: what is answered as done outlives a power cut, and nothing else waits for it."""

from __future__ import annotations

import pytest

from hepmaild.delivery.job import Result
from hepmaild.mail import chaos
from hepmaild.mail.submission import KeyIdentity
from hepmaild.storage.unit import LIGHT_MEMBERS, LIGHT_OCTETS, Answers, CallAndAccept, Mark, Member, judge
from hepmaild.storage.writer import Sync
from tests.storage.books import Books, Clock

IDENTITY = KeyIdentity("key-1", "app", "", "account-1", "", "standard", 120)
BOOKS = Books(None, Clock(), identity=IDENTITY)  # type: ignore[arg-type]  # no store is asked
MESSAGE = BOOKS.accept("a@x.test", "b@x.test")
SANDBOX = BOOKS.accept(route=chaos.route_of(next(iter(chaos.KINDS))))

MEMBERS: dict[str, tuple[Member, Sync]] = {
    "a call": (BOOKS.call(), Sync.WITH_NEXT),
    "a message": (MESSAGE, Sync.NOW),
    "a call with its message": (CallAndAccept(BOOKS.call(), MESSAGE), Sync.NOW),
    "a mark": (Mark(MESSAGE.message_id, "", 1), Sync.NOW),
    "delivered": (BOOKS.report(MESSAGE, Result.DELIVERED, Result.DELIVERED), Sync.SOON),
    "to be tried again": (BOOKS.report(MESSAGE, Result.DEFERRED, Result.IN_DOUBT), Sync.SOON),
    "refunded": (BOOKS.report(MESSAGE, Result.DELIVERED, Result.FAILED), Sync.NOW),
    "refused in the sandbox": (BOOKS.report(SANDBOX, Result.FAILED), Sync.SOON),
    "an answer": (Answers(()), Sync.NOW),
    "a late answer": (Answers((), is_awaited=False), Sync.SOON),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_synced_when(name: str) -> None:
    member, sync = MEMBERS[name]
    assert judge([member]).sync is sync
    for other, its in MEMBERS.values():
        assert judge([member, other]).sync is max(sync, its)


def test_what_is_light() -> None:
    half = BOOKS.accept(content=b"x" * (LIGHT_OCTETS // 2))
    assert judge([half, CallAndAccept(BOOKS.call(), half)]).is_light
    assert not judge([half, CallAndAccept(BOOKS.call(), half), MESSAGE]).is_light
    assert judge([BOOKS.accept(content=None), half, half]).is_light
    assert judge([BOOKS.call()] * LIGHT_MEMBERS).is_light
    assert not judge([BOOKS.call()] * (LIGHT_MEMBERS + 1)).is_light
