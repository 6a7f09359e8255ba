# SPDX-License-Identifier: Apache-2.0
"""The fields of a send request: what they say becomes a `Draft` and its recipients (send-api.md "Request").

Pure.  Everything that is wrong raises RefusedError with the code and the offending field.  Checks that answer 400 come
before those that answer 413, as the contract orders them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.body import load_object
from hepmaild.http.shapes import MAX_FILENAME, MAX_HEADERS, SEND, AttachmentIn, SendRequest
from hepmaild.http.typed import echo
from hepmaild.mail.address import MAX_NAME_LENGTH, has_control_characters, key_of, parse_mailbox
from hepmaild.mail.content import Content
from hepmaild.mail.submission import Attachment, Draft, Kind, Mailbox, Recipient

MAX_SUBJECT = 988
MAX_REPLY_TO = 320
MAX_BODY_OCTETS = 10 << 20
MAX_ATTACHMENTS = 10
MAX_ATTACHMENT_OCTETS = 15 << 20
MAX_TOTAL_OCTETS = 18 << 20
MAX_HEADER_NAME = 76
MAX_HEADER_VALUE = 8192

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_DENIED = frozenset(
    {
        "apparently-to", "arc-authentication-results", "arc-message-signature", "arc-seal", "authentication-results",
        "bcc", "cc", "date", "delivered-to", "dkim-signature", "domainkey-signature", "from", "message-id",
        "mime-version", "received", "received-spf", "reply-to", "return-path", "sender", "subject", "to",
        "x-idempotency-key",
    }
)  # fmt: skip
_DENIED_PREFIXES = ("content-", "resent-")
_CONTENT_TYPE = re.compile(
    r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}(?:[ \t]*;[ \t]*[\x20-\x7e]{1,500})?"
)
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,200}")
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a send request asks for.  recipients: distinct over to, cc and bcc, in this order."""

    draft: Draft
    recipients: tuple[Recipient, ...]


def read_request(content: Content, max_recipients: int) -> Wanted:
    """The body of a send request, which is closed.  Raises RefusedError.  Runs in a thread when it is large."""
    request = SEND.decode(content)
    if request is None:
        return read_fields(load_object(content), max_recipients)
    content.close()
    return check_fields(request, max_recipients)


def read_fields(payload: dict[str, Any], max_recipients: int) -> Wanted:
    """The same from a JSON object.  Takes large strings out of it, so that they are not in memory twice."""
    if payload.get("to") is None:
        raise _no_recipients()
    decode_attachments(payload)
    request = SEND.convert(payload)
    payload.clear()
    return check_fields(request, max_recipients)


def check_fields(request: SendRequest, max_recipients: int) -> Wanted:
    """What the values of a request say, its types being right."""
    if not request.to:
        raise _no_recipients()
    recipients: dict[str, Recipient] = {}
    shown = {
        kind: _read_addresses(value, kind, recipients, max_recipients)
        for kind, value in ((Kind.TO, request.to), (Kind.CC, request.cc), (Kind.BCC, request.bcc))
    }
    _refuse_template(request)
    if not request.html and not request.text:
        raise _refused(ErrorKind.NO_BODY, "Send html, text or both; both are empty.", "html")
    draft = Draft(
        html=_text(request.html, "html"),
        text=_text(request.text, "text"),
        subject=_one_line(request.subject, "subject")[:MAX_SUBJECT],
        from_name=_one_line(request.from_name, "fromName").strip()[:MAX_NAME_LENGTH] or None,
        sender=None if request.sender is None else _mailbox(request.sender, "from"),
        to=shown[Kind.TO],
        cc=shown[Kind.CC],
        reply_to=_read_reply_to(request.reply_to),
        headers=tuple(_read_headers(request.headers or {})),
        attachments=tuple(
            _read_attachment(item, f"attachments[{index}]") for index, item in enumerate(request.attachments or ())
        ),
    )
    _check_sizes(draft)
    return Wanted(draft, tuple(recipients.values()))


def _refused(kind: ErrorKind, message: str, field: str) -> RefusedError:
    return RefusedError(Refusal(kind, message, field=field))


def _no_recipients() -> RefusedError:
    return _refused(ErrorKind.NO_RECIPIENTS, "to must name at least one address.", "to")


def _text(value: str | None, field: str) -> str | None:
    if value and not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            text = f"{field} holds half of a surrogate pair, which is no character."
            raise _refused(ErrorKind.INVALID_FIELD, text, field) from None
    return value or None


def _one_line(value: str | None, field: str) -> str:
    """A string for a header; absent is empty."""
    if value and has_control_characters(value):
        text = f"{field} holds a line break or another control character; leave it out."
        raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
    return value or ""


def _read_addresses(
    value: str | list[str] | None, kind: Kind, recipients: dict[str, Recipient], max_recipients: int
) -> tuple[Mailbox, ...]:
    """The mailboxes of one field, each once; new ones are added to `recipients`."""
    if not value:
        return ()
    if isinstance(value, str):
        labelled = [(kind.value, value)]
    else:
        labelled = [(f"{kind.value}[{index}]", each) for index, each in enumerate(value)]
    mailboxes: dict[str, Mailbox] = {}
    for label, each in labelled:
        mailbox = _mailbox(each, label)
        key = key_of(mailbox.address)
        mailboxes.setdefault(key, mailbox)
        recipients.setdefault(key, Recipient(mailbox.address, kind))
        if len(recipients) > max_recipients:
            text = f"A message may have {max_recipients} recipients over to, cc and bcc; send several."
            raise _refused(ErrorKind.TOO_MANY_RECIPIENTS, text, label)
    return tuple(mailboxes.values())


