# SPDX-License-Identifier: Apache-2.0
"""Sentences about one of something, and about several."""

from __future__ import annotations

from typing import Any

from hepmaild.counted import are, counted


def test_one_and_several() -> None:
    assert [counted(n, "credit") for n in (0, 1, 2, 12345)] == ["0 credits", "1 credit", "2 credits", "12,345 credits"]
    assert [are(n) for n in (0, 1, 2)] == ["are", "is", "are"]


def test_commands_tell_them_apart(cli: Any) -> None:
    cli.ok("account", "add", "me@example.com")
    assert cli.ok("credits", "grant", "me@example.com", "1") == "me@example.com has 1 credit\n"
    assert cli.ok("credits", "grant", "me@example.com", "1999") == "me@example.com has 2,000 credits\n"
    assert cli.ok("credits", "verify") == "the ledger of 1 account holds\n"
    assert cli.ok("audit", "verify") == "1 audit log holds\n"
    cli.ok("account", "add", "you@example.com")
    assert cli.ok("credits", "verify") == "the ledgers of 2 accounts hold\n"
    assert cli.ok("audit", "verify") == "2 audit logs hold\n"
