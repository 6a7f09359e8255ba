# SPDX-License-Identifier: Apache-2.0
"""What is counted: plain numbers, few labels, and a page that a parser of Prometheus' format reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from hepmaild import metrics, metrics_docs
from hepmaild.delivery.job import Attempt, Job, JobRecipient, Outcome, Result
from hepmaild.errors import ErrorKind, Refusal
from hepmaild.events import Step, Who
from hepmaild.mail.submission import Door, Receipt, Status
from hepmaild.metrics import MAX_LABEL_SETS, Counter, Histogram, Kind, Meter, Metrics, dot_wait_us
from hepmaild.metrics_page import _Copy, _counter, _histogram

ROOT = Path(__file__).parents[2]
FAMILIES = [family for families in metrics.SECTIONS.values() for family in families]


def make_attempt(*results: Result, steps: Sequence[Step] = (), route: str = "up") -> Attempt:
    recipients = tuple(JobRecipient(n, f"r{n}@example.net") for n in range(len(results)))
    job = Job("0" * 16, "account", route, "", recipients, 1, 10, False, 1_000_000, 9_000_000)
    outcomes = tuple(Outcome(n, result, None) for n, result in enumerate(results))
    return Attempt(job, 2_000_000, 2_500_000, "", "", "", tuple(steps), outcomes)


def shown(counted: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample as (name, label value, …) in the order of the labels' names."""
    families = [_counter(c) for c in counted.counters] + [_histogram(h) for h in counted.histograms]
    text = generate_latest(_Copy(families, ProcessCollector(registry=CollectorRegistry()))).decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_an_attempt_is_counted_as() -> None:
    counted = Metrics()
    counted.know_routes(["up", "idle"])
    counted.reported(make_attempt(Result.DELIVERED, Result.DELIVERED))
    counted.reported(make_attempt(Result.DELIVERED, Result.FAILED))
    counted.reported(make_attempt(Result.IN_DOUBT))
    counted.reported(make_attempt(Result.DEFERRED))
    found = shown(counted)
    assert found["hepmaild_attempts_total", "delivered", "up"] == 1
    assert found["hepmaild_attempts_total", "mixed", "up"] == 1
    assert found["hepmaild_attempts_total", "in_doubt", "up"] == 1
    assert found["hepmaild_attempts_total", "deferred", "up"] == 1
    assert found["hepmaild_attempts_total", "failed", "idle"] == 0
    assert found["hepmaild_recipient_results_total", "delivered", "up"] == 3
    assert found["hepmaild_recipient_results_total", "failed", "up"] == 1
    assert found["hepmaild_attempt_seconds_count", "up"] == 4
    assert found["hepmaild_attempt_seconds_sum", "up"] == 2
    assert found["hepmaild_delivery_seconds_count", "up"] == 2  # not the two that delivered to nobody
    assert found["hepmaild_delivery_seconds_sum", "up"] == 3
    assert not any(name[0].startswith("hepmaild_dot_seconds") for name in found)


def test_all_servers_of_accounts_are_one_route() -> None:
    counted = Metrics()
    for n in range(100):
        counted.reported(make_attempt(Result.DELIVERED, route=f"own:{n}"))
    routes = {name[1] for name in shown(counted) if name[0].startswith("hepmaild_attempt") and len(name) > 1}
    assert "own:*" in {label for name in shown(counted) for label in name}
    assert not any(label.startswith("own:") and label != "own:*" for name in shown(counted) for label in name), routes


