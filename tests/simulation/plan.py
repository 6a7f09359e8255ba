# SPDX-License-Identifier: Apache-2.0
"""What a seed means: the routes, the next hops and their tempers, the store's weather, who dies, who sends what.

Everything is drawn before the run begins or from generators of its own name, so that one actor's draws never shift
another's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import StrEnum

from hepmaild.config import DeliverySettings, InDoubt, RouteKind, RouteSettings, SenderSettings, TlsMode
from hepmaild.mail.chaos import KINDS

CHAOS_SHARE = 0.25  # of the runs
FIRST_CHAOS = 100  # the first number of a chaos key's messages
DESTINATIONS = 4
TOO_MANY = ("452 4.5.3 too many", "452 too many", "552 too many", "550 5.5.3 too many")
GONE = "gone"  # local parts that begin so are nobody's, for good


def dice(seed: int, *names: object) -> random.Random:
    """A generator of its own for this name; the same in every process."""
    return random.Random("/".join(map(str, (seed, *names))))


class Temper(StrEnum):
    """How a next hop treats us until it calms down."""

    GOOD = "good"
    MOODY = "moody"  # now and then something of everything
    VILE = "vile"  # mostly
    REFUSING = "refusing"  # connections are refused
    SILENT = "silent"  # connections are taken, and then nothing
    LATER = "later"  # 4xx for ever
    SLOW = "slow"  # every reply takes its time, the dot's up to and beyond ten minutes
    DROPPING = "dropping"  # breaks off after the dot


@dataclass(frozen=True)
class Ways:
    """What a next hop does all its life, in good temper too.

    most_rcpt: so many recipients in one transaction, the next one is told too_many; 0: any number.  most_mail: so many
    transactions on one connection, then 421.  knows_ehlo: else only HELO.
    """

    most_rcpt: int = 0
    too_many: str = ""
    most_mail: int = 0
    knows_ehlo: bool = True


@dataclass(frozen=True)
class HopPlan:
    """One next hop.  until_s: when it becomes good.  trouble: how likely each reply is bad while it is not."""

    name: str
    temper: Temper
    until_s: float
    trouble: float
    latency_s: float
    pipelining: bool
    fragments: bool  # replies arrive in small pieces
    idle_s: float  # after which it says 421 to an idle client
    ways: Ways = Ways()


class Dns(StrEnum):
    """How the name servers answer for a destination until they recover."""

    GOOD = "good"
    FAILING = "failing"  # SERVFAIL: tried again later
    SLOW = "slow"
    NULL_MX = "null mx"  # takes no mail, for good


@dataclass(frozen=True)
class DestinationPlan:
    """A domain that mail goes to directly.  hops: its hosts, in the order of preference."""

    name: str
    dns: Dns
    until_s: float
    hops: tuple[str, ...]


@dataclass(frozen=True)
class Outage:
    """The store's weather for a while.  kind: refuse, hang, slow.  slot: for one process only, else for all."""

    start_s: float
    end_s: float
    kind: str
    slot: int | None = None


@dataclass(frozen=True)
class StorePlan:
    """fail: share of units that fail before; lose: that commit and lose the answer; late: whose commit comes after the
    caller gave up; twice: run, rolled back, and run again."""

    outages: tuple[Outage, ...] = ()
    fail: float = 0.0
    lose: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    latency_s: float = 0.002

    @property
    def is_quiet(self) -> bool:
        """Whether the store never fails."""
        return not self.outages and not (self.fail or self.lose or self.late)


@dataclass(frozen=True)
class Death:
    """One life of a process ends.  how: before (its nth commit), after (it, before the answer), send (nth), time,
    drain (in order)."""

    how: str
    n: int = 0
    at_s: float = 0.0
    restart_s: float = 1.0


@dataclass(frozen=True)
class Message:
    """What a customer sends.  word: it may be repeated safely, and is when no answer came.  chaos: by such a key."""

    n: int
    at_s: float
    account: int
    sender: int
    recipients: tuple[str, ...]
    word: bool
    body_octets: int
    chaos: str = ""


@dataclass(frozen=True)
class Act:
    """What the operator does at some time.  what: retry, cancel, pause, resume, hold, release, reload."""

    at_s: float
    what: str
    pick: float  # which message, route or destination, as a share of those there are


@dataclass(frozen=True)
class Plan:
    """Everything that a run does."""

    seed: int
    processes: int
    alone: bool
    delivery: DeliverySettings
    routes: tuple[RouteSettings, ...]
    senders: tuple[SenderSettings, ...]
    hops: dict[str, HopPlan]
    store: StorePlan
    deaths: dict[int, tuple[Death, ...]]
    messages: tuple[Message, ...]
    acts: tuple[Act, ...]
    calm_s: float
    scarce: bool = False  # one account has few credits
    destinations: tuple[DestinationPlan, ...] = ()
    day_s: float = 0.0  # how long the caps' 24 hours are in this run; 0: no sender has a cap
    reaps: bool = False  # whether the reaper makes its rounds

    @property
    def is_quiet(self) -> bool:
        """Neither the store nor a process fails: bounds on time hold then."""
        return self.store.is_quiet and not any(self.deaths.values())


