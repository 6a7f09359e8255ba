# SPDX-License-Identifier: Apache-2.0
"""What the log says of a store that fails: callers are told only that it does, and they are others' programs."""

from __future__ import annotations

import structlog

from hepmaild.errors import StoreUnavailable
from hepmaild.seldom import Seldom

log = structlog.get_logger()


class Trouble:
    """Says why at once, and once a minute while it lasts, however many callers it turns away.

    is_told: else nothing is said: a command has its own words.
    """

    def __init__(self, *, is_told: bool) -> None:
        self._is_told = is_told
        self._told = Seldom()

    def tell(self, failure: StoreUnavailable) -> StoreUnavailable:
        """The same failure, to be raised or handed on."""
        if self._is_told and self._told.is_due():
            log.warning("store_failed", reason=str(failure))
        return failure
