# SPDX-License-Identifier: Apache-2.0
"""The fields of a send request: what they say becomes a `Draft` and its recipients (send-api.md "Request").

Pure.  Everything that is wrong raises RefusedError with the code and the offending field.  Checks that answer 400 come
before those that answer 413, as the contract orders them.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hepmaild.counted import counted
from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.http.body import load_object
from hepmaild.http.shapes import (
    CONTENT_ID,
    DENIED,
    DENIED_PREFIXES,
    MAX_FILENAME,
    MAX_HEADER_NAME,
    MAX_HEADER_VALUE,
    MAX_HEADERS,
    MEDIA_TYPE,
    SEND,
    AttachmentIn,
    SendRequest,
)
from hepmaild.http.typed import echo
from hepmaild.mail.address import MAX_NAME_LENGTH, has_control_characters, key_of, parse_mailbox
from hepmaild.mail.content import Content
from hepmaild.mail.sizes import check_sizes
from hepmaild.mail.submission import Attachment, Draft, Kind, Mailbox, Recipient
from hepmaild.mail.template import MAX_SUBJECT, Ask, Wording, read_ask

MAX_REPLY_TO = 320
# Of each recipient, not in ASCII: looking at one takes up to a millisecond, and a request has room for 100,000.
SPELLINGS = 3

_HEADER_NAME = re.compile(r"[!-9;-~]+")
_CONTENT_TYPE = re.compile(MEDIA_TYPE)
_CONTENT_ID = re.compile(CONTENT_ID)
_WHITE_SPACE = str.maketrans("", "", " \t\r\n")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a send request asks for.  recipients: distinct over to, cc and bcc, in this order.

    ask: the draft is not complete before it is filled in (`materials`), nor are attachments with an `upload_id`.  word:
    the caller's idempotency word, which is not in the body.
    """

    draft: Draft
    recipients: tuple[Recipient, ...]
    ask: Ask = Ask()
    word: str | None = None


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
    spelt: set[str] = set()
    shown = {
        kind: _read_addresses(value, kind, recipients, spelt, max_recipients)
        for kind, value in ((Kind.TO, request.to), (Kind.CC, request.cc), (Kind.BCC, request.bcc))
    }
    own = Wording(_one_line(request.subject, "subject"), _text(request.html, "html"), _text(request.text, "text"))
    ask = read_ask(request.template_id, request.template_key, request.variables, own)
    if not own.html and not own.text and not ask.names_template:
        raise _refused(ErrorKind.NO_BODY, "Send html, text or both; both are empty.", "html")
    draft = Draft(
        html=own.html,
        text=own.text,
        subject=own.subject if ask.values is not None else own.subject[:MAX_SUBJECT],
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
    # What is only named is looked up first: a name that is none is told before anything is too large.
    if not any(each.upload_id for each in draft.attachments) and not ask.names_template:
        check_sizes(draft)
    return Wanted(draft, tuple(recipients.values()), ask)


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
    value: str | list[str] | None,
    kind: Kind,
    recipients: dict[str, Recipient],
    spelt: set[str],
    max_recipients: int,
) -> tuple[Mailbox, ...]:
    """The mailboxes of one field, each once; new ones are added to `recipients`, those not in ASCII to `spelt`."""
    if not value:
        return ()
    labelled: Iterable[tuple[str, str]] = ((kind.value, value),) if isinstance(value, str) else _numbered(kind, value)
    mailboxes: dict[str, Mailbox] = {}
    for label, each in labelled:
        if not each.isascii():
            spelt.add(each)
            if len(spelt) > SPELLINGS * max_recipients:
                text = "The recipients are repeated in too many spellings; name each once."
                raise _refused(ErrorKind.TOO_MANY_RECIPIENTS, text, label)
        mailbox = _mailbox(each, label)
        key = key_of(mailbox.address)
        mailboxes.setdefault(key, mailbox)
        recipients.setdefault(key, Recipient(mailbox.address, kind))
        if len(recipients) > max_recipients:
            text = f"A message may have {counted(max_recipients, 'recipient')} over to, cc and bcc; send several."
            raise _refused(ErrorKind.TOO_MANY_RECIPIENTS, text, label)
    return tuple(mailboxes.values())


def _numbered(kind: Kind, values: list[str]) -> Iterator[tuple[str, str]]:
    for index, value in enumerate(values):
        yield f"{kind.value}[{index}]", value


def _mailbox(value: str, field: str) -> Mailbox:
    try:
        return parse_mailbox(value)
    except ValueError as error:
        raise _refused(ErrorKind.INVALID_ADDRESS, f"{field} is not an email address: {error}", field) from None


def _read_reply_to(value: str | None) -> tuple[Mailbox, ...]:
    if not value or len(value) > MAX_REPLY_TO:
        return ()
    return (_mailbox(value, "replyTo"),)


def _read_headers(headers: dict[str, str]) -> Iterator[tuple[str, str]]:
    if len(headers) > MAX_HEADERS:
        raise _refused(ErrorKind.INVALID_FIELD, f"headers may have {MAX_HEADERS} members.", "headers")
    for name, value in headers.items():
        field = f"headers.{echo(name)}"
        if not _HEADER_NAME.fullmatch(name) or len(name) > MAX_HEADER_NAME:
            text = f"{field} is no name for a header field: use up to {MAX_HEADER_NAME} ASCII letters, digits and -."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        if name.lower() in DENIED or name.lower().startswith(DENIED_PREFIXES):
            text = f"The header field {echo(name)} cannot be set this way; leave it out."
            raise _refused(ErrorKind.HEADER_NOT_ALLOWED, text, field)
        if len(value) > MAX_HEADER_VALUE:
            text = f"{field} is longer than {MAX_HEADER_VALUE} characters."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        yield name, _one_line(value, field)


def _read_attachment(item: AttachmentIn, label: str) -> Attachment:
    is_uploaded = item.upload_id is not None
    if item.upload_id == "":
        raise _refused(ErrorKind.UNKNOWN_UPLOAD, f"{label}.uploadId names no upload.", f"{label}.uploadId")
    filename = _one_line(item.filename, f"{label}.filename")
    if (not filename and not is_uploaded) or len(filename) > MAX_FILENAME:
        text = f"{label}.filename must be 1 to {MAX_FILENAME} characters."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.filename")
    content_type = _one_line(item.content_type, f"{label}.contentType")
    if content_type and not is_media_type(content_type):
        text = f'{label}.contentType is no media type; "application/pdf" is one.'
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentType")
    content_id = _one_line(item.content_id, f"{label}.contentId")
    content_id = content_id.removeprefix("<").removesuffix(">")
    if content_id and not _CONTENT_ID.fullmatch(content_id):
        text = f"{label}.contentId must be up to 200 ASCII characters without spaces and angle brackets."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentId")
    if is_uploaded and item.content is not None:
        text = f"{label} has both content and uploadId: leave one of them out."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, label)
    if item.upload_id is not None:
        return Attachment(filename, b"", content_type, content_id or None, item.upload_id)
    if item.content is None:
        text = f"{label}.content is missing: the file in base64."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.content")
    return Attachment(filename, item.content, content_type or "application/octet-stream", content_id or None)


def is_media_type(text: str) -> bool:
    """Whether this may stand in a part's Content-Type."""
    return _CONTENT_TYPE.fullmatch(text) is not None


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
        raise RefusedError(Refusal(ErrorKind.INVALID_IDEMPOTENCY_KEY, text, field="Idempotency-Key"))
    return word