def make_plan(seed: int) -> Plan:
    """The plan of a seed."""
    r = dice(seed, "plan")
    alone = r.random() < 0.75
    calm_s = r.choice((60, 60, 120, 120, 300, 700, 1400))
    hops = {f"hop{i}": _hop(r, f"hop{i}", calm_s) for i in range(r.choice((1, 1, 2, 2, 3, 4)))}
    hops = {name: replace(hop, ways=_ways(seed, name)) for name, hop in hops.items()}
    routes = _routes(r, list(hops))
    processes = 1 if alone else 2
    storms = r.random() < 0.45
    deadly = r.random() < 0.45
    day_s = r.choice((300.0, 600.0)) if r.random() < 0.1 else 0.0
    senders = tuple(
        SenderSettings(
            address=f"s{i}@ours.example",
            route=route.name,
            default=i == 0,
            daily_cap=r.choice((1, 2, 3, 0)) if day_s else 0,
        )
        for i, route in enumerate(routes)
    )
    return Plan(
        seed=seed,
        processes=processes,
        alone=alone,
        delivery=_delivery(r, day_s),
        routes=routes,
        senders=senders,
        hops=hops,
        store=_store(r, calm_s, alone=alone) if storms else StorePlan(latency_s=r.choice((0.0, 0.001, 0.01))),
        deaths={n: _deaths(r, calm_s) if deadly else () for n in range(processes)},
        messages=_messages(r, calm_s, len(senders)) + _chaos(seed, calm_s, len(senders)),
        acts=_acts(r, calm_s),
        calm_s=calm_s,
        scarce=r.random() < 0.1,
        destinations=_destinations(r, list(hops), calm_s),
        day_s=day_s,
        reaps=bool(day_s) or r.random() < 0.03,
    )


def _routes(r: random.Random, hops: list[str]) -> tuple[RouteSettings, ...]:
    """One for each hop; some are of kind `mx`, and go wherever their destinations are."""
    routes = []
    for i, hop in enumerate(hops):
        direct = r.random() < 0.35
        others = tuple(f"{name}:25" for name in hops if name != hop)
        routes.append(
            RouteSettings(
                name=f"r{i}",
                kind=RouteKind.MX if direct else RouteKind.SMTP,
                host="" if direct else hop,
                fallback_hosts=others[:1] if not direct and r.random() < 0.15 else (),
                tls=TlsMode.NONE,
                connections=r.choice((1, 2, 5, 20)),
                messages_per_connection=r.choice((1, 2, 5, 100)),
                messages_per_second=r.choice((0, 0, 0, 0, 0.5, 3)),
            )
        )
    return tuple(routes)


def _destinations(r: random.Random, hops: list[str], calm_s: float) -> tuple[DestinationPlan, ...]:
    return tuple(
        DestinationPlan(
            name=f"d{i}.example",
            dns=r.choices(list(Dns), weights=(70, 12, 12, 6))[0],
            until_s=calm_s * r.uniform(0.3, 1),
            hops=tuple(r.sample(hops, min(len(hops), r.choice((1, 1, 2))))),
        )
        for i in range(DESTINATIONS)
    )


def _hop(r: random.Random, name: str, calm_s: float) -> HopPlan:
    temper = r.choices(list(Temper), weights=(20, 30, 12, 7, 7, 7, 7, 10))[0]
    for_ever = temper in {Temper.REFUSING, Temper.SILENT, Temper.LATER} and r.random() < 0.25
    return HopPlan(
        name=name,
        temper=temper,
        until_s=float("inf") if for_ever else calm_s * r.uniform(0.3, 1),
        trouble=r.choice((0.02, 0.05, 0.1, 0.25)) if temper is Temper.MOODY else 0.5,
        latency_s=r.choice((0.0, 0.001, 0.05, 0.3)),
        pipelining=r.random() < 0.7,
        fragments=r.random() < 0.2,
        idle_s=r.choice((5, 20, 300)),
    )


def _ways(seed: int, hop: str) -> Ways:
    """Most hops have none; by dice of their own."""
    r = dice(seed, "ways", hop)
    return Ways(
        most_rcpt=r.choice((1, 1, 2)) if r.random() < 0.15 else 0,
        too_many=r.choice(TOO_MANY),
        most_mail=r.choice((1, 2)) if r.random() < 0.15 else 0,
        knows_ehlo=r.random() < 0.9,
    )


