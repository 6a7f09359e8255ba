# SPDX-License-Identifier: Apache-2.0
"""What is said about a domain's records, and the record that is named."""

from __future__ import annotations

import pytest

from hepmaild.mail.dns_check import BAD, GOOD, UNKNOWN, WARN, check_dkim, check_dmarc, check_spf, dmarc_names

OURS = "a:out.example.net"
KEY = {
    "domain": "example.com",
    "selector": "s1",
    "algorithm": "ed25519-sha256",
    "public_key": "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
}


@pytest.mark.parametrize(
    ("found", "state", "value"),
    [
        ((), BAD, f"v=spf1 {OURS} ~all"),
        (("some text", "v=spf1x"), BAD, f"v=spf1 {OURS} ~all"),
        (("v=spf1 a:OUT.example.net -all",), GOOD, ""),
        (("v=spf1 mx -all",), WARN, f"v=spf1 {OURS} mx -all"),
        (("v=spf1 include:other.example",), WARN, f"v=spf1 {OURS} include:other.example ~all"),
        (("v=spf1 mx +all",), BAD, f"v=spf1 {OURS} mx ~all"),
        (("v=spf1 redirect=_spf.other.example",), WARN, f"v=spf1 {OURS} redirect=_spf.other.example"),
        (("v=spf1 -all", "v=spf1 mx -all"), BAD, f"v=spf1 {OURS} ~all"),
        (("v=spf1 " + " ".join(f"include:{n}.example" for n in range(11)) + " -all",), BAD, None),
        ("SERVFAIL from 192.0.2.1:53", UNKNOWN, f"v=spf1 {OURS} ~all"),
    ],
)
def test_spf(found: tuple[str, ...] | str, state: str, value: str | None) -> None:
    """RFC 7208 §4.6.4."""
    check = check_spf("example.com", found, OURS)
    assert (check.what, check.state) == ("SPF", state)
    assert value is None or check.value == value


def test_dkim() -> None:
    value = f"v=DKIM1; k=ed25519; p={KEY['public_key']}"
    assert check_dkim(KEY, (value,)).state == GOOD
    missing = check_dkim(KEY, ())
    assert (missing.state, missing.name, missing.value) == (BAD, "s1._domainkey.example.com", value)
    assert missing.zone_line.startswith('s1._domainkey.example.com. IN TXT "v=DKIM1')
    assert check_dkim(KEY, ("v=DKIM1; k=ed25519; p=",)).state == BAD
    assert check_dkim(KEY, "no answer").state == UNKNOWN


def test_where_dmarc_may_stand() -> None:
    """RFC 7489 §6.6.3."""
    assert dmarc_names("example.com") == ["_dmarc.example.com"]
    assert dmarc_names("a.b.example.com") == ["_dmarc.a.b.example.com", "_dmarc.b.example.com", "_dmarc.example.com"]
    assert dmarc_names("localhost") == ["_dmarc.localhost"]
    many = dmarc_names(".".join("abcdefghijklmno"))
    assert len(many) == 6
    assert many[-1] == "_dmarc.n.o"


@pytest.mark.parametrize(
    ("own", "parent", "state", "says"),
    [
        ((), (), BAD, "There is no DMARC record"),
        (("v=DMARC1; p=none",), (), WARN, "p=none"),
        (("v=DMARC1; p=reject; rua=mailto:a@b.example",), (), GOOD, "p=reject"),
        ((), ("v=DMARC1; p=quarantine",), GOOD, "example.com"),
        (("v=DMARC1; p=x",), (), BAD, "no policy"),
        (("v=DMARC1; p=none", "v=DMARC1; p=reject"), (), BAD, "2 DMARC records"),
        (("v=DMARC1",), (), BAD, "no policy"),
        ("SERVFAIL", (), UNKNOWN, "did not answer"),
    ],
)
def test_dmarc(own: tuple[str, ...] | str, parent: tuple[str, ...], state: str, says: str) -> None:
    check = check_dmarc("mail.example.com", {"_dmarc.mail.example.com": own, "_dmarc.example.com": parent})
    assert check.state == state
    assert says in check.text
    if state in (BAD, UNKNOWN):
        assert check.name == "_dmarc.mail.example.com"
        assert check.value.startswith("v=DMARC1; p=none")
