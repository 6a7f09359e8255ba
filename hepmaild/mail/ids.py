# SPDX-License-Identifier: Apache-2.0
"""The two names of a message: our messageId (16 hexadecimal characters) and its Message-ID field (RFC 5322 §3.6.4).

Randomness is an argument, so that tests repeat; callers take it from the system's secure source.
"""

from __future__ import annotations

import re

from hepmaild.mail.address import domain_of

MESSAGE_ID_ENTROPY_OCTETS = 8
HEADER_ID_ENTROPY_OCTETS = 16

_MESSAGE_ID = re.compile(r"[0-9a-f]{16}")


def message_id(entropy: bytes, now_us: int) -> str:
    """Our id of a message, from exactly `MESSAGE_ID_ENTROPY_OCTETS` random octets and the time.

    The first seven characters follow the clock (a step is a millisecond, they come round after three days), so that
    what is accepted together stands together in every index, however much that is; the other 36 bits are random.
    """
    if len(entropy) != MESSAGE_ID_ENTROPY_OCTETS:
        raise ValueError(f"a message id takes {MESSAGE_ID_ENTROPY_OCTETS} random octets")
    return f"{(now_us >> 10) & 0xFFFFFFF:07x}{entropy.hex()[7:]}"


def is_message_id(text: str) -> bool:
    """Whether `text` looks like one of our message ids."""
    return _MESSAGE_ID.fullmatch(text) is not None


def header_message_id(entropy: bytes, sender_address: str) -> str:
    """`<…@domain>`, with the domain of `sender_address` (normalised, hence ASCII) on the right-hand side.

    It is made of other random octets than our message id: whoever gets the mail does not learn the id shown in Logs.
    """
    if len(entropy) < HEADER_ID_ENTROPY_OCTETS:
        raise ValueError(f"a Message-ID takes {HEADER_ID_ENTROPY_OCTETS} random octets")
    return f"<{entropy.hex()}@{domain_of(sender_address)}>"
