# SPDX-License-Identifier: Apache-2.0
"""Who may start something next, where places are held back."""

from __future__ import annotations

from hepmaild.config import RouteKind
from hepmaild.delivery.job import Job, JobRecipient
from hepmaild.delivery.lane import Place, Standing
from hepmaild.delivery.route import Route
from hepmaild.delivery.track import Track


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
