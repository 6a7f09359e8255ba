# SPDX-License-Identifier: Apache-2.0
"""`hepmaild suppression` on a real database."""

from __future__ import annotations

from typing import Any

ME = "me@example.com"
GONE = "gone@example.net"


def test_suppressions_are_added_listed_and_lifted(cli: Any) -> None:
    cli.ok("account", "add", ME)
    assert cli.json("suppression", "list", ME) == []
    assert "no address is suppressed" in cli.ok("suppression", "list", ME)
    made = cli.json("suppression", "add", ME, GONE, "--days", "2", "--reason", "asked to be left alone")
    assert made["address"] == GONE
    (row,) = cli.json("suppression", "list", ME)
    assert (row["address"], row["refusals"], row["last_reply"]) == (GONE, 0, "asked to be left alone")
    assert row["suppressed_until_at"] == made["suppressed_until_at"]
    assert GONE in cli.ok("suppression", "list", ME)
    assert "may send to" in cli.ok("suppression", "lift", ME, "Gone@example.NET")
    assert "is not suppressed" in cli.refused("suppression", "lift", ME, GONE)
    assert "until" in cli.ok("suppression", "add", ME, GONE)
    assert "no account for you@example.com" in cli.refused("suppression", "list", "you@example.com")
    assert "is not an email address" in cli.refused("suppression", "add", ME, "gone", status=2)
    for days in ("nan", "-nan", "inf", "0", "3651"):
        assert "in the range" in cli.refused("suppression", "add", ME, GONE, f"--days={days}", status=2)
    assert "in the range" in cli.refused("queue", "top", "--interval", "nan", status=2)
