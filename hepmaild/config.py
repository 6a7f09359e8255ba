# SPDX-License-Identifier: Apache-2.0
"""The settings, as frozen data.  Each class is one table of the TOML file; each field is one key."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class RecipientsFrom(StrEnum):
    """Where SMTP recipients come from."""

    ENVELOPE = "envelope"
    ENVELOPE_AND_HEADERS = "envelope+headers"


class ReplyWhen(StrEnum):
    """When the reply to the final dot is given."""

    AFTER_RELAY = "after-relay"
    ON_COMMIT = "on-commit"


class Migrate(StrEnum):
    """Whether commands bring the schema up to date by themselves."""

    AUTO = "auto"
    MANUAL = "manual"


class RouteKind(StrEnum):
    """How a route gets rid of mail."""

    SMTP = "smtp"
    MX = "mx"
    SANDBOX = "sandbox"


class TlsMode(StrEnum):
    """TLS towards a next hop."""

    STARTTLS = "starttls"
    IMPLICIT = "implicit"
    OPPORTUNISTIC = "opportunistic"
    NONE = "none"


class ReversePath(StrEnum):
    """Whose address is MAIL FROM towards the next hop."""

    SENDER = "sender"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    hostname: str = "localhost"
    state_dir: Path = Path("/var/lib/hepmaild")
    drain_timeout_s: float = 30


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    url: str = "sqlite:///hepmaild.db"
    migrate: Migrate = Migrate.AUTO
    unit_timeout_s: float = 10  # a unit that has not ended by then is answered 451 / 503
    connections: int = 8  # PostgreSQL only


@dataclass(frozen=True, slots=True)
class TlsSettings:
    certificate: str = ""
    private_key: str = ""


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    starttls: tuple[str, ...] = ("[::]:587",)
    implicit_tls: tuple[str, ...] = ("[::]:465",)
    recipients: RecipientsFrom = RecipientsFrom.ENVELOPE
    reply: ReplyWhen = ReplyWhen.AFTER_RELAY
    replay_window_s: int = 600
    max_message_bytes: int = 26_214_400
    trace_client_address: bool = False


@dataclass(frozen=True, slots=True)
class HttpSettings:
    listen: tuple[str, ...] = ("[::]:443",)
    plain_listen: tuple[str, ...] = ()
    public_url: str = ""
    trusted_proxies: tuple[str, ...] = ()
    max_request_bytes: int = 26_214_400


@dataclass(frozen=True, slots=True)
class LimitSettings:
    connections_per_ip: int = 20
    unknown_keys_per_minute: int = 10
    recipients_per_message: int = 100
    idle_timeout_s: float = 600
    backlog: int = 1_000_000


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    workers: int = 64
    relay_wait_s: float = 10
    retry_after_s: tuple[int, ...] = (60, 300, 900, 1800, 3600, 7200, 14400)
    expire_after_s: int = 345_600
    final_dot_timeout_s: float = 600
    lease_s: float = 900  # longer than any attempt; a dead process's work is taken over when it ends
    body_days: int = 0  # how long a finished message's content is kept; 0: not at all


@dataclass(frozen=True, slots=True)
class RouteSettings:
    name: str
    kind: RouteKind
    host: str = ""
    port: int = 0
    tls: TlsMode = TlsMode.STARTTLS
    tls_ca: str = ""  # PEM file with the CA to trust; empty: the system's
    username: str = ""
    password: str = field(default="", repr=False)
    connections: int = 20
    messages_per_connection: int = 100
    reverse_path: ReversePath = ReversePath.SENDER
    directory: str = ""  # sandbox: where the .eml files go, relative to state_dir


@dataclass(frozen=True, slots=True)
class SenderSettings:
    address: str
    route: str
    default: bool = False
    daily_cap: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    calls_per_minute: int = 120
    messages_per_day: int = 0
    log_days: int = 30
    api_keys: int = 15
    smtp_servers: int = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything.  Components get the slice they need, never the whole."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    tls: TlsSettings = TlsSettings()
    smtp: SmtpSettings = SmtpSettings()
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    delivery: DeliverySettings = DeliverySettings()
    route: tuple[RouteSettings, ...] = ()
    sender: tuple[SenderSettings, ...] = ()
    plans: dict[str, Plan] = field(default_factory=dict)
