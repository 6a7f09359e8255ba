# SPDX-License-Identifier: Apache-2.0
"""Who may start something next, where places are held back."""

from __future__ import annotations

import pytest

from hepmaild.config import RouteKind, TlsMode
from hepmaild.delivery.attempt import is_trouble
from hepmaild.delivery.client import Failed, Stage
from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.delivery.lane import (
    AVOID_LONGEST_S,
    FIRST_PAUSE_S,
    LONGEST_PAUSE_S,
    MAX_HOSTS_NOTED,
    PAUSES_OF_ONE_AWAY,
    Place,
    Standing,
)
from hepmaild.delivery.route import Host, Route
from hepmaild.delivery.track import Track
from hepmaild.mail.reply import Reply


def stand(track: Track, destination: str) -> Place:
    """A job for this destination stands ready, and its place is in line."""
    job = Job(
        destination, "account", "mx", "s@x.example", (JobRecipient(0, f"a@{destination}"),), 1, 5, False, 0, 1, None
    )
    place = track.push(job, 0.0)
    if not place.listed:
        place.listed = True
        track.line.append(place)
    return place


def crowd() -> tuple[Track, list[Place], Standing]:
    """A track and its three places: at the first an attempt runs as one of that standing, the others are held back."""
    track = Track(Route("mx", RouteKind.MX, connections=2), cap=2)
    first, second, third = (stand(track, name) for name in ("one.example", "two.example", "three.example"))
    assert track.next_place(0.0) is first
    standing = track.begin(first, track.pop(first)[0])
    assert track.next_place(0.0) is None  # three quarters of two workers are one
    return track, [first, second, third], standing


def test_room_that_a_freed_place_cannot_use_goes_to_the_next_one() -> None:
    """Found by the simulator: of two that were held back the first could not start, and the other waited for ever."""
    track, (first, second, third), standing = crowd()
    second.paused_until = 60.0
    track.end(first, standing, stalled=False)
    assert track.next_place(0.0) is third
    assert not second.listed  # whoever ends its pause lists it


def test_room_that_a_proven_place_no_longer_takes_goes_to_the_next_one() -> None:
    """Found by the simulator: the first of those held back was given the room, and was proven before its turn came."""
    track, (first, second, third), standing = crowd()
    track.end(first, standing, stalled=False)  # the second one has the room
    second.went_well()
    assert track.next_place(0.0) is second
    track.begin(second, track.pop(second)[0])
    assert track.next_place(0.0) is third


def place_of(cap: int, longest_pause_s: float = LONGEST_PAUSE_S) -> Place:
    return Place(Track(Route("up", RouteKind.SMTP), cap=cap), "", cap, cap, longest_pause_s)


def test_room_is_halved_by_trouble_and_grows_by_one() -> None:
    place = place_of(10)
    assert not place.had_trouble(0.0)
    assert place.allowed == 5
    place.went_well()
    assert place.allowed == 6
    assert [place.had_trouble(0.0) for _ in range(3)] == [False, False, True]  # counted anew since it went well
    assert place.allowed == 1
    for _ in range(20):
        place.went_well()
    assert place.allowed == 10
    place.limit(3)
    assert place.allowed == 3
    place.went_well()
    assert place.allowed == 3


def test_pauses_double_up_to_the_longest_and_late_trouble_does_not_make_them_longer() -> None:
    place, now, pauses = place_of(10), 100.0, []
    while len(pauses) < 12:
        if place.had_trouble(now):
            pauses.append(place.paused_until - now)
            assert place.is_away is (len(pauses) >= PAUSES_OF_ONE_AWAY)
            assert not place.had_trouble(place.paused_until - 0.1)
            assert place.paused_until - now == pauses[-1]
            now = place.paused_until
    assert pauses == [1, 2, 4, 8, 16, *[LONGEST_PAUSE_S] * 7]
    place.went_well()
    assert not place.is_away
    assert [place.had_trouble(now) for _ in range(3)] == [False, False, True]
    assert place.paused_until - now == FIRST_PAUSE_S


def host(name: str) -> Host:
    return Host(name, 25, TlsMode.NONE)


def test_a_host_that_fails_again_is_avoided_for_longer() -> None:
    place, bad, good = place_of(10), host("bad"), host("good")
    now, spans = 100.0, []
    for _ in range(7):
        place.host_failed(bad, now)
        span_s = next(s for s in range(1, 1000) if place.order([bad, good], now + s)[0] is bad)
        assert place.order([bad, good], now + span_s) == [good, bad]  # one tries it, the others do not yet
        spans.append(span_s)
        now += 10_000
    assert spans == [30, 60, 120, 240, 480, AVOID_LONGEST_S, AVOID_LONGEST_S]
    place.host_works(bad)
    assert place.order([bad, good], now) == [bad, good]
    for n in range(MAX_HOSTS_NOTED):  # the first of those noted is forgotten, and no other
        place.host_failed(host(f"h{n}"), now)
    place.host_failed(bad, now)
    place.host_failed(bad, now)
    assert place.order([host("h0"), host("h1"), bad], now + 1)[0].name == "h0"
    assert place.order([host("h1"), bad, good], now + 1)[0] is good


NO = Reply(554, "5.7.1", "no")


@pytest.mark.parametrize(
    ("stage", "reply", "expected"),
    [
        (Stage.CONNECT, None, True),
        (Stage.GREETING, NO, True),
        (Stage.AUTH, NO, True),
        (Stage.MAIL, NO, True),
        (Stage.CONTENT, None, True),  # it broke off
        (Stage.CONTENT, NO, False),  # it does not want this message
        (Stage.DOT, None, True),
        (Stage.LOCAL, None, False),
        (Stage.LOCAL, NO, False),
    ],
)
def test_what_says_something_about_the_next_hop(stage: Stage, reply: Reply | None, expected: bool) -> None:
    assert is_trouble(Failed(stage, reply, "why")) is expected
