# SPDX-License-Identifier: Apache-2.0
"""Lines to paste: how an account's own programs send by this service.  Pure."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hepmaild.config import Settings, dashboard_url, parse_address
from hepmaild.http.quick import SEND_PATH

NO_KEY = "YOUR_API_KEY"
SUBMISSION_PORT, SUBMISSIONS_PORT = 587, 465
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Snippet:
    """name: of the tool.  text: to paste.  where: to which file, "": into a shell."""

    name: str
    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """How this service is reached.  port: with STARTTLS.  tls_port: with TLS from the start; 0: there is none.

    is_self_made: its certificate is, so that clients must be told to take it.
    """

    url: str
    host: str
    port: int
    tls_port: int
    is_self_made: bool


def place_of(settings: Settings, public_url: str) -> Place:
    """As the settings say."""
    host = settings.server.hostname
    port = parse_address(settings.smtp.starttls[0])[1] if settings.smtp.starttls else 0
    tls_port = parse_address(settings.smtp.implicit_tls[0])[1] or SUBMISSIONS_PORT if settings.smtp.implicit_tls else 0
    url = public_url.rstrip("/") or dashboard_url(settings)
    return Place(url, host, port or SUBMISSION_PORT, tls_port, not settings.tls.certificate)


def make_snippets(place: Place, sender: str, key: str = NO_KEY, to: str = "you@example.com") -> list[Snippet]:
    """curl, swaks, nodemailer, Django, Laravel, Postfix, with everything filled in."""
    fields = {"from": sender, "to": to, "subject": "Hello", "text": "It works."}
    return [
        Snippet("curl", curl(place, fields, key)),
        Snippet("swaks", _swaks(place, sender, key, to)),
        Snippet("nodemailer", _nodemailer(place, sender, key, to), "send.mjs"),
        Snippet("Django", _django(place, sender, key), "settings.py"),
        Snippet("Laravel", _laravel(place, sender, key), ".env"),
        Snippet("Postfix", _postfix(place, key), "main.cf"),
    ]


def curl(place: Place, fields: Mapping[str, Any], key: str = NO_KEY) -> str:
    """The call that sends `fields` (send-api.md)."""
    insecure = " --insecure" if place.is_self_made else ""
    return (
        f"curl -sS{insecure} {shlex.quote(place.url + SEND_PATH)} \\\n"
        f"  -H {shlex.quote('Authorization: Bearer ' + key)} \\\n"
        f"  -H 'Content-Type: application/json' \\\n"
        f"  -d {shlex.quote(json.dumps(fields, ensure_ascii=False))}"
    )


def _swaks(place: Place, sender: str, key: str, to: str) -> str:
    verify = "" if place.is_self_made else " --tls-verify"
    return (
        f"swaks --server {shlex.quote(place.host)} --port {place.port} --tls{verify} \\\n"
        f"  --auth PLAIN --auth-user api --auth-password {shlex.quote(key)} \\\n"
        f"  --from {shlex.quote(sender)} --to {shlex.quote(to)} --header 'Subject: Hello'"
    )


def _nodemailer(place: Place, sender: str, key: str, to: str) -> str:
    options = [
        f"host: {json.dumps(place.host)}",
        f"port: {place.port}",
        "requireTLS: true",
        f'auth: {{ user: "api", pass: {json.dumps(key)} }}',
    ]
    if place.is_self_made:
        options.append("tls: { rejectUnauthorized: false }")
    inside = ",\n  ".join(options)
    mail = f'from: {json.dumps(sender)}, to: {json.dumps(to)},\n  subject: "Hello", text: "It works."'
    return (
        'import nodemailer from "nodemailer";\n'
        f"const mail = nodemailer.createTransport({{\n  {inside}\n}});\n"
        f"console.log((await mail.sendMail({{\n  {mail}\n}})).response);"
    )


def _django(place: Place, sender: str, key: str) -> str:
    return (
        f"EMAIL_HOST = {json.dumps(place.host)}\nEMAIL_PORT = {place.port}\nEMAIL_USE_TLS = True\n"
        f'EMAIL_HOST_USER = "api"\nEMAIL_HOST_PASSWORD = {json.dumps(key)}\n'
        f"DEFAULT_FROM_EMAIL = {json.dumps(sender)}"
    )


def _laravel(place: Place, sender: str, key: str) -> str:
    # With STARTTLS it would tell its key in clear wherever somebody in between leaves the offer out.
    scheme, port = ("MAIL_SCHEME=smtps\n", place.tls_port) if place.tls_port else ("", place.port)
    return (
        f"MAIL_MAILER=smtp\n{scheme}MAIL_HOST={place.host}\nMAIL_PORT={port}\n"
        f'MAIL_USERNAME=api\nMAIL_PASSWORD={key}\nMAIL_FROM_ADDRESS="{sender}"'
    )


def _postfix(place: Place, key: str) -> str:
    relay = f"[{place.host}]:{place.port}"
    level = "encrypt" if place.is_self_made else f"secure\nsmtp_tls_CAfile = {AUTHORITIES}"
    return (
        f"relayhost = {relay}\nsmtp_tls_security_level = {level}\nsmtp_sasl_auth_enable = yes\n"
        f"smtp_sasl_security_options = noanonymous\n"
        f"smtp_sasl_password_maps = inline:{{ {{ {relay} = api:{key} }} }}"
    )
