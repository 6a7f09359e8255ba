# SPDX-License-Identifier: Apache-2.0
"""DKIM key pairs: made, sealed, opened (RFC 6376 §3.3, RFC 8463 §3).  Private keys are PKCS #8 in DER, never a file."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)

from hepmaild.errors import SecretsUnavailable
from hepmaild.mail.dkim import ED25519, RSA, Signer
from hepmaild.vault import Place

RSA_BITS = 2048  # RFC 8301 §3.2; more does not fit into one TXT string set that every DNS front end takes


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A fresh pair.  private_key: to be sealed at once.  public_key: the value of `p=`."""

    algorithm: str
    public_key: str
    private_key: bytes = field(repr=False)


def make_pair(algorithm: str) -> KeyPair:
    """A new pair from the system's secure random source.  RSA takes about 0.1 s."""
    if algorithm == RSA:
        private: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = rsa.generate_private_key(65537, RSA_BITS)
        public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    elif algorithm == ED25519:
        private = ed25519.Ed25519PrivateKey.generate()
        public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    else:
        raise ValueError(f"no algorithm: {algorithm!r}")
    octets = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return KeyPair(algorithm, base64.b64encode(public).decode("ascii"), octets)


def place_of(domain: str, selector: str) -> Place:
    """What a sealed private key is bound to."""
    return Place("dkim_key", "sealed_key", (domain, selector))


def make_signer(domain: str, selector: str, algorithm: str, private_key: bytes) -> Signer:
    """What signs with this key.  Raises `SecretsUnavailable` when it is none, or of another kind.

    The parts of an RSA key are not checked again, which takes 30 ms: nobody could change them in a sealed value.
    """
    try:
        key = load_der_private_key(private_key, None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError):
        key = None
    if algorithm == RSA and isinstance(key, rsa.RSAPrivateKey):
        return Signer(domain, selector, algorithm, _RsaSign(key))
    if algorithm == ED25519 and isinstance(key, ed25519.Ed25519PrivateKey):
        return Signer(domain, selector, algorithm, _Ed25519Sign(key))
    raise SecretsUnavailable(f"the DKIM key {selector} of {domain} is not of its kind: make it anew")


@dataclass(frozen=True, slots=True)
class _RsaSign:
    """0.2 ms, and it keeps the interpreter: a thread would gain nothing."""

    key: rsa.RSAPrivateKey = field(repr=False)

    def __call__(self, octets: bytes) -> bytes:
        return self.key.sign(octets, padding.PKCS1v15(), hashes.SHA256())


@dataclass(frozen=True, slots=True)
class _Ed25519Sign:
    """0.02 ms.  RFC 8463 §3: PureEdDSA over the SHA-256."""

    key: ed25519.Ed25519PrivateKey = field(repr=False)

    def __call__(self, octets: bytes) -> bytes:
        return self.key.sign(hashlib.sha256(octets).digest())
