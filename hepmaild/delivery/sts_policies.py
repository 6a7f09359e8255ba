# SPDX-License-Identifier: Apache-2.0
"""The MTA-STS policies of destinations: discovered, fetched, kept over restarts, renewed (Trio; RFC 8461 §3, §5.1)."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from hepmaild.delivery import mta_sts
from hepmaild.delivery.answers import Failed
from hepmaild.delivery.lookups import Lookups
from hepmaild.delivery.mta_sts import Kept, Policy
from hepmaild.delivery.sts_fetch import Fetch, NotFetched
from hepmaild.errors import StoreUnavailable

log = structlog.get_logger()

REMEMBERED = 5000
OCTETS_REMEMBERED = 16 * 2**20  # of what these say; the usual ones need a tenth
TRY_AGAIN_S = 300.0  # after a fetch in vain (RFC 8461 §3.3)


class PolicyStore(Protocol):
    """Where policies outlive a restart."""

    async def load(self, domain: str) -> Kept | None:
        """The newest policy of a domain.  Raises `StoreUnavailable`."""

    async def save(self, kept: Kept) -> None:
        """Replace the domain's policy.  Raises `StoreUnavailable`."""


@dataclass(frozen=True, slots=True)
class Found:
    """policy: None: the domain has none.  until: look again after that (Trio's clock)."""

    policy: Policy | None
    until: float

    def octets(self) -> int:
        """How much memory the policy takes, roughly."""
        return 0 if self.policy is None else self.policy.octets()


@dataclass
class _Known:
    """What is remembered of a domain.  try_at: by Trio's clock, when to fetch again.  octets: as last counted."""

    kept: Kept | None
    policy: Policy | None
    try_at: float = 0.0
    octets: int = 0


class StsPolicies:
    """lookups, fetch: how policies are found.  store: where they are kept.  now_us: Unix microseconds."""

    def __init__(self, lookups: Lookups, fetch: Fetch, store: PolicyStore, now_us: Callable[[], int]) -> None:
        self._lookups = lookups
        self._fetch = fetch
        self._store = store
        self._now_us = now_us
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._octets = 0

    async def policy_for(self, domain: str) -> Found:
        """The policy that holds for a domain now; call it for one domain by one task at a time.

        A policy that is kept holds until its end, whatever becomes of the TXT record and the server (RFC 8461 §5.1);
        a new one replaces it.  Takes a DNS question and `sts_fetch.FETCH_S` at most.  Raises `StoreUnavailable` when
        it cannot be said whether there is a kept one.
        """
        answer = await self._lookups.txt(f"_mta-sts.{domain}")
        policy_id = None if isinstance(answer, Failed) else mta_sts.read_txt(answer.values)
        until = answer.until
        known = await self._recall(domain)
        if policy_id is not None:
            await self._renew(domain, known, policy_id)
            self._make_room(domain, known)
            if known.try_at > trio.current_time():  # a fetch was in vain
                until = min(until, known.try_at)
        if known.kept is None:
            return Found(None, until)
        left_s = (known.kept.expires_at_us - self._now_us()) / 1_000_000
        return Found(known.policy, min(until, trio.current_time() + left_s))

    async def _recall(self, domain: str) -> _Known:
        known = self._known.get(domain)
        if known is None:
            known = self._known[domain] = _known_of(await self._store.load(domain))
        self._known.move_to_end(domain)
        if known.kept is not None and known.kept.expires_at_us <= self._now_us():
            known.kept = known.policy = None
        self._make_room(domain, known)
        return known

    def _make_room(self, domain: str, known: _Known) -> None:
        """Count what is remembered of a domain anew, and forget those asked for longest ago: the store has them."""
        if self._known.get(domain) is not known:
            return  # forgotten meanwhile
        self._octets -= known.octets
        known.octets = 0 if known.kept is None else sys.getsizeof(known.kept.text)
        known.octets += 0 if known.policy is None else known.policy.octets()
        self._octets += known.octets
        while len(self._known) > REMEMBERED or (self._octets > OCTETS_REMEMBERED and len(self._known) > 1):
            self._octets -= self._known.popitem(last=False)[1].octets

    async def _renew(self, domain: str, known: _Known, policy_id: str) -> None:
        if known.kept is not None and known.kept.is_current(policy_id, self._now_us()):
            return
        if trio.current_time() < known.try_at:
            return
        text = await self._fetch(domain)
        if isinstance(text, NotFetched):
            self._in_vain(domain, known, text.why)
            return
        try:
            policy = mta_sts.parse_policy(text)
        except ValueError as error:
            self._in_vain(domain, known, str(error))
            return
        kept = mta_sts.keep(domain, policy_id, text, policy, self._now_us())
        try:
            await self._store.save(kept)
        except StoreUnavailable as error:
            log.warning("sts_policy_not_saved", domain=domain, error=str(error))
        # Only now: cancelled before, it is fetched again; remembered, it would not be saved until it changes.
        known.kept, known.policy, known.try_at = kept, policy, 0.0
        log.info("sts_policy_fetched", domain=domain, mode=str(policy.mode), id=policy_id)

    def _in_vain(self, domain: str, known: _Known, why: str) -> None:
        known.try_at = trio.current_time() + TRY_AGAIN_S
        kept = "the previous one" if known.kept is not None else ""
        log.warning("sts_policy_not_fetched", domain=domain, error=why, kept=kept)


def _known_of(kept: Kept | None) -> _Known:
    if kept is None:
        return _Known(None, None)
    try:
        return _Known(kept, mta_sts.parse_policy(kept.text))
    except ValueError:  # kept by a version that read it otherwise
        return _Known(None, None)