def test_answers_and_refusals() -> None:
    counted = Metrics()
    receipt = Receipt("0" * 16, "<1@x>", Status.SENT, "a@x", 1, 1)
    again = Receipt("0" * 16, "<1@x>", Status.QUEUED, "a@x", 1, 1, replayed=True)
    counted.accepted(Door.SMTP, 2, 100, 0.003, suppressed=1)
    counted.answered(Door.SMTP, receipt, 0.02)
    counted.answered(Door.HTTP, again, 0.001)
    counted.answered(Door.HTTP, Refusal(ErrorKind.RELAY_FAILED, "no"), 3)
    counted.refused(Door.HTTP, ErrorKind.RELAY_FAILED)
    counted.responded(502, "RELAY_FAILED")
    counted.unit(3, 0.002)
    counted.expired(4)
    counted.taken_over(5)
    counted.lagged(0.5)
    found = shown(counted)
    assert found["hepmaild_accepted_messages_total", "smtp"] == 1
    assert found["hepmaild_accepted_messages_total", "http"] == 0
    assert found["hepmaild_accepted_recipients_total", "smtp"] == 2
    assert found["hepmaild_suppressed_recipients_total", "smtp"] == 1
    assert found["hepmaild_suppressed_recipients_total", "http"] == 0
    assert found["hepmaild_accepted_bytes_total", "smtp"] == 100
    assert found["hepmaild_replayed_messages_total", "http"] == 1
    assert found["hepmaild_refusals_total", "RELAY_FAILED", "http"] == 1
    assert found["hepmaild_http_responses_total", "RELAY_FAILED", "502"] == 1
    assert found["hepmaild_accept_seconds_count", "sent", "smtp"] == 1
    assert found["hepmaild_accept_seconds_count", "queued", "http"] == 1
    assert found["hepmaild_accept_seconds_count", "refused", "http"] == 1
    assert found["hepmaild_commit_seconds_bucket", "0.0025"] == 0
    assert found["hepmaild_commit_seconds_bucket", "0.005"] == 1
    assert found["hepmaild_commit_seconds_bucket", "+Inf"] == 1
    assert found["hepmaild_unit_members_sum",] == 3
    assert found["hepmaild_unit_members_bucket", "2.0"] == 0
    assert found["hepmaild_unit_members_bucket", "4.0"] == 1
    assert found["hepmaild_expired_recipients_total",] == 4
    assert found["hepmaild_taken_over_leases_total",] == 5
    assert found["hepmaild_loop_lag_seconds_sum",] == 0.5


@pytest.mark.parametrize(("value", "first"), [(0.0, 0), (0.001, 0), (0.0011, 1), (11, 13)])
def test_a_bound_belongs_to_its_bucket(value: float, first: int) -> None:
    histogram = Histogram(metrics.COMMIT_SECONDS)
    histogram.observe(value)
    sums = histogram.cells[()].cumulative()
    assert sums == [0] * first + [1] * (len(sums) - first)


def test_label_sets_are_bounded() -> None:
    """Whatever names of routes turn up: memory and page stay small."""
    counter, histogram = Counter(metrics.ATTEMPTS), Histogram(metrics.ATTEMPT_SECONDS)
    for n in range(3 * MAX_LABEL_SETS):
        counter.add((f"route-{n}", "delivered"))
        histogram.observe(1, (f"route-{n}",))
    assert len(counter.cells) == len(histogram.cells) == MAX_LABEL_SETS + 1
    assert counter.cells["other", "other"] == 2 * MAX_LABEL_SETS
    assert histogram.cells["other",].total == 2 * MAX_LABEL_SETS


@pytest.mark.parametrize(
    ("steps", "waited_us"),
    [
        ([], None),
        ([Step(1, Who.US, "MAIL FROM:<>"), Step(2, Who.PEER, "550 no")], None),
        ([Step(1, Who.US, "."), Step(700, Who.PEER, "250 ok")], 699),
        ([Step(1, Who.US, "."), Step(700, Who.PEER, "250 ok"), Step(900, Who.US, "QUIT")], 699),
        ([Step(5, Who.PEER, "354 go"), Step(100, Who.US, "."), Step(900, Who.NOTE, "final dot: timed out")], 900),
        ([Step(5000, Who.US, "."), Step(10, Who.PEER, "the clock was set back")], 0),
    ],
)
def test_how_long_the_dot_took(steps: list[Step], waited_us: int | None) -> None:
    assert dot_wait_us(steps, 1000) == waited_us


def test_whoever_counts_nothing_has_every_method() -> None:
    names = {name for name in vars(Meter) if not name.startswith("_")}
    assert names <= set(vars(Metrics))


def test_names_and_labels_follow_the_rules() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"hepmaild_[a-z]+(_[a-z]+)*", family.name)
        assert family.name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert bool(family.buckets) == (family.kind is Kind.HISTOGRAM)
        assert list(family.buckets) == sorted(set(family.buckets))
        assert set(family.labels) <= {"door", "code", "status", "answer", "route", "result", "state", "count"} | {
            "version",
            "python",
        }
        assert family.doc.endswith(".")
        assert "|" not in family.doc


def test_every_family_is_listed_and_the_page_says_so() -> None:
    defined = {value.name for value in vars(metrics).values() if isinstance(value, metrics.Family)}
    assert defined == {family.name for family in FAMILIES}
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert metrics_docs.render(page) == page, "run `make docs`"


def test_the_page_names_no_metric_that_is_not_there() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    known = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.kind is Kind.HISTOGRAM:
            known |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    assert set(re.findall(r"\bhepmaild_\w+", page)) <= known


async def test_a_late_loop_is_noticed(mock_clock: MockClock) -> None:
    counted = Metrics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metrics.watch_loop, counted)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1.25)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    found = shown(counted)
    assert found["hepmaild_loop_lag_seconds_count",] == 2
    assert found["hepmaild_loop_lag_seconds_sum",] == 0.25
