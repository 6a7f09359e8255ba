# SPDX-License-Identifier: Apache-2.0
"""Whether a certificate chain fits TLSA records; pure (RFC 6698, RFC 7671, RFC 7672).

DANE-EE (usage 3) pins the server's own certificate or key: no name, no date, no authority is asked (RFC 7672 §3.1.1).
DANE-TA (usage 2) pins an authority: from the server's certificate signatures must lead to it, every certificate on the
way must be in force, and the server's must have one of the reference names (RFC 7672 §3.1.2, §3.2.3).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from hepmaild.config import TlsMode
from hepmaild.delivery.hops import Tlsa, TlsLevel, TlsPolicy
from hepmaild.mail.reply import printable

DANE_TA, DANE_EE = 2, 3
MAX_CHAIN = 20
MAX_NAMES_SHOWN, MAX_NAME_SHOWN = 5, 100
_FULL_CERTIFICATE, _PUBLIC_KEY = 0, 1

_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

_REQUIRED = frozenset({TlsLevel.ENCRYPTED, TlsLevel.VERIFIED, TlsLevel.DANE})


def mode_of(level: TlsLevel) -> TlsMode:
    """What the client machine does about STARTTLS."""
    if level is TlsLevel.NONE:
        return TlsMode.NONE
    return TlsMode.STARTTLS if level in _REQUIRED else TlsMode.OPPORTUNISTIC


def suits(policy: TlsPolicy, kept: TlsPolicy, reached: TlsLevel) -> bool:
    """Whether a connection to the same host that was opened under `kept` and reached that level will do here."""
    if policy.level is TlsLevel.ENCRYPTED:
        return reached is not TlsLevel.NONE
    if policy.level is TlsLevel.VERIFIED:
        return reached is TlsLevel.VERIFIED
    if policy.level is TlsLevel.DANE:
        return reached is TlsLevel.DANE and (policy.tlsa, policy.names) == (kept.tlsa, kept.names)
    return True


def check_dane(policy: TlsPolicy, chain_der: Sequence[bytes], now_us: int) -> str | None:
    """Why the chain that a server presented (its own certificate first) does not fit; None: it does.

    now_us: Unix microseconds, for the dates that DANE-TA looks at.  What cannot be read does not fit.
    """
    if not chain_der:
        return "the server presented no certificate"
    try:
        chain = [x509.load_der_x509_certificate(der) for der in chain_der[:MAX_CHAIN]]
        if any(record.usage == DANE_EE and _matches(record, chain[0]) for record in policy.tlsa):
            return None
        anchors = [record for record in policy.tlsa if record.usage == DANE_TA]
        if not anchors:
            return "the certificate fits no TLSA record"
        return _check_anchored(anchors, chain, policy.names, dt.datetime.fromtimestamp(now_us / 1e6, dt.UTC))
    except _UNREADABLE as error:
        return f"the certificate cannot be read: {error}"


def _matches(record: Tlsa, certificate: x509.Certificate) -> bool:
    """RFC 6698 §2.1: selector, then matching type."""
    if record.selector == _FULL_CERTIFICATE:
        data = certificate.public_bytes(Encoding.DER)
    elif record.selector == _PUBLIC_KEY:
        data = _spki(certificate.public_key())
    else:
        return False
    if record.matching == 1:
        data = hashlib.sha256(data).digest()
    elif record.matching == 2:
        data = hashlib.sha512(data).digest()
    elif record.matching != 0:
        return False
    return hmac.compare_digest(data, record.data)


def _spki(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# DANE-TA


def _check_anchored(
    anchors: Sequence[Tlsa], chain: Sequence[x509.Certificate], names: Iterable[str], now: dt.datetime
) -> str | None:
    """From the server's certificate to an anchor: signatures, dates, authority; then the names."""
    given = [x509.load_der_x509_certificate(r.data) for r in anchors if (r.selector, r.matching) == (0, 0)]
    keys = [load_der_public_key(r.data) for r in anchors if (r.selector, r.matching) == (1, 0)]
    known = [*chain[1:], *given]
    current, depth = chain[0], 0
    used: set[int] = set()
    while True:
        problem = _check_in_force(current, depth, now)
        if problem is not None:
            return problem
        if (depth and any(_matches(record, current) for record in anchors)) or any(_signed(current, k) for k in keys):
            return _check_names(chain[0], names)
        issuers = [n for n, other in enumerate(known) if n not in used and _issued(current, other)]
        if not issuers:
            return "no TLSA record fits an authority of the certificate"
        # One that is an anchor itself comes first, should several have the same name and key.
        issuers.sort(key=lambda n: not any(_matches(record, known[n]) for record in anchors))
        used.add(issuers[0])
        current, depth = known[issuers[0]], depth + 1


def _check_in_force(certificate: x509.Certificate, depth: int, now: dt.datetime) -> str | None:
    who = "the certificate" if depth == 0 else "the authority's certificate"
    if now < certificate.not_valid_before_utc:
        return f"{who} is not valid yet"
    if now > certificate.not_valid_after_utc:
        return f"{who} has expired"
    if depth == 0:
        return None
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return None if certificate.version is x509.Version.v1 else f"{who} is not one of an authority"
    if not constraints.ca or (constraints.path_length is not None and constraints.path_length < depth - 1):
        return f"{who} is not one of an authority for this"
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None
    return None if usage.key_cert_sign else f"{who} may not sign certificates"


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    return _signed(certificate, issuer.public_key())


def _signed(certificate: x509.Certificate, key: object) -> bool:
    """Whether the key made the certificate's signature."""
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    parameters = certificate.signature_algorithm_parameters
    digest = certificate.signature_hash_algorithm
    try:
        if isinstance(key, rsa.RSAPublicKey):
            if digest is None or parameters is None or isinstance(parameters, ec.ECDSA):
                return False
            key.verify(signature, signed, parameters, digest)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            if not isinstance(parameters, ec.ECDSA):
                return False
            key.verify(signature, signed, parameters)
        elif isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            key.verify(signature, signed)
        else:
            return False
    except (InvalidSignature, TypeError, ValueError, UnsupportedAlgorithm):
        return False
    return True


# Names


def _check_names(certificate: x509.Certificate, names: Iterable[str]) -> str | None:
    wanted = [name.lower().rstrip(".") for name in names if name]
    presented = names_of(certificate)
    if any(name_fits(pattern, name) for pattern in presented for name in wanted):
        return None
    shown = ", ".join([printable(name[:MAX_NAME_SHOWN]) for name in presented[:MAX_NAMES_SHOWN]])
    return f"the certificate is for {shown or 'nobody'}, not for {' or '.join(wanted) or 'anybody'}"


def names_of(certificate: x509.Certificate) -> list[str]:
    """DNS names of a certificate, lower case; its common name only when there are none (RFC 7672 §3.2.3)."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = [name.lower().rstrip(".") for name in extension.value.get_values_for_type(x509.DNSName)]
    except x509.ExtensionNotFound:
        found = []
    if found:
        return found
    common = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name.lower().rstrip(".") for name in common[-1:]]


def name_fits(pattern: str, name: str) -> bool:
    """RFC 6125 §6.4.3: a `*` is the whole left-most label and stands for exactly one label."""
    if pattern == name:
        return "*" not in name
    star, dot, rest = pattern.partition(".")
    if star != "*" or not dot or "." not in rest:
        return False
    label, dot, name_rest = name.partition(".")
    return bool(label) and bool(dot) and name_rest == rest
