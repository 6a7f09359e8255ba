# SPDX-License-Identifier: Apache-2.0
"""API keys in text that is kept to be read: records, transcripts, the log.  Pure.

A client may put its key where anything else belongs: into EHLO, MAIL, RCPT, a header.  Nobody can refuse that in time,
so whatever is written down of a conversation goes by here.
"""

from __future__ import annotations

import re

KEY_PREFIX = "hyd-mail-"

# One whose end was cut off shows nothing of it: those would not be its last five characters.
_KEY = re.compile(KEY_PREFIX + r"(?:[A-Za-z0-9]+…|[A-Za-z0-9]*([A-Za-z0-9]{5}))")


def mask_keys(text: str) -> str:
    """`text` with every key cut to `hyd-mail-…LAST5`.  Twice does no harm; text without one is only looked at."""
    return _KEY.sub(rf"{KEY_PREFIX}…\1", text) if KEY_PREFIX in text else text
