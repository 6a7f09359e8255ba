# SPDX-License-Identifier: Apache-2.0
"""Checks of the machine: free disk, clock, certificate, the file with the secrets."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import trio
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from hepmaild.config import RouteKind, Settings
from hepmaild.counted import counted
from hepmaild.doctor.checks import Check, fail, ok, skipped, warn
from hepmaild.storage import health, sealed
from hepmaild.storage.messages import SPOOL_NAME
from hepmaild.storage.store import Store, sqlite_file
from hepmaild.tls import no_password, why_unusable
from hepmaild.vault import FILE_NAME, HEAD_OCTETS, Vault

MIB = 1 << 20
DISK_FAIL_OCTETS, DISK_WARN_OCTETS = 200 * MIB, 1024 * MIB
DISK_WARN_SHARE = 0.05
CERTIFICATE_WARN_DAYS = 14
FIRST_YEAR, LAST_YEAR = 2025, 2100
DRIFT_WARN_S, DRIFT_FAIL_S = 5.0, 60.0
SET_THE_CLOCK = "have the machine's clock set by NTP (`timedatectl set-ntp true`), then restart the daemon"


async def in_thread(fn: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    """Files may hang (a network's, a dying disk's): then the thread is left behind."""
    return await trio.to_thread.run_sync(fn, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))


# Disk


def disk(settings: Settings) -> list[Check]:
    """Free space and free inodes of every file system on which something of ours grows."""
    volumes: dict[int, list[Path]] = {}
    for folder in dict.fromkeys(map(_nearest, _growing(settings))):
        volumes.setdefault(folder.stat().st_dev, []).append(folder)
    return [_volume(folders) for folders in volumes.values()]


def _growing(settings: Settings) -> Iterator[Path]:
    """The folders; they may be mounts of their own, or links to elsewhere."""
    state_dir = settings.server.state_dir
    yield state_dir
    yield state_dir / SPOOL_NAME
    with contextlib.suppress(ValueError):  # the check of the database says it
        file = sqlite_file(settings.database.url, state_dir)
        if file is not None:
            yield file.resolve().parent
    for route in settings.route:
        if route.kind is RouteKind.SANDBOX:
            yield state_dir / (route.directory or "sandbox")


def _nearest(folder: Path) -> Path:
    """The folder, or the one in which it will be made."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _volume(folders: Sequence[Path]) -> Check:
    """folders: all on one file system; the first is the foremost."""
    locked = next((folder for folder in folders if not os.access(folder, os.W_OK | os.X_OK)), None)
    if locked is not None:
        return fail("disk", f"{locked} cannot be written", f"give the daemon's user the right to write in {locked}")
    found = os.statvfs(folders[0])
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    share = free / size if size else 1.0
    apart = [folder for folder in folders[1:] if folders[0] not in folder.parents]
    said = f"{show_octets(free)} of {show_octets(size)} are free in {', '.join(map(str, (folders[0], *apart)))}"
    todo = "free space, or move the folder to a larger disk: without space no mail is accepted"
    if free < DISK_FAIL_OCTETS:
        return fail("disk", said, todo)
    if free < DISK_WARN_OCTETS or share < DISK_WARN_SHARE:
        return warn("disk", said, todo)
    if found.f_files and found.f_favail < found.f_files * DISK_WARN_SHARE:
        return warn("disk", f"{said}, but only {found.f_favail:,} more files fit there", "remove files nobody needs")
    return ok("disk", said)


def show_octets(octets: float) -> str:
    """`999 B`, `2 kB`, `140 MB`: by thousands, as pages do it."""
    for unit in ("B", "kB", "MB", "GB"):
        if octets < 1000:
            return f"{octets:.0f} {unit}"
        octets /= 1000
    return f"{octets:,.1f} TB"


# Clock


