# SPDX-License-Identifier: Apache-2.0
"""The zones of the resolver's tests."""

from __future__ import annotations

SHA256 = "ab" * 32
SHA512 = "cd" * 64

PLAIN = (
    """\
order MX 20 mx2
order MX 10 mx1
order MX 30 mx3
equal MX 10 mx1
equal MX 10 mx2
equal MX 10 mx3
equal MX 20 mx4
mx1 A 192.0.2.1
mx2 A 192.0.2.2
mx3 A 192.0.2.3
mx4 A 192.0.2.4
null MX 0 .
mixed-null MX 0 .
mixed-null MX 10 mx1
only-a A 192.0.2.10
both A 192.0.2.11
both AAAA 2001:db8::11
only-aaaa AAAA 2001:db8::12
txt-only TXT "no mail here"
alias CNAME order
dangling CNAME nothing
loop-a CNAME loop-b
loop-b CNAME loop-a
mx-alias MX 10 mx-is-alias
mx-is-alias CNAME mx1
literal MX 10 192.0.2.1.
garbage MX 10 not\\032a\\032host.
some-garbage MX 5 192.0.2.1.
some-garbage MX 10 mx1
no-addresses MX 10 nothing-1
no-addresses MX 20 txt-only
lame-mx MX 10 mx.lame.test.
half-lame MX 10 mx.lame.test.
half-lame MX 20 mx2
same-mx-1 MX 10 mx1
same-mx-2 MX 50 mx1
case MX 10 MX1.Plain.Test.
xn--bcher-kva MX 10 xn--mx-eka
xn--mx-eka A 192.0.2.20
"""
    + "".join(f"many MX 10 many-{n}\nmany-{n} A 192.0.2.{100 + n}\n" for n in range(30))
    + "".join(f"late-host MX {n} nothing-{n}\n" for n in range(10))
    + "late-host MX 10 mx1\n"
    + "".join(f"no-host MX {n} nothing-{n}\n" for n in range(30))
    + "".join(f"too-late-host MX {n} nothing-{n}\n" for n in range(30))
    + "too-late-host MX 30 mx1\n"
    + "".join(f"crowd A 198.51.100.{n}\ncrowd AAAA 2001:db8::{n}\n" for n in range(1, 60))
    + """\
texts TXT "one" " two"
texts TXT "v=DKIM1; p=abc"
"""
)


def _sts(name: str, policy_id: str = "id1") -> str:
    txt = f'_mta-sts.{name} TXT "v=STSv1; id={policy_id};"'
    return f"{name} MX 10 mx1\n{name} MX 20 mx2\n{txt}\nmta-sts.{name} A 127.0.0.1\n"


STS_NAMES = [
    "enforce",
    "enforce-some",
    "enforce-none",
    "testing",
    "mode-none",
    "wrong-certificate",
    "redirect",
    "oversize",
    "garbage-policy",
    "html",
    "absent",
    "compressed",
    "not-utf8",
    "slow",
    "changing",
    "short",
]
PLAIN += "".join(_sts(name) for name in STS_NAMES)

SIGNED = f"""\
ee MX 10 mx-ee
mx-ee A 192.0.2.1
_25._tcp.mx-ee TLSA 3 1 1 {SHA256}
_2525._tcp.mx-ee TLSA 3 1 1 {"99" * 32}
ta MX 10 mx-ta
mx-ta A 192.0.2.2
_25._tcp.mx-ta TLSA 2 0 1 {SHA256}
_25._tcp.mx-ta TLSA 2 0 2 {SHA512}
_25._tcp.mx-ta TLSA 0 0 1 {SHA256}
unusable MX 10 mx-unusable
mx-unusable A 192.0.2.3
_25._tcp.mx-unusable TLSA 1 1 1 {SHA256}
none MX 10 mx-none
mx-none A 192.0.2.4
_tcp.mx-tlsa-fails NS ns.lame.test.
fails MX 10 mx-tlsa-fails
mx-tlsa-fails A 192.0.2.5
half-fails MX 10 mx-tlsa-fails
half-fails MX 20 mx-ee
elsewhere MX 10 mx1.plain.test.
_25._tcp.alone TLSA 3 1 1 {SHA256}
alone A 192.0.2.6
via-alias MX 10 mx-alias
mx-alias CNAME mx-ee
alias-out MX 10 mx-out
mx-out CNAME mx1.plain.test.
_25._tcp.mx-out TLSA 3 1 1 {SHA256}
both MX 10 mx-ee
both MX 20 mx-none
_mta-sts.both TXT "v=STSv1; id=id1;"
mta-sts.both A 127.0.0.1
"""

ZONES = {"plain.test": PLAIN, "signed.test": SIGNED, "bogus.test": "@ MX 10 mx\nmx A 192.0.2.1\n"}
