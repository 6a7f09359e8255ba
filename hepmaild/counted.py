# SPDX-License-Identifier: Apache-2.0
"""How many there are of something, in the sentences that people read.  Pure."""

from __future__ import annotations


def counted(number: int, word: str) -> str:
    """`1 credit`, `12,345 credits`; the word's plural ends in s."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def do(number: int) -> str:
    """The verb before `not`: `does` or `do`."""
    return "does" if number == 1 else "do"


def are(number: int) -> str:
    """The verb behind it: `is` or `are`."""
    return "is" if number == 1 else "are"
