# SPDX-License-Identifier: Apache-2.0
"""DANE for SMTP: which TLSA records count, where they are, and what they demand; pure (RFC 7672, RFC 7671)."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from hepmaild.delivery.answers import TlsaRow
from hepmaild.delivery.hops import Tlsa, TlsLevel, TlsPolicy

DANE_TA, DANE_EE = 2, 3
_FULL, _SHA256, _SHA512 = 0, 1, 2
_DIGEST_OCTETS = {_SHA256: 32, _SHA512: 64}
MAX_RECORDS = 32


def tlsa_name(host: str, port: int) -> str:
    """Where the records of a server are (RFC 6698 §3)."""
    return f"_{port}._tcp.{host}"


def policy_of(rows: Iterable[TlsaRow], names: Iterable[str]) -> TlsPolicy | None:
    """What the TLSA records of a host demand; None when there are none.

    names: the names its certificate may have (RFC 7672 §3.2.2): the one the records were found under, which is also
    what the handshake asks for (§8.1), then the destination and the name that one is an alias of.  They only count with
    DANE-TA; DANE-EE asks for no name and no dates (§3.1.1), and keeps the first one only.  Records of which none can be
    used demand encryption only (§2.2).
    """
    rows = list(rows)
    if not rows:
        return None
    usable = _agile([Tlsa(r.usage, r.selector, r.matching, r.data) for r in rows if is_usable(r)])
    if not usable:
        return TlsPolicy(TlsLevel.ENCRYPTED, "no usable TLSA record")
    wanted = tuple(dict.fromkeys(names))
    if all(record.usage == DANE_EE for record in usable):
        wanted = wanted[:1]
    usable = usable[:MAX_RECORDS]
    kinds = dict.fromkeys(f"{record.usage} {record.selector} {record.matching}" for record in usable)
    return TlsPolicy(TlsLevel.DANE, f"TLSA {', '.join(kinds)}", tlsa=tuple(usable), names=wanted)


def is_usable(row: TlsaRow) -> bool:
    """Whether SMTP can do anything with it: DANE-TA or DANE-EE, of a known form, well formed (RFC 7672 §3.1.3)."""
    if row.usage not in {DANE_TA, DANE_EE} or row.selector not in {0, 1}:
        return False
    if row.matching == _FULL:
        return _is_der(row)
    return len(row.data) == _DIGEST_OCTETS.get(row.matching)


def _is_der(row: TlsaRow) -> bool:
    try:
        if row.selector == 0:
            x509.load_der_x509_certificate(row.data)
        else:
            load_der_public_key(row.data)
    except (ValueError, UnsupportedAlgorithm):
        return False
    return True


def _agile(records: list[Tlsa]) -> list[Tlsa]:
    """Of each usage and selector the strongest digest only, beside the full ones (RFC 7671 §9), in a fixed order."""
    best: dict[tuple[int, int], int] = {}
    for record in records:
        key = (record.usage, record.selector)
        best[key] = max(best.get(key, 0), record.matching)
    kept = {r for r in records if r.matching in {_FULL, best[r.usage, r.selector]}}
    return sorted(kept, key=lambda r: (-r.usage, -r.selector, -r.matching, r.data))