async def clock(store: Store | None, now_us: Callable[[], int]) -> list[Check]:
    """The machine's clock: plausible, as the daemon took it at its start, and as PostgreSQL has it."""
    system_us = time.time_ns() // 1000
    at = datetime.fromtimestamp(system_us / 1e6, UTC)
    said = f"{at:%Y-%m-%d %H:%M:%S} UTC"
    if not FIRST_YEAR <= at.year <= LAST_YEAR:
        return [fail("clock", f"it says {said}", SET_THE_CLOCK)]
    step_s = (system_us - now_us()) / 1e6
    if abs(step_s) > DRIFT_WARN_S:
        return [warn("clock", f"{said}; it was set by {step_s:+.1f} s since the daemon began", "restart the daemon")]
    if store is None:
        return [ok("clock", said)]
    asked_us = now_us()
    theirs_us, newest_us = await store.read(health.clock)
    if newest_us is not None and newest_us > now_us() + DRIFT_FAIL_S * 1e6:
        ahead_s = (newest_us - now_us()) / 1e6
        return [fail("clock", f"{said}, but the newest event is {ahead_s:,.0f} s ahead of it", SET_THE_CLOCK)]
    if theirs_us is None:
        return [ok("clock", said)]
    drift_s = ((asked_us + now_us()) / 2 - theirs_us) / 1e6
    said = f"{said}; {abs(drift_s):.1f} s {'ahead of' if drift_s > 0 else 'behind'} the clock of PostgreSQL"
    if abs(drift_s) > DRIFT_FAIL_S:
        return [fail("clock", said, SET_THE_CLOCK)]
    return [warn("clock", said, SET_THE_CLOCK) if abs(drift_s) > DRIFT_WARN_S else ok("clock", said)]


# Secrets


async def secrets(settings: Settings, store: Store | None) -> Sequence[Check]:
    """The file that opens the secrets in the database: there, for its owner's eyes only, with the right keys."""
    heads = {} if store is None else await store.read(sealed.heads, HEAD_OCTETS)
    vault = Vault(settings.server.state_dir)

    def look() -> list[Check]:
        if not vault.path.exists() and not heads:
            return [ok("secrets", f"{FILE_NAME} is made with the first secret; there is none yet")]
        keys = vault.read()
        vault.check(list(heads))
        sealed_there = counted(sum(heads.values()), "secret")
        return [
            ok("secrets", f"{vault.path}: {counted(len(keys), 'key')}; of the database {sealed_there} can be opened")
        ]

    return await in_thread(look)


# Certificate


def certificate_files(settings: Settings) -> tuple[Path, Path, bool]:
    """Certificate, private key, and whether we made them ourselves."""
    if settings.tls.certificate:
        return Path(settings.tls.certificate), Path(settings.tls.private_key), False
    folder = settings.server.state_dir
    return folder / "self-made-certificate.pem", folder / "self-made-key.pem", True


def certificate(settings: Settings, now: datetime) -> list[Check]:
    """The certificate of both doors: valid now and for a while, for the names people use, with its own key."""
    path, key, is_self_made = certificate_files(settings)
    name = "certificate"
    if is_self_made and not path.exists():
        return [skipped(name, f"{path} is made when the daemon starts for the first time")]
    replace = f"put a good certificate and its key at {path} and {key}; the daemon takes them within seconds"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, key, password=no_password)
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return [fail(name, f"{path} and {key} cannot be used: {why_unusable(path, key, error)}", replace)]
    days = (found.not_valid_after_utc - now).total_seconds() / 86_400
    said = f"{path}: for {', '.join(_names(found)) or 'no name'}, until {found.not_valid_after_utc:%Y-%m-%d}"
    if now < found.not_valid_before_utc:
        return [fail(name, f"{said}; not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", SET_THE_CLOCK)]
    if days <= 0:
        return [fail(name, f"{said}: it has expired", replace)]
    missing = [wanted for wanted in _wanted(settings) if not _covers(_names(found), wanted)]
    if missing:
        return [fail(name, f"{said}; it is not good for {', '.join(missing)}", replace)]
    if is_self_made:
        trust = "set tls.certificate and tls.private_key to a pair from an authority that your clients trust"
        return [warn(name, f"{said}; self-made: clients must be told to trust it", trust)]
    if days < CERTIFICATE_WARN_DAYS:
        return [warn(name, f"{said}: {days:.0f} days are left", "renew it; see why that has not happened by itself")]
    return [ok(name, f"{said}, {days:.0f} days are left")]


def _wanted(settings: Settings) -> list[str]:
    names = [settings.server.hostname, urlsplit(settings.http.public_url).hostname or ""]
    return list(dict.fromkeys(name.lower().rstrip(".") for name in names if name))


def _names(found: x509.Certificate) -> list[str]:
    try:
        value = found.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    except x509.ExtensionNotFound:
        return []
    assert isinstance(value, x509.SubjectAlternativeName)
    return [str(name.value).lower() for name in value if isinstance(name, x509.DNSName | x509.IPAddress)]


def _covers(names: Sequence[str], wanted: str) -> bool:
    """RFC 6125 §6.4: a wildcard stands for one whole label, the first one."""
    try:
        return str(ipaddress.ip_address(wanted)) in names
    except ValueError:
        return wanted in names or f"*.{wanted.partition('.')[2]}" in names
