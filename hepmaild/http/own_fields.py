# SPDX-License-Identifier: Apache-2.0
"""The fields of `POST /v1/emails` (own-smtp-api.md): what is there, by which server it leaves, as whom.  Pure.

The order of the checks is the contract's: input, server, From.  What both send calls have in common is read by
`fields`, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import msgspec

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.body import load_object
from hepmaild.http.fields import Wanted, check_fields, decode_attachments
from hepmaild.http.shapes import (
    MAILBOX,
    Address,
    Attachments,
    Line,
    MaybeAddress,
    ReplyTo,
    SendRequest,
    TemplateId,
    TemplateKey,
    Variables,
    described,
)
from hepmaild.http.typed import Shape
from hepmaild.mail.address import key_of, parse_mailbox
from hepmaild.mail.content import Content
from hepmaild.mail.sizes import MAX_ATTACHMENTS
from hepmaild.mail.submission import Mailbox
from hepmaild.storage.smtp_servers import ServerRow


class OwnSendRequest(msgspec.Struct, rename="camel"):
    """A message to be sent by one of the account's own SMTP servers.  Unknown members are ignored."""

    smtp_id: Annotated[
        Annotated[str, described(format="smtp-server-id")] | None,
        described("The SMTP server, by its id; left out: the account's default server."),
    ] = None
    sender: Annotated[
        Annotated[str, described(format="server-address", pattern=MAILBOX)] | None,
        described("The server's user name or address; a display name is allowed.", "you@example.com"),
    ] = msgspec.field(name="from", default=None)
    to: Annotated[
        Address | Annotated[list[Address], described(minItems=1)] | None,
        described("One address or several.", "recipient@example.com"),
    ] = None
    cc: Annotated[MaybeAddress | list[Address] | None, described("As to; written into the message.")] = None
    bcc: Annotated[MaybeAddress | list[Address] | None, described("As to; never written into the message.")] = None
    reply_to: Annotated[ReplyTo | None, described("Where answers go.", "help@example.com")] = None
    subject: Annotated[Line | None, described("Required unless a template is used.", "Hello")] = None
    html: Annotated[str | None, described("Required unless a template is used.", "<h1>Hello</h1>")] = None
    text: Annotated[str | None, described("The plain alternative.", "Hello")] = None
    attachments: Annotated[Attachments | None, described(f"At most {MAX_ATTACHMENTS} files.")] = None
    template_id: Annotated[TemplateId | None, described("A template of the account, by its id.")] = None
    template_key: Annotated[TemplateKey | None, described("A template of the account, by its key.", "welcome")] = None
    variables: Annotated[
        Variables | None,
        described("What the placeholders of a template, or of subject, html and text, stand for.", {"name": "Joe"}),
    ] = None


OWN_SEND = Shape(OwnSendRequest)


def read_own_request(content: Content, max_recipients: int, servers: Sequence[ServerRow]) -> Wanted:
    """The body, which is closed, with From as the server has it.  Raises RefusedError.  Large ones in a thread.

    servers: those of the account.
    """
    request = OWN_SEND.decode(content)
    if request is None:
        payload = load_object(content)
        decode_attachments(payload)
        request = OWN_SEND.convert(payload)
        payload.clear()
    content.close()
    default = next((server for server in servers if server.is_default), None)
    _check_presence(request, has_default=default is not None)
    wanted = _read_common(request, max_recipients)
    server = default if not request.smtp_id else next((s for s in servers if s.id == request.smtp_id), None)
    if server is None:
        text = "smtpId names no SMTP server of this account."
        raise RefusedError(Refusal(ErrorKind.SMTP_NOT_FOUND, text, field="smtpId"))
    sender = _read_from(request.sender or "", server)
    shown = Mailbox(server.address, sender.name)
    draft = replace(wanted.draft, sender=shown, from_name=sender.name or server.from_name or None)
    return replace(wanted, draft=draft)


def _check_presence(request: OwnSendRequest, *, has_default: bool) -> None:
    missing = [] if request.smtp_id or has_default else ["smtpId"]
    missing += [name for name, value in (("from", request.sender), ("to", request.to)) if not value]
    if missing:
        text = f"Missing required fields: {', '.join(missing)}"
        raise RefusedError(Refusal(ErrorKind.MISSING_FIELDS, text, field=missing[0]))
    uses_template = request.template_id is not None or request.template_key is not None
    if not uses_template and not (request.subject and request.html):
        text = "Missing email content: give subject and html, or templateId or templateKey"
        raise RefusedError(Refusal(ErrorKind.NO_BODY, text, field="html" if request.subject else "subject"))


def _read_common(request: OwnSendRequest, max_recipients: int) -> Wanted:
    """What is as in the other send call.  From is judged later."""
    common = SendRequest(
        to=request.to or "",
        cc=request.cc,
        bcc=request.bcc,
        subject=request.subject,
        html=request.html,
        text=request.text,
        reply_to=request.reply_to,
        attachments=request.attachments,
        template_id=request.template_id,
        template_key=request.template_key,
        variables=request.variables,
    )
    try:
        return check_fields(common, max_recipients)
    except RefusedError as error:
        if error.refusal.kind is ErrorKind.INVALID_ADDRESS and error.refusal.field == "replyTo":
            raise RefusedError(replace(error.refusal, kind=ErrorKind.INVALID_FIELD)) from None
        raise


def _read_from(text: str, server: ServerRow) -> Mailbox:
    """Raises RefusedError (SENDER_NOT_ALLOWED) unless it is the server's own address."""
    try:
        mailbox = parse_mailbox(text)
    except ValueError as error:
        raise _mismatch(f"from is not an email address: {error}") from None
    if key_of(mailbox.address) != server.address_key:
        raise _mismatch(f"from must be the address of this SMTP server: {server.address}")
    return mailbox


def _mismatch(text: str) -> RefusedError:
    return RefusedError(Refusal(ErrorKind.SENDER_NOT_ALLOWED, text, field="from"))