def _mailbox(value: str, field: str) -> Mailbox:
    try:
        return parse_mailbox(value)
    except ValueError as error:
        raise _refused(ErrorKind.INVALID_ADDRESS, f"{field} is not an email address: {error}", field) from None


def _read_reply_to(value: str | None) -> tuple[Mailbox, ...]:
    if not value or len(value) > MAX_REPLY_TO:
        return ()
    return (_mailbox(value, "replyTo"),)


def _refuse_template(request: SendRequest) -> None:
    for field, value in (("templateId", request.template_id), ("templateKey", request.template_key)):
        if value is not None:
            raise _refused(ErrorKind.UNKNOWN_TEMPLATE, f"{field} names no template of this account.", field)


def _read_headers(headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    if len(headers) > MAX_HEADERS:
        raise _refused(ErrorKind.INVALID_FIELD, f"headers may have {MAX_HEADERS} members.", "headers")
    for name, value in headers.items():
        field = f"headers.{echo(name)}"
        if not _HEADER_NAME.fullmatch(name) or len(name) > MAX_HEADER_NAME:
            text = f"{field} is no name for a header field: use up to {MAX_HEADER_NAME} ASCII letters, digits and -."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        if name.lower() in _DENIED or name.lower().startswith(_DENIED_PREFIXES):
            text = f"The header field {echo(name)} cannot be set this way; leave it out."
            raise _refused(ErrorKind.HEADER_NOT_ALLOWED, text, field)
        if len(value) > MAX_HEADER_VALUE:
            text = f"{field} is longer than {MAX_HEADER_VALUE} characters."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        yield name, _one_line(value, field)


def _read_attachment(item: AttachmentIn, label: str) -> Attachment:
    if item.upload_id is not None:
        text = f"{label}.uploadId names no upload of this account."
        raise _refused(ErrorKind.UNKNOWN_UPLOAD, text, f"{label}.uploadId")
    filename = _one_line(item.filename, f"{label}.filename")
    if not filename or len(filename) > MAX_FILENAME:
        text = f"{label}.filename must be 1 to {MAX_FILENAME} characters."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.filename")
    content_type = _one_line(item.content_type, f"{label}.contentType") or "application/octet-stream"
    if not _CONTENT_TYPE.fullmatch(content_type):
        text = f'{label}.contentType is no media type; "application/pdf" is one.'
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentType")
    content_id = _one_line(item.content_id, f"{label}.contentId")
    content_id = content_id.removeprefix("<").removesuffix(">")
    if content_id and not _CONTENT_ID.fullmatch(content_id):
        text = f"{label}.contentId must be up to 200 ASCII characters without spaces and angle brackets."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentId")
    if item.content is None:
        text = f"{label}.content is missing: the file in base64."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.content")
    return Attachment(filename, item.content, content_type, content_id or None)


def decode_attachments(payload: dict[str, Any]) -> None:
    """Make octets of the base64 in `attachments`, of lines or in one piece.  Other things are left as they are.

    Raises RefusedError: INVALID_ATTACHMENT.
    """
    attachments = payload.get("attachments")
    if isinstance(attachments, list):
        for index, item in enumerate(attachments):
            if isinstance(item, dict) and isinstance(item.get("content"), str):
                item["content"] = _octets(item.pop("content"), f"attachments[{index}].content")


def _octets(encoded: str, field: str) -> bytes:
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError:
        pass
    try:  # wrapped into lines, as MIME has it
        return binascii.a2b_base64(encoded.translate(_WHITE_SPACE), strict_mode=True)
    except ValueError:
        raise _refused(ErrorKind.INVALID_ATTACHMENT, f"{field} is not base64.", field) from None


def _check_sizes(draft: Draft) -> None:
    body = sum(len(part.encode("utf-8")) for part in (draft.text, draft.html) if part is not None)
    if body > MAX_BODY_OCTETS:
        text = "html and text together are larger than 10 MB; shorten them."
        raise _refused(ErrorKind.BODY_TOO_LARGE, text, "html" if draft.html else "text")
    if len(draft.attachments) > MAX_ATTACHMENTS:
        text = f"A message may have {MAX_ATTACHMENTS} attachments; send fewer."
        raise _refused(ErrorKind.TOO_MANY_ATTACHMENTS, text, "attachments")
    for index, attachment in enumerate(draft.attachments):
        if len(attachment.content) > MAX_ATTACHMENT_OCTETS:
            text = "An attachment may have 15 MB; this one is larger."
            raise _refused(ErrorKind.ATTACHMENT_TOO_LARGE, text, f"attachments[{index}]")
    if body + sum(len(attachment.content) for attachment in draft.attachments) > MAX_TOTAL_OCTETS:
        text = "The attachments and the body together are larger than 18 MB; send fewer or smaller ones."
        raise _refused(ErrorKind.ATTACHMENT_TOO_LARGE, text, "attachments")


def read_idempotency_word(values: list[str]) -> str | None:
    """The caller's word from its `Idempotency-Key` headers (as Latin-1), or None.

    Raises RefusedError (INVALID_IDEMPOTENCY_KEY) unless it is 1 to 256 printable characters, and one.
    """
    if not values:
        return None
    word = values[0].strip()
    with suppress(ValueError):
        word = word.encode("latin-1").decode("utf-8")
    if len(set(values)) > 1 or not 1 <= len(word) <= 256 or not word.isprintable():
        text = "Idempotency-Key must be 1 to 256 printable characters, and stand there once."
        raise RefusedError(Refusal(ErrorKind.INVALID_IDEMPOTENCY_KEY, text))
    return word
