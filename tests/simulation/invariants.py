# SPDX-License-Identifier: Apache-2.0
"""What must hold after every run, whatever happened in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from hepmaild.config import InDoubt, RouteKind, RouteSettings
from hepmaild.errors import Refusal
from hepmaild.mail.chaos import is_chaos, kind_of
from hepmaild.mail.submission import Receipt
from hepmaild.storage import credits as money
from hepmaild.storage.schema import NEVER_US
from tests.simulation.database import GRANTED
from tests.simulation.plan import GONE, Dns, Plan, Temper
from tests.simulation.trace import EPOCH_US, Violation
from tests.simulation.world import World

# Recipients of what is to leave, as a beginning of a statement.
ORDINARY = "FROM recipient r JOIN message m ON m.id = r.message_id WHERE m.route NOT LIKE 'chaos:%'"
WAITING = {"queued", "deferred", "capped", "held"}
FINAL = {"sent", "failed", "expired", "cancelled"}
PAUSE_GRACE_S = 10.0  # what is past the mark goes on; the octets of one content are on their way for no longer
PAUSES_S = 200.0  # of a place after its troubles, with what they add to others
PROMPT_S = 45.0  # from the commit to a healthy next hop, when nothing else is wrong


def check(world: World) -> None:
    """Raise `Violation` with every fault there is."""
    faults = [fault for look in LOOKS for fault in look(world)]
    if faults:
        raise Violation("\n".join(faults))


def rows(world: World, sql: str, *args: Any) -> list[dict[str, Any]]:
    """Rows of the run's database."""
    cursor = world.database.raw.execute(sql, args)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def log_is_clean(world: World) -> Iterator[str]:
    """Nothing was logged at ERROR."""
    for error in world.trace.errors:
        yield f"logged at ERROR: {error}"


def everybody_is_somewhere(world: World) -> Iterator[str]:
    """Every accepted recipient is final, or waits with a due time behind a queue row."""
    queued = {(q["message_id"], q["destination"]) for q in rows(world, "SELECT * FROM queue")}
    for r in rows(world, "SELECT * FROM recipient ORDER BY message_id, n"):
        who = f"{r['message_id']} {r['address']} ({r['state']})"
        if r["state"] in WAITING:
            if r["due_at_us"] is None:
                yield f"{who} waits without a due time"
            if (r["message_id"], r["destination"]) not in queued:
                yield f"{who} waits, but nothing will ever look at it"
        elif r["state"] not in FINAL:
            yield f"{who} is in no state that exists"
        elif r["due_at_us"] is not None:
            yield f"{who} is final and due"


def all_has_settled(world: World) -> Iterator[str]:
    """Once all is calm, nothing waits past its expiry, and no lease is left."""
    for q in rows(world, "SELECT q.*, m.expires_at_us FROM queue q LEFT JOIN message m ON m.id = q.message_id"):
        who = f"{q['message_id']} to {q['destination']!r}"
        if q["expires_at_us"] is None:
            yield f"{who}: a queue row without its message"
        elif q["owner"] is not None:
            yield f"{who}: an orphaned lease of {q['owner']} (token {q['token']}, marked {q['marked']})"
        else:
            yield f"{who} is stuck: due at {_s(q['due_at_us'])}, expires at {_s(q['expires_at_us'])}"


def messages_add_up(world: World) -> Iterator[str]:
    """A message's own figures are those of its recipients; the content goes when it is final."""
    kept = {row["message_id"] for row in rows(world, "SELECT DISTINCT message_id FROM body")}
    for m in rows(world, "SELECT * FROM message ORDER BY id"):
        states = Counter(r["state"] for r in rows(world, "SELECT state FROM recipient WHERE message_id = ?", m["id"]))
        waiting = sum(states[state] for state in WAITING)
        if m["waiting"] != waiting:
            yield f"message {m['id']} says that {m['waiting']} wait, but {waiting} do: {dict(states)}"
        if sum(states.values()) != m["recipients"]:
            yield f"message {m['id']} has {sum(states.values())} recipients, not {m['recipients']}"
        if not waiting and m["finished_at_us"] is None:
            yield f"message {m['id']} is final, and was never finished"
        failed = states["failed"] + states["expired"]
        if not waiting and m["failed"] != failed:
            yield f"message {m['id']} says that {m['failed']} failed, but {failed} did: {dict(states)}"
        if waiting and m["id"] not in kept:
            yield f"message {m['id']} waits, but its content is gone"
        if not waiting and not m["body_until_us"] and m["id"] in kept:
            yield f"message {m['id']} is final, but its content was left behind"


