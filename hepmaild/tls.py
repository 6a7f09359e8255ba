# SPDX-License-Identifier: Apache-2.0
"""TLS of both doors: contexts, the self-made certificate, and new certificates without a restart.

`ServerTls` holds one `SSLContext` for SMTP and one for HTTPS, and makes new ones of a new certificate: a context keeps
one for each kind of key, so that one of another kind would still be shown.  Open connections keep what they have.
"""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from hepmaild.config import TlsSettings
from hepmaild.listening import OUT_OF
from hepmaild.private_files import write_private

log = structlog.get_logger()

SELF_MADE_DAYS = 825
RENEW_BEFORE = timedelta(days=30)
WATCH_INTERVAL_S = 10.0
# A context keeps one key for all its session tickets.  Whoever gets it can read every TLS 1.2 connection that was taken
# down, forward secrecy or not, so it may not live as long as the certificate (RFC 9325 §3.4).
TICKET_KEY_LIFE_S = 86_400.0
# TLS 1.2: forward secrecy and authenticated encryption only (RFC 9325 §4.2); 1.3 has no others.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"

Stamp = tuple[tuple[int, ...], ...]


def new_context(alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """An empty server context: TLS 1.2 and 1.3, no renegotiation, no compression, session tickets by a key of its own.

    alpn: the protocols to offer (RFC 7301); none for SMTP.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


class ServerTls:
    """The contexts of the two doors, and the files they come from.

    smtp: for STARTTLS and implicit TLS.  http: offers h2 and http/1.1.  Ask for each handshake: `reload` puts others in
    their place.  Raises OSError, which names the files, when the first load fails.
    """

    smtp: ssl.SSLContext
    http: ssl.SSLContext
    _ends_at: datetime | None  # of the one in use: the watch reads no file that has not changed

    def __init__(self, settings: TlsSettings, *, state_dir: Path, hostname: str) -> None:
        self._hostname = hostname
        self._is_self_made = not settings.certificate
        if self._is_self_made:
            self.certificate = state_dir / "self-made-certificate.pem"
            self.private_key = state_dir / "self-made-key.pem"
            self._renew_self_made()
        else:
            self.certificate, self.private_key = Path(settings.certificate), Path(settings.private_key)
        self._stamp = self._look()
        self._load()

    def reload(self) -> bool:
        """Read the files again.  Broken or missing ones are logged and change nothing; whether it went well."""
        stamp = self._look()
        try:
            if self._is_self_made:
                self._renew_self_made()
                stamp = self._look()
            self._load()
        except (OSError, ValueError) as error:
            if not _is_shortage(error.__cause__ or error):
                self._stamp = stamp  # warned once for each change, not at every look
            log.warning("certificate_not_loaded", file=str(self.certificate), error=str(error), kept="the previous one")
            return False
        self._stamp = stamp
        log.info("certificate_loaded", file=str(self.certificate), expires_at=self._ends_at)
        return True

    def reload_if_changed(self) -> bool:
        """Reload when a file is another one than at the last look; whether a new certificate is in use."""
        due = self._ends_at is not None and self._is_self_made and self._ends_at - datetime.now(UTC) < RENEW_BEFORE
        return (due or self._look() != self._stamp) and self.reload()

    async def watch(self, interval_s: float = WATCH_INTERVAL_S) -> None:
        """Look at the files every `interval_s` and load what changed; once a day make new contexts in any case.

        Runs until cancelled; safe to cancel.
        """
        made_at = trio.current_time()
        while True:
            await trio.sleep(interval_s)
            if self.reload_if_changed():
                made_at = trio.current_time()
            elif trio.current_time() - made_at >= TICKET_KEY_LIFE_S:
                with contextlib.suppress(OSError):  # the files are broken, as was said when they became so
                    self._load()
                    made_at = trio.current_time()

    def expires_at(self) -> datetime:
        """When the certificate on disk ends (UTC).  Raises OSError or ValueError when it cannot be read."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).not_valid_after_utc

    def _load(self) -> None:
        smtp, http = new_context(), new_context(("h2", "http/1.1"))
        try:
            for context in (smtp, http):
                context.load_cert_chain(self.certificate, self.private_key, password=no_password)
            ends_at = self._end()
        except (OSError, ValueError) as error:
            raise OSError(
                f"the certificate {self.certificate} and its key {self.private_key} cannot be used: "
                f"{why_unusable(self.certificate, self.private_key, error)}; tls.certificate and tls.private_key must "
                "name PEM files that belong together, the key without a passphrase, readable by hepmaild's user"
            ) from error
        self.smtp, self.http, self._ends_at = smtp, http, ends_at

    def _end(self) -> datetime | None:
        """As `expires_at`; None for what OpenSSL alone can read.  Raises OSError."""
        try:
            return self.expires_at()
        except ValueError:
            return None

    def _look(self) -> Stamp:
        return tuple(_stat(path) for path in (self.certificate, self.private_key))

    def _renew_self_made(self) -> None:
        try:
            fine = self.private_key.is_file() and self.expires_at() - datetime.now(UTC) >= RENEW_BEFORE
            fine = fine and _names_of(self.certificate.read_bytes()) == _wanted_names(self._hostname)
            fine = fine and _belong_together(self.certificate, self.private_key)
        except (OSError, ValueError, x509.ExtensionNotFound) as error:
            if _is_shortage(error):
                raise  # it may be as good as it was
            fine = False
        if not fine:
            certificate, key = make_self_signed(self._hostname, datetime.now(UTC))
            write_private(self.private_key, key)
            write_private(self.certificate, certificate)
            log.info("certificate_made", file=str(self.certificate), hostname=self._hostname)


def make_self_signed(hostname: str, now: datetime) -> tuple[bytes, bytes]:
    """A certificate (ECDSA P-256) for `hostname`, localhost, 127.0.0.1 and ::1, and its key, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname[:64])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # a client's clock may be a little behind
        .not_valid_after(now + timedelta(days=SELF_MADE_DAYS))
        .add_extension(x509.SubjectAlternativeName(_wanted_names(hostname)), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), pem


def _key_usage() -> x509.KeyUsage:
    # A client that is told to trust exactly this certificate treats it as its own authority, hence key_cert_sign.
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _wanted_names(hostname: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    try:
        names.append(x509.IPAddress(ipaddress.ip_address(hostname)))
    except ValueError:
        names.append(x509.DNSName(hostname.rstrip(".")))
    if hostname != "localhost":
        names.append(x509.DNSName("localhost"))
    return [*names, *(x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1"))]


def _names_of(pem: bytes) -> list[x509.GeneralName]:
    certificate = x509.load_pem_x509_certificate(pem)
    return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)


def why_unusable(certificate: Path, key: Path, error: OSError | ValueError) -> str:
    """What `load_cert_chain` failed at, in words: its own name no file."""
    for path, what, mark in (
        (certificate, "certificate", b"-----BEGIN CERTIFICATE-----"),
        (key, "private key", b"PRIVATE KEY-----"),
    ):
        try:
            content = path.read_bytes()
        except OSError as failed:
            return f"{path}: {failed.strerror}"
        if mark not in content:
            return f"there is no {what} in {path}"
    if not isinstance(error, ssl.SSLError):
        return str(error)
    is_stranger = error.reason == "KEY_VALUES_MISMATCH"
    return "they do not fit together" if is_stranger else f"OpenSSL cannot read them ({error.reason or error})"


def _belong_together(certificate: Path, key: Path) -> bool:
    """Two processes that began at once in a new state_dir may each have written one of the files."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=no_password)
    except ssl.SSLError:
        return False
    return True


def no_password() -> str:
    """For `load_cert_chain`: without it OpenSSL would ask on the terminal, and a daemon would wait for ever."""
    raise ValueError("the private key is encrypted: a daemon needs one without a passphrase")


def _is_shortage(error: BaseException) -> bool:
    """Whether nothing could be opened just now.  OpenSSL's errors have numbers of their own."""
    return isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno in OUT_OF


def _stat(path: Path) -> tuple[int, ...]:
    """What changes with the file, and with who may read it (chmod and chown change the ctime alone)."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
