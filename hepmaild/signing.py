# SPDX-License-Identifier: Apache-2.0
"""Which DKIM keys sign the mail of a domain, as the store has them now.

Active keys are cached behind the same generation as API keys (`directory`), so a key that was activated or retired
anywhere is obeyed by the next MAIL or request.  While no domain has a key, a message costs one comparison.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from hepmaild.dkim_keys import make_signer, place_of
from hepmaild.errors import SecretsUnavailable
from hepmaild.mail.dkim import Signer
from hepmaild.storage import dkim as rows
from hepmaild.storage import sealed
from hepmaild.storage.dkim import SealedKey
from hepmaild.storage.store import Store
from hepmaild.vault import HEAD_OCTETS, Vault

log = structlog.get_logger()

MAX_CACHED = 10_000


class NotLoaded(Exception):
    """`SigningKeys.of` cannot say yet: await `load(domain)` and ask again."""

    def __init__(self, domain: str) -> None:
        super().__init__(domain)
        self.domain = domain


@dataclass(frozen=True, slots=True)
class _Known:
    """The active keys of a domain, as a generation has them."""

    generation: int | None
    signers: Mapping[SealedKey, Signer]


class SigningKeys:
    """generation: of the keys as last validated (`Directory.generation`)."""

    def __init__(self, store: Store, vault: Vault, generation: Callable[[], int | None]) -> None:
        self._store = store
        self._vault = vault
        self._generation = generation
        self._seen: int | None = None
        self._domains: frozenset[str] | None = None
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._told: set[str] = set()

    def of(self, domain: str) -> Sequence[Signer]:
        """Who signs for this domain: nobody, one, or more.  Raises `NotLoaded`.  May be called from any thread."""
        generation = self._generation()
        domains = self._domains
        if domains is None or generation != self._seen:
            raise NotLoaded(domain)
        if domain not in domains:
            return ()
        known = self._known.get(domain)
        if known is None or known.generation != generation:
            raise NotLoaded(domain)
        return tuple(known.signers.values())

    async def load(self, domain: str) -> None:
        """Read what `of` needs.  Raises `StoreUnavailable`, `SecretsUnavailable`.  Cancel-safe."""
        generation = self._generation()
        if self._domains is None or generation != self._seen:
            domains = await self._store.read(rows.signing_domains)
            self._domains, self._seen = domains, generation
            for gone in self._known.keys() - domains:
                del self._known[gone]
        if domain in self._domains:
            found = await self._store.read(rows.active_of, domain)
            self._known[domain] = _Known(generation, self._open(domain, found))
            self._known.move_to_end(domain)
            if len(self._known) > MAX_CACHED:
                self._known.popitem(last=False)

    async def check(self) -> None:
        """Whether every secret in the database has its key here; for the start.  Raises as `load`."""
        self._vault.check(await self._store.read(sealed.heads, HEAD_OCTETS))

    def _open(self, domain: str, found: Sequence[SealedKey]) -> dict[SealedKey, Signer]:
        """The signers of these keys; those that were opened before are taken as they are."""
        before = self._known[domain].signers if domain in self._known else {}
        try:
            signers = {key: before.get(key) or self._open_one(key) for key in found}
        except SecretsUnavailable as error:
            if domain not in self._told:  # once, not for every message that waits for it
                self._told.add(domain)
                log.error("dkim_key_unusable", domain=domain, reason=str(error))
            raise
        self._told.discard(domain)
        return signers

    def _open_one(self, key: SealedKey) -> Signer:
        private_key = self._vault.open(place_of(key.domain, key.selector), key.sealed)
        return make_signer(key.domain, key.selector, key.algorithm, private_key)