def nothing_twice_in_silence(world: World) -> Iterator[str]:
    """More deliveries than one only with as many doubts; sent means delivered; not sent means not, or in doubt."""
    ledger = world.ledger
    known = {row["id"] for row in rows(world, "SELECT id FROM message")}
    for message_id, address in sorted(ledger.times):
        if message_id not in known:
            yield f"{message_id} {address} was delivered, but is in no table"
    for r in rows(world, f"SELECT r.* {ORDINARY} ORDER BY r.message_id, n"):
        times = ledger.times[r["message_id"], r["address"]]
        who = f"{r['message_id']} {r['address']} ({r['state']}, {r['doubts']} doubts)"
        if r["address"] in ledger.lied:
            continue
        if r["state"] == "sent" and not times:
            yield f"{who} was never delivered"
        if times > r["doubts"] + (r["state"] == "sent"):
            yield f"{who} was delivered {times} times"
        if world.plan.is_quiet and r["doubts"] > ledger.open_dots[r["address"]]:
            yield f"{who}: more doubts than contents ({ledger.open_dots[r['address']]})"


def clear_words_leave_no_doubt(world: World) -> Iterator[str]:
    """Where nothing but a refusal, a silence before the content or a yes was ever said, nothing is in doubt."""
    clear = {Temper.GOOD, Temper.REFUSING, Temper.LATER, Temper.SILENT}
    if not world.plan.is_quiet or any(hop.temper not in clear for hop in world.plan.hops.values()):
        return
    for r in rows(world, f"SELECT r.* {ORDINARY} AND doubts > 0"):
        yield f"{r['message_id']} {r['address']} has {r['doubts']} doubts that nobody gave reason for"


def money_adds_up(world: World) -> Iterator[str]:
    """Each debit once for each recipient, each refund once for each that failed; the chain holds."""
    for n in range(len(GRANTED)):
        account = f"account-{n}"
        fault = world.database.read(money.verify, (account,))
        if fault is not None:
            yield f"the ledger of {account} does not hold: {fault}"
    sums: dict[tuple[str, str], int] = {}
    for row in rows(world, "SELECT message_id, reason, sum(amount) AS total FROM ledger GROUP BY 1, 2"):
        sums[row["message_id"], row["reason"]] = row["total"]
    accepted = set()
    for m in rows(world, "SELECT * FROM message ORDER BY id"):
        accepted.add(m["id"])
        lost = rows(
            world,
            "SELECT count(*) AS n, sum(attempts = 0 AND last_reply LIKE '%suppressed until%') AS spared FROM recipient"
            " WHERE message_id = ? AND state IN ('failed', 'expired', 'cancelled')",
            m["id"],
        )[0]
        spared = lost["spared"] or 0
        charged = -sums.get((m["id"], "debit"), 0)
        if is_chaos(m["route"]):
            if (m["id"], "debit") in sums or (m["id"], "refund") in sums:
                yield f"{m['id']}: a chaos key's, and something was booked"
            continue
        if charged != m["recipients"] - spared:
            yield f"{m['id']}: charged {charged} for {m['recipients']} recipients, {spared} of them suppressed"
        refunded = sums.get((m["id"], "refund"), 0)
        if refunded != lost["n"] - spared:
            yield f"{m['id']}: refunded {refunded} for {lost['n'] - spared} that were not delivered"
    for (message_id, reason), total in sums.items():
        if reason != "grant" and message_id not in accepted:
            yield f"{reason} of {total} for {message_id}, which does not exist"