def _store(r: random.Random, calm_s: float, *, alone: bool) -> StorePlan:
    kind = r.randrange(4)
    outages: list[Outage] = []
    if kind in {0, 3}:
        for _ in range(r.randint(1, 3)):
            start = r.uniform(0, calm_s)
            length = r.choice((0.5, 3, 15, 60, 200))
            slot = None if alone else r.choice((None, 0, 1))
            outages.append(Outage(start, min(start + length, calm_s), r.choice(("refuse", "hang", "slow")), slot))
    if not alone and r.random() < 0.5:  # a process that is cut off for longer than its lease
        start = r.uniform(0, calm_s)
        outages.append(Outage(start, start + r.choice((100, 400)), r.choice(("refuse", "hang")), r.choice((0, 1))))
    noisy = kind in {1, 3}
    return StorePlan(
        outages=tuple(outages),
        fail=r.choice((0, 0.02, 0.1)) if noisy else 0.0,
        lose=r.choice((0, 0.02, 0.1)) if noisy else 0.0,
        late=r.choice((0, 0.02, 0.05)) if kind >= 2 else 0.0,
        twice=r.choice((0, 0.1)),
        latency_s=r.choice((0.001, 0.02, 0.5)),
    )


def _deaths(r: random.Random, calm_s: float) -> tuple[Death, ...]:
    deaths = []
    for _ in range(r.choice((1, 1, 2, 3, 5))):
        how = r.choices(("before", "after", "send", "time", "drain"), weights=(3, 5, 4, 2, 2))[0]
        n = min(int(r.expovariate(1 / 8)) + 1, 60)
        deaths.append(Death(how, n, r.uniform(0.1, calm_s), r.choice((0.1, 1, 5, 30))))
    return tuple(deaths)


def _messages(r: random.Random, calm_s: float, senders: int) -> tuple[Message, ...]:
    count = r.choice((1, 1, 2, 2, 3, 3, 4, 5, 8, 16))
    bursts = [r.uniform(0, calm_s * 0.7) for _ in range(r.randint(1, 3))]
    found = []
    for n in range(count):
        at_s = r.choice(bursts) + r.choice((0, 0, r.uniform(0, 1), r.uniform(0, 30)))
        recipients = tuple(_address(r, n, k) for k in range(r.choice((1, 1, 1, 1, 2, 2, 3, 5))))
        size = r.choices((20, 3000, 70_000), weights=(85, 10, 5))[0]
        found.append(Message(n, at_s, r.randrange(2), r.randrange(senders), recipients, r.random() < 0.5, size))
    return tuple(sorted(found, key=lambda m: m.at_s))


def _chaos(seed: int, calm_s: float, senders: int) -> tuple[Message, ...]:
    """Messages of chaos keys among the others, in some runs; by dice of their own."""
    r = dice(seed, "chaos")
    if r.random() >= CHAOS_SHARE:
        return ()
    found = []
    for n in range(FIRST_CHAOS, FIRST_CHAOS + r.randint(1, 4)):
        recipients = tuple(_address(r, n, k) for k in range(r.choice((1, 1, 2, 3))))
        at_s, sender = r.uniform(0, calm_s * 0.7), r.randrange(senders)
        found.append(
            Message(n, at_s, r.randrange(2), sender, recipients, r.random() < 0.5, 20, r.choice(sorted(KINDS)))
        )
    return tuple(found)


def _address(r: random.Random, n: int, k: int) -> str:
    """Mostly of its own; now and then one of the few that nobody has."""
    local = f"{GONE}{r.randrange(2)}" if r.random() < 0.04 else f"u{k}.m{n}"
    return f"{local}@d{r.randrange(DESTINATIONS)}.example"


def _acts(r: random.Random, calm_s: float) -> tuple[Act, ...]:
    if r.random() < 0.6:
        return ()
    whats = ("retry", "cancel", "pause", "resume", "hold", "release", "reload")
    acts = [Act(r.uniform(0, calm_s), r.choice(whats), r.random()) for _ in range(r.randint(1, 6))]
    return tuple(sorted(acts, key=lambda act: act.at_s))


def _delivery(r: random.Random, day_s: float) -> DeliverySettings:
    return DeliverySettings(
        workers=r.choice((1, 2, 4, 16)),
        relay_wait_s=r.choice((0, 5, 10)),
        retry_after_s=r.choice(((5, 20, 60), (30, 120, 300), (60, 300, 900))),
        expire_after_s=2400 if day_s else r.choice((900, 900, 900, 1800, 3600)),
        # An attempt is shorter than the day, however short that is.
        final_dot_timeout_s=60 if day_s else 600,
        attempt_timeout_s=90 if day_s else 900,
        lease_s=r.choice((60, 200, 300)),
        in_doubt=r.choice((InDoubt.RETRY, InDoubt.RETRY, InDoubt.HOLD)),
        body_days=r.choice((0, 0, 1)),
        suppress_after=r.choice((0, 1, 2)),
        suppress_days=0.005,
    )
