# SPDX-License-Identifier: Apache-2.0
"""An attempt under way, as its parts share it (Trio)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from hepmaild.delivery.connections import Connection
from hepmaild.delivery.job import Job
from hepmaild.delivery.lane import Lane, Place, Standing
from hepmaild.delivery.outcome import Verdict
from hepmaild.delivery.route import Route
from hepmaild.events import Transcript
from hepmaild.timers import Bounds

if TYPE_CHECKING:
    from hepmaild.delivery.track import Track


class End(Enum):
    """How an attempt ended, as far as the place is concerned."""

    WELL = auto()  # it answered properly, whatever the answer
    TROUBLE = auto()  # it could not be reached, or broke off
    APART = auto()  # the trouble is the destination's own (its DNS, its TLS policy), not that of the place it shares
    NEITHER = auto()  # nothing was learned about it
    PUT_BACK = auto()  # no attempt was made: the job waits for its turn at the place that it turned out to go to
    STORE_DOWN = auto()


class Joined(Enum):
    """What the pool says to a job that turned out to go to another place."""

    GO = auto()
    WAIT = auto()  # no room there now
    DEFER = auto()  # nor any to wait in


class LeaseLost(Exception):
    """The store gave the job to somebody else: nothing more may be done with it."""


class ContentGone(Exception):
    """The store has no content of the job's message."""


@dataclass(slots=True, eq=False)
class Flight:
    """leased, began: when the lease and the attempt began (Trio's clock); lease_ends: nothing may be done after it.

    bounds: of what is waited for now, so that a drain can cut it short.  chosen: which recipients take
    part, None: all.  is_reported: the store has answered the report, which ends the lease; is_refused: by saying that
    the lease was lost.  is_given_back: no attempt was made, since somebody paused what it was for.  put_off_until_us:
    nor was one, and the job is due again then.

    route: all that the attempt goes by (hosts, TLS, credentials) is this one's.  The track's may be another by now, and
    then what belongs together would come from two: an old password would go to a new host.
    """

    job: Job
    track: Track
    lane: Lane
    place: Place
    standing: Standing
    route: Route
    leased: float
    began: float
    started_at_us: int
    lease_ends: float
    transcript: Transcript = field(default_factory=Transcript)
    bounds: Bounds | None = None
    connection: Connection | None = None
    chosen: tuple[int, ...] | None = None
    verdicts: tuple[Verdict, ...] | None = None
    is_forsaken: bool = False
    is_reported: bool = False
    is_refused: bool = False
    is_given_back: bool = False
    is_stalled: bool = False
    put_off_until_us: int | None = None

    def is_late(self, now: float) -> bool:
        """Whether it is not to begin: it stood ready too long to be sure of its lease, or the next claim finds it
        expired."""
        stood_s, lease_s = now - self.leased, self.lease_ends - self.leased
        return stood_s > lease_s / 2 or self.job.expires_at_us <= self.started_at_us

    @property
    def is_current(self) -> bool:
        """Whether the track still has the flight's route: otherwise nothing it keeps fits, and it learns nothing."""
        return self.route is self.track.route