def customers_were_told_the_truth(world: World) -> Iterator[str]:
    """A receipt names a message that exists; a word makes one message at most.

    A message of which nothing was taken in the first attempt does not count: its call ends in an error, behind which
    the word is free again, also when the process dies before the caller hears of it.
    """
    lasting = rows(
        world,
        "SELECT DISTINCT m.id, m.header_message_id FROM message m JOIN recipient r ON r.message_id = m.id"
        " WHERE r.state <> 'failed' OR r.attempts > 1",
    )
    header_ids = Counter(row["header_message_id"] for row in lasting)
    known = {row["id"]: row for row in rows(world, "SELECT * FROM message")}
    for message in world.plan.messages:
        told = world.told.get(message.n)
        if isinstance(told, Receipt) and told.message_id not in known:
            yield f"customer {message.n} has a receipt for {told.message_id}, which does not exist"
        if message.n not in world.told:
            yield f"customer {message.n} never got to the end of its tries"
        accepted = header_ids[f"<m{message.n}@customer.example>"]
        if message.word and accepted > 1 and not isinstance(told, Refusal):
            yield f"customer {message.n} used a word, and was accepted {accepted} times"


def nobody_starves(world: World) -> Iterator[str]:
    """With a store that works, a healthy next hop gets its mail soon, whatever the others do."""
    plan = world.plan
    if not plan.is_quiet or plan.acts or plan.day_s:
        return
    routes = {route.name: route for route in plan.routes if not route.messages_per_second}
    first = {(k.message_id, k.address): k.at_s for k in reversed(world.ledger.kept)}
    sql = "SELECT r.*, m.route, m.accepted_at_us FROM recipient r JOIN message m ON m.id = r.message_id"
    for r in rows(world, sql):
        route = routes.get(r["route"])
        if route is None or not _is_healthy(plan, route, r["destination"]) or r["address"].startswith(GONE):
            continue
        accepted_s = (r["accepted_at_us"] - EPOCH_US) / 1e6
        at_s = first.get((r["message_id"], r["address"]))
        if at_s is None or at_s - accepted_s > PROMPT_S:
            yield f"{r['message_id']} {r['address']} starved: accepted at {accepted_s:.1f} s, delivered at {at_s} s"


def _is_healthy(plan: Plan, route: RouteSettings, destination: str) -> bool:
    """Whether everything on the way there is well all the time."""
    if route.kind is RouteKind.SMTP:
        return plan.hops[route.host].temper is Temper.GOOD
    found = next(d for d in plan.destinations if d.name == destination)
    return found.dns is Dns.GOOD and plan.hops[found.hops[0]].temper is Temper.GOOD


def nobody_expires_in_fair_weather(world: World) -> Iterator[str]:
    """Once all is calm, what still has time for another attempt is delivered, not left until it expires."""
    plan = world.plan
    delivery = plan.delivery
    if plan.day_s:
        return  # see `caps_let_go`
    retry_s = 1.1 * delivery.retry_after_s[-1]
    need_s = plan.calm_s + retry_s + delivery.attempt_timeout_s + 1.25 * delivery.lease_s + PAUSES_S
    held = {row["message_id"] for row in rows(world, "SELECT message_id FROM event WHERE kind = 'held'")}
    sql = f"SELECT r.*, m.route, m.expires_at_us {ORDINARY}"
    routes = {route.name: route for route in plan.routes}
    for r in rows(world, sql + " AND r.state = 'expired'"):
        if r["message_id"] in held or (r["doubts"] and delivery.in_doubt is InDoubt.HOLD):
            continue
        if (r["expires_at_us"] - EPOCH_US) / 1e6 > need_s and _calms_down(plan, routes[r["route"]], r["destination"]):
            yield f"{r['message_id']} {r['address']} expired, though all was calm since {plan.calm_s} s"


def _calms_down(plan: Plan, route: RouteSettings, destination: str) -> bool:
    """Whether every next hop on the way is well in the end."""
    hops: tuple[str, ...] = (route.host,)
    if route.kind is RouteKind.MX:
        hops = next(d for d in plan.destinations if d.name == destination).hops
    return all(plan.hops[hop].until_s <= plan.calm_s for hop in hops)


def caps_hold(world: World) -> Iterator[str]:
    """In no window of the (shortened) day do more messages of a sender leave than its cap."""
    plan = world.plan
    for sender in plan.senders:
        if not sender.daily_cap:
            continue
        kept = sorted((k for k in world.ledger.kept if k.sender == sender.address), key=lambda k: k.at_s)
        for n, k in enumerate(kept):
            inside = {o.message_id for o in kept[n:] if o.at_s < k.at_s + plan.day_s - 0.001}
            if len(inside) > sender.daily_cap:
                who = f"{sender.address} (cap {sender.daily_cap} in {plan.day_s:.0f} s)"
                yield f"{len(inside)} messages of {who} left since {k.at_s:.1f} s: {sorted(inside)}"
                break


