# SPDX-License-Identifier: Apache-2.0
"""The settings, as frozen data.  Each class is one table of the TOML file; each field is one key.

Every field carries its own explanation and its limits (`setting`), from which `config_load` checks a file and
`docs/configuration.md` is made.  Nothing here reads a file, the environment or the clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

DAY_S = 86_400
DAY_US = DAY_S * 1_000_000
MIB = 1_048_576
MAX_CAP = 1_000_000_000  # messages a day; both databases can keep it


def setting(
    default: T, doc: str, *, low: float | None = None, high: float | None = None, form: str = "", secret: bool = False
) -> T:
    """A key with its explanation.

    low, high: the smallest and the largest number that makes sense.  form: which text is possible (a name in
    `config_load.FORMS`).  secret: may come from `KEY_file` or a systemd credential, and is never shown.
    """
    metadata = {"doc": doc, "low": low, "high": high, "form": form, "secret": secret}
    made: Any = field(default=default, metadata=metadata, repr=not secret)
    return made  # type: ignore[no-any-return]  # a dataclass field stands where its default is declared


def required(doc: str, *, form: str = "") -> Any:
    """A key that has no default."""
    return field(metadata={"doc": doc, "low": None, "high": None, "form": form, "secret": False})


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


class InDoubt(StrEnum):
    """What becomes of a recipient whose final dot got no answer."""

    RETRY = "retry"
    HOLD = "hold"


class Misbehaviour(StrEnum):
    """What a sandbox does instead of taking a message, so that senders can test their handling of it."""

    NONE = "none"
    GREYLIST = "greylist"
    TEMPORARY = "4xx"
    PERMANENT = "5xx"
    SLOW_DOT = "slow-dot"
    DROP_AFTER_DOT = "drop-after-dot"


class ReversePath(StrEnum):
    """Whose address is MAIL FROM towards the next hop."""

    SENDER = "sender"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The process itself."""

    hostname: str = setting(
        "localhost", "The name in the banner, in EHLO replies and in `Received:` fields.", form="hostname"
    )
    state_dir: Path = setting(
        Path("/var/lib/hepmaild"),
        "Where the embedded database, the self-made certificate and spooled content live. Relative to the settings "
        "file.",
    )
    drain_timeout_s: float = setting(
        30, "How long a stop may take: running transactions and attempts finish within it.", low=0, high=3600
    )


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where everything durable is kept."""

    url: str = setting(
        "sqlite:///hepmaild.db",
        "`sqlite:///FILE` (relative to `server.state_dir`) or `postgresql://USER:PASSWORD@HOST[:PORT]/NAME`, which may "
        "end in options such as `?sslmode=verify-full`. In the password `/` is written `%2F`, `@` `%40`, and so on.",
        form="database",
        secret=True,
    )
    migrate: Migrate = setting(
        Migrate.AUTO,
        'With `"auto"` every command first brings the schema up to date; with `"manual"` it refuses until '
        "`hepmaild db upgrade` has run.",
    )
    unit_timeout_s: float = setting(
        10, "A unit of work that has not ended by then is answered 451 / 503.", low=0.1, high=300
    )
    connections: int = setting(8, "Connections to PostgreSQL; SQLite needs none.", low=1, high=200)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The certificate of both doors."""

    certificate: str = setting(
        "",
        "PEM file with the certificate and its chain; read again when it changes and on SIGHUP. Empty: a self-made "
        "pair in `server.state_dir`.",
    )
    private_key: str = setting("", "PEM file with the certificate's private key.")


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """The SMTP submission door."""

    starttls: tuple[str, ...] = setting(
        ("[::]:587",),
        'Addresses (`"host:port"`, port 0: any free one) that begin in clear text and offer STARTTLS.',
        form="address",
    )
    implicit_tls: tuple[str, ...] = setting(
        ("[::]:465",), "Addresses that speak TLS from the first octet.", form="address"
    )
    recipients: RecipientsFrom = setting(
        RecipientsFrom.ENVELOPE,
        "Who gets the mail: the envelope, or (as the published service did) also those named in the header.",
    )
    reply: ReplyWhen = setting(
        ReplyWhen.AFTER_RELAY,
        "When the final dot is answered: after the first attempt (at most `delivery.relay_wait_s`), or as soon as "
        "the message is safely stored.",
    )
    replay_window_s: int = setting(
        600,
        "How long an equal message of a client that lost our 250 gets the first reply again; 0: never.",
        low=0,
        high=DAY_S,
    )
    max_message_bytes: int = setting(
        26_214_400, "The largest message, as EHLO's SIZE says it.", low=1000, high=1024 * MIB
    )
    trace_client_address: bool = setting(False, "Whether the `Received:` field tells the client's address.")


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """The HTTPS door."""

    listen: tuple[str, ...] = setting(("[::]:443",), "Addresses of the HTTPS door.", form="address")
    plain_listen: tuple[str, ...] = setting(
        (),
        "Plain HTTP, for a trusted reverse proxy; anyone else is only told to use HTTPS.",
        form="address",
    )
    public_url: str = setting(
        "", "The address people use, as `https://name[:port]`; empty: made from `server.hostname`.", form="url"
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Networks (CIDR) whose `X-Forwarded-*` fields are believed.", form="network"
    )
    max_request_bytes: int = setting(
        26_214_400, "The largest request; a larger one is refused before it is read.", low=65_536, high=1024 * MIB
    )
    gravatar: bool = setting(
        False, "Whether `/oauth/me` names the user's picture at gravatar.com, which then learns who logs in."
    )


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Limits that both doors share."""

    connections_per_ip: int = setting(20, "Connections at once from one IP address, per door.", low=1)
    unknown_keys_per_minute: int = setting(
        10,
        "Unknown keys from one IP address in a minute, both doors together, before its failures are slowed down. Each"
        " process counts its own.",
        low=1,
    )
    recipients_per_message: int = setting(100, "Distinct recipients of one message.", low=1, high=10_000)
    idle_timeout_s: float = setting(600, "How long an SMTP session may be silent between commands.", low=1, high=DAY_S)
    upload_bytes_per_account: int = setting(
        104_857_600,
        "What uploaded files of one account may come to; each is kept for 24 hours, and there may be 1,000 of them.",
        low=0,
    )
    backlog: int = setting(
        1_000_000,
        "Messages waiting; above it new mail gets 503 / 451. On routes of kind `mx` one counts for each destination.",
        low=1,
    )


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """The delivery pool."""

    workers: int = setting(
        64,
        "Attempts at the same time. One that waits for a slow next hop for two seconds is counted apart: there may be "
        "eight times as many of those.",
        low=1,
        high=10_000,
    )
    relay_wait_s: float = setting(10, "How long a caller waits for the first attempt.", low=0, high=300)
    retry_after_s: tuple[int, ...] = setting(
        (60, 300, 900, 1800, 3600, 7200, 14400),
        "Waiting times between attempts; after the last one, the last one again.",
        low=1,
        high=7 * DAY_S,
    )
    expire_after_s: int = setting(
        345_600, "When a message that still waits is given up and refunded.", low=60, high=30 * DAY_S
    )
    final_dot_timeout_s: float = setting(
        600, "How long the next hop may take to answer the final dot (RFC 5321 §4.5.3.2.6).", low=0.1, high=DAY_S
    )
    attempt_timeout_s: float = setting(
        900, "No attempt takes longer; must be longer than final_dot_timeout_s.", low=0.2, high=DAY_S
    )
    lease_s: float = setting(
        60,
        "Several processes: the work of one that stopped saying it is alive is taken over after this.",
        low=1,
        high=DAY_S,
    )
    in_doubt: InDoubt = setting(
        InDoubt.RETRY,
        "A recipient whose final dot got no answer may have the message: try again with the same Message-ID, or hold "
        "it until somebody decides.",
    )
    suppress_after: int = setting(
        3,
        "Refusals for good (5.1.1 and its like) after which an address is suppressed for the account; 0: never.",
        low=0,
    )
    suppress_days: float = setting(14, "How long a suppressed address stays so.", low=0.001, high=3650)
    body_days: int = setting(0, "Days for which a finished message's content is kept; 0: not at all.", low=0, high=3650)


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How names are looked up, for routes of kind `mx` and for checks."""

    servers: tuple[str, ...] = setting(
        (), 'Name servers as `"address"` or `"address:port"`; empty: those of the system.', form="nameserver"
    )
    timeout_s: float = setting(3, "How long one server may take to answer.", low=0.1, high=60)
    lifetime_s: float = setting(
        12, "How long one question may take, all servers and tries together.", low=0.1, high=300
    )
    trust_ad: bool = setting(
        False,
        "Whether the servers validate DNSSEC and the way to them is safe (such as loopback); without it there is no "
        "DANE.",
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Figures for Prometheus, on a listener of their own."""

    listen: tuple[str, ...] = setting(
        (), 'Addresses of plain HTTP that answer `GET /metrics`, as in `"127.0.0.1:9464"`; empty: none.', form="address"
    )


@dataclass(frozen=True, slots=True)
class OwnSmtpSettings:
    """SMTP servers that accounts bring along."""

    allow_private_addresses: bool = setting(
        False,
        "Whether an account's server may be at a private, loopback or link-local address. Whoever may send mail could "
        "otherwise make this machine connect to what only it can reach; for a service among friends it is handy.",
    )
    tls_ca: str = setting(
        "", "PEM file with the authority to trust for them instead of the system's; read anew at a reload."
    )
    connections: int = setting(5, "Connections at once to one of them, of each process.", low=1, high=1000)


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A named way out."""

    name: str = required("What senders and the log call it.", form="name")
    kind: RouteKind = required(
        "`smtp`: a next hop that takes everything; `mx`: straight to the recipients' servers; `sandbox`: keep each "
        "message as a file instead of sending it."
    )
    host: str = setting("", "The next hop's name or address (kind `smtp`).", form="host")
    fallback_hosts: tuple[str, ...] = setting(
        (),
        "Kind `smtp`: `host` or `host:port` of further next hops, tried in order when the ones before cannot be "
        "reached or say 4yz before the message begins.",
        form="next hop",
    )
    port: int = setting(
        0,
        "Its port; 0: 25 for kind `mx`, else 465 with implicit TLS, 25 with opportunistic or none, 587 with starttls.",
        low=0,
        high=65_535,
    )
    tls: TlsMode = setting(
        TlsMode.STARTTLS,
        "Kind `smtp`: TLS towards the next hop; with `starttls` and `implicit` its certificate must be good. "
        "Kind `mx` decides by MTA-STS and DANE, and else uses what is offered.",
    )
    mta_sts: bool = setting(True, "Kind `mx`: obey the MTA-STS policies of destinations (RFC 8461).")
    dane: bool = setting(True, "Kind `mx`: obey TLSA records (RFC 7672), when `dns.trust_ad` lets us believe them.")
    ipv6: bool = setting(True, "Kind `mx`: use IPv6 addresses too, and first.")
    tls_ca: str = setting("", "PEM file with the authority to trust instead of the system's; read anew at a reload.")
    username: str = setting("", "Log in with this name; empty: no login.")
    password: str = setting("", "The password for it.", secret=True)
    connections: int = setting(
        20, "Connections at once; kind `mx`: to each destination, beginning with two.", low=1, high=10_000
    )
    messages_per_second: float = setting(
        0, "No more than this leave by the route in a second, of each process; 0: no limit.", low=0
    )
    messages_per_connection: int = setting(100, "Messages sent over one connection before it is closed.", low=1)
    reverse_path: ReversePath = setting(
        ReversePath.SENDER,
        "MAIL FROM towards the next hop: the sender's address, or what the client gave.",
    )
    directory: str = setting(
        "", "Kind `sandbox`: where the `.eml` files go, relative to `server.state_dir`; empty: `sandbox`."
    )
    misbehave: Misbehaviour = setting(
        Misbehaviour.NONE,
        "Kind `sandbox`: refuse the first attempt only (`greylist`), every one (`4xx`, `5xx`), answer the final dot "
        "late (`slow-dot`), or keep the message and break off without an answer (`drop-after-dot`).",
    )
    misbehave_s: float = setting(30, "How long `greylist` refuses and `slow-dot` waits.", low=0, high=DAY_S)


@dataclass(frozen=True, slots=True)
class SenderSettings:
    """A global sender address, which every account may use."""

    address: str = required("The address in From.", form="email")
    route: str = required("The route that its mail leaves by.", form="name")
    default: bool = setting(False, "Whether it is used when a message has no From; for one sender at most.")
    daily_cap: int = setting(0, "Messages in any rolling 24 hours; 0: no limit.", low=0, high=MAX_CAP)


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits of an account."""

    calls_per_minute: int = setting(
        120, "Calls of one key in any 60 seconds, both doors together.", low=1, high=1_000_000_000
    )
    messages_per_day: int = setting(0, "Messages accepted in a day (UTC); 0: no limit.", low=0)
    log_days: int = setting(30, "Days for which the log is kept.", low=1, high=3650)
    api_keys: int = setting(15, "Keys an account may have.", low=0)
    smtp_servers: int = setting(5, "SMTP servers of its own an account may have.", low=0)


STANDARD_PLAN = "standard"
SHIPPED_PLANS = {
    STANDARD_PLAN: Plan(),
    "free": Plan(calls_per_minute=5, messages_per_day=100, log_days=7, api_keys=15, smtp_servers=1),
    "pro": Plan(calls_per_minute=30, messages_per_day=2000, log_days=30, api_keys=15, smtp_servers=10),
}


def _shipped_plans() -> dict[str, Plan]:
    return dict(SHIPPED_PLANS)


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
    dns: DnsSettings = DnsSettings()
    metrics: MetricsSettings = MetricsSettings()
    own_smtp: OwnSmtpSettings = OwnSmtpSettings()
    route: tuple[RouteSettings, ...] = ()
    sender: tuple[SenderSettings, ...] = ()
    plans: dict[str, Plan] = field(default_factory=_shipped_plans)


def parse_address(text: str) -> tuple[str, int]:
    """`"host:port"`, `"[::1]:port"` or `"*:port"` as host and port; raises ValueError with what is allowed.

    An empty host or `*` is every address of the machine and comes back as `::`.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError('"host:port"; an IPv6 address stands in brackets, as in "[::1]:587"')
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError('"host:port" with a port from 0 to 65535, as in "127.0.0.1:587" or "[::]:587"')
    if any(ch.isspace() or not ch.isprintable() for ch in host):
        raise ValueError('"host:port" without spaces')
    return ("::" if host in {"", "*"} else host), int(port)


def dashboard_url(settings: Settings) -> str:
    """How people reach the dashboard: `http.public_url`, else the name of this server and its first HTTPS port.

    Without a slash at its end.
    """
    if settings.http.public_url:
        return settings.http.public_url.rstrip("/")
    port = next((parse_address(address)[1] for address in settings.http.listen), 443)
    return f"https://{settings.server.hostname}" + ("" if port in (0, 443) else f":{port}")


def format_address(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets: as logs, URLs and the settings write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