def caps_let_go(world: World) -> Iterator[str]:
    """A line behind a cap moves: what has room within its life leaves, if its next hop takes it."""
    plan = world.plan
    if not plan.is_quiet or plan.acts or not plan.day_s:
        return
    days = int(plan.delivery.expire_after_s // (plan.day_s + 60))
    for sender, route in zip(plan.senders, plan.routes, strict=True):
        mine = rows(world, "SELECT id FROM message WHERE sender = ? AND route NOT LIKE 'chaos:%'", sender.address)
        if sender.daily_cap and len(mine) > sender.daily_cap * days:
            continue
        for r in rows(world, f"SELECT r.* {ORDINARY} AND m.sender = ? AND r.state = 'expired'", sender.address):
            if _is_healthy(plan, route, r["destination"]):
                yield f"{r['message_id']} {r['address']} expired behind a cap that had room"


def chaos_stays_here(world: World) -> Iterator[str]:
    """What a chaos key sent came to no next hop, and ends as its sandbox would have it."""
    ends = {"5xx": {"failed"}, "4xx": {"expired"}, "drop-after-dot": {"expired"}, "slow-dot": {"sent", "expired"}}
    sql = "SELECT r.*, m.route FROM recipient r JOIN message m ON m.id = r.message_id WHERE m.route LIKE 'chaos:%'"
    for r in rows(world, sql):
        who = f"{r['message_id']} {r['address']} ({r['state']}) of a chaos key"
        if world.ledger.times[r["message_id"], r["address"]]:
            yield f"{who} left"
        allowed = ends.get(kind_of(r["route"]), {"sent", "expired"})
        if r["state"] not in WAITING | allowed | {"cancelled"}:
            yield f"{who} should be {allowed}"


def the_suppressed_are_left_alone(world: World) -> Iterator[str]:
    """What was suppressed when a message was accepted is not asked for on its behalf."""
    for r in rows(world, "SELECT * FROM recipient WHERE last_reply LIKE '%suppressed until%'"):
        if r["state"] != "failed" or world.ledger.times[r["message_id"], r["address"]]:
            yield f"{r['message_id']} {r['address']} was suppressed, and went all the same"


def pauses_hold(world: World) -> Iterator[str]:
    """On what is paused nothing new is begun."""
    if not world.plan.is_quiet:
        return
    routes = {m["id"]: m["route"] for m in rows(world, "SELECT id, route FROM message")}
    for route, destination, since_s, until_s in world.pauses:
        for k in world.ledger.kept:
            here = routes.get(k.message_id) == route and (not destination or k.address.endswith("@" + destination))
            if here and since_s + PAUSE_GRACE_S < k.at_s < until_s:
                yield f"{k.message_id} {k.address} left at {k.at_s:.1f} s, though paused at {since_s:.1f} s"


def nobody_runs_in_circles(world: World) -> Iterator[str]:
    """Calls of the store are in proportion to what happened."""
    hours = world.settled_s / 3600
    attempts = rows(world, "SELECT count(*) AS n FROM event")[0]["n"]
    lives = 1 + sum(len(deaths) for deaths in world.plan.deaths.values())
    an_hour = 2400 if world.plan.reaps else 900  # the reaper comes once a minute, with some twenty units
    allowed = 200 + 100 * lives + an_hour * hours * world.plan.processes + 30 * attempts + 15 * world.weather.mishaps
    if world.units + world.reads > allowed:
        yield f"{world.units} units and {world.reads} reads in {hours:.2f} h with {attempts} events: a busy loop"


def _s(us: int) -> str:
    return "never" if us >= NEVER_US else f"{(us - EPOCH_US) / 1e6:.1f} s"


LOOKS = (
    log_is_clean,
    everybody_is_somewhere,
    all_has_settled,
    messages_add_up,
    nothing_twice_in_silence,
    clear_words_leave_no_doubt,
    money_adds_up,
    customers_were_told_the_truth,
    nobody_starves,
    nobody_expires_in_fair_weather,
    caps_hold,
    caps_let_go,
    chaos_stays_here,
    the_suppressed_are_left_alone,
    pauses_hold,
    nobody_runs_in_circles,
)
