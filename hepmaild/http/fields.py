# SPDX-License-Identifier: Apache-2.0
"""The fields of a send request: a JSON object becomes a `Draft` and its recipients (send-api.md "Request").

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
from hepmaild.mail.address import MAX_NAME_LENGTH, has_control_characters, key_of, parse_mailbox
from hepmaild.mail.submission import Attachment, Draft, Kind, Mailbox, Recipient

MAX_SUBJECT = 988
MAX_REPLY_TO = 320
MAX_BODY_OCTETS = 10 << 20
MAX_ATTACHMENTS = 10
MAX_ATTACHMENT_OCTETS = 15 << 20
MAX_TOTAL_OCTETS = 18 << 20
MAX_FILENAME = 255
MAX_HEADERS = 100
MAX_HEADER_NAME = 76
MAX_HEADER_VALUE = 8192
MAX_ECHO = 80

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


def read_fields(payload: dict[str, Any], max_recipients: int) -> Wanted:
    """Check every field.  Takes large strings out of `payload`, so that they are not in memory twice."""
    recipients: dict[str, Recipient] = {}
    shown = {kind: _read_addresses(payload, kind, recipients, max_recipients) for kind in Kind}
    _refuse_template(payload)
    html = _text(payload, "html")
    text = _text(payload, "text")
    if not html and not text:
        raise _refused(ErrorKind.NO_BODY, "Send html, text or both; both are empty.", "html")
    subject = _one_line(payload, "subject")
    from_name = _one_line(payload, "fromName")
    draft = Draft(
        sender=_read_mailbox(payload, "from"),
        to=shown[Kind.TO],
        cc=shown[Kind.CC],
        reply_to=_read_reply_to(payload),
        subject=subject[:MAX_SUBJECT],
        text=text or None,
        html=html or None,
        headers=tuple(_read_headers(payload)),
        attachments=_read_attachments(payload),
        from_name=from_name.strip()[:MAX_NAME_LENGTH] or None,
    )
    _check_sizes(draft)
    return Wanted(draft, tuple(recipients.values()))


def _refused(kind: ErrorKind, message: str, field: str) -> RefusedError:
    return RefusedError(Refusal(kind, message, field=field))


def _wrong_type(field: str, expected: str) -> RefusedError:
    return _refused(ErrorKind.INVALID_FIELD, f"{field} must be {expected}.", field)


def _string(payload: dict[str, Any], field: str) -> str:
    """A string; absent and null are the empty string."""
    value = payload.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(field, "a string")
    return value


def _text(payload: dict[str, Any], field: str) -> str:
    value = _string(payload, field)
    payload.pop(field, None)
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            text = f"{field} holds half of a surrogate pair, which is no character."
            raise _refused(ErrorKind.INVALID_FIELD, text, field) from None
    return value


def _one_line(payload: dict[str, Any], field: str) -> str:
    value = _string(payload, field)
    _check_header_value(value, field)
    return value


def _check_header_value(value: str, field: str) -> None:
    if has_control_characters(value):
        text = f"{field} holds a line break or another control character; leave it out."
        raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)


def _read_addresses(
    payload: dict[str, Any], kind: Kind, recipients: dict[str, Recipient], max_recipients: int
) -> tuple[Mailbox, ...]:
    """The mailboxes of one field, each once; new ones are added to `recipients`."""
    field = kind.value
    value = payload.get(field)
    if value is None or value in ([], ""):
        if kind is Kind.TO:
            raise _refused(ErrorKind.NO_RECIPIENTS, "to must name at least one address.", field)
        return ()
    if isinstance(value, str):
        labelled = [(field, value)]
    elif isinstance(value, list):
        labelled = [(f"{field}[{index}]", each) for index, each in enumerate(value)]
    else:
        raise _wrong_type(field, "an address or an array of addresses")
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


def _mailbox(value: Any, field: str) -> Mailbox:
    if not isinstance(value, str):
        raise _wrong_type(field, "a string")
    try:
        return parse_mailbox(value)
    except ValueError as error:
        raise _refused(ErrorKind.INVALID_ADDRESS, f"{field} is not an email address: {error}", field) from None


def _read_mailbox(payload: dict[str, Any], field: str) -> Mailbox | None:
    value = payload.get(field)
    return None if value is None else _mailbox(value, field)


def _read_reply_to(payload: dict[str, Any]) -> tuple[Mailbox, ...]:
    value = _string(payload, "replyTo")
    if not value or len(value) > MAX_REPLY_TO:
        return ()
    return (_mailbox(value, "replyTo"),)


def _refuse_template(payload: dict[str, Any]) -> None:
    variables = payload.get("variables")
    if variables is not None and not isinstance(variables, dict):
        raise _wrong_type("variables", "an object")
    for field in ("templateId", "templateKey"):
        if payload.get(field) is not None:
            _string(payload, field)
            raise _refused(ErrorKind.UNKNOWN_TEMPLATE, f"{field} names no template of this account.", field)


def _read_headers(payload: dict[str, Any]) -> Iterator[tuple[str, str]]:
    headers = payload.get("headers")
    if headers is None:
        return
    if not isinstance(headers, dict):
        raise _wrong_type("headers", "an object of strings")
    if len(headers) > MAX_HEADERS:
        raise _refused(ErrorKind.INVALID_FIELD, f"headers may have {MAX_HEADERS} members.", "headers")
    for name, value in headers.items():
        field = f"headers.{_echo(name)}"
        if not _HEADER_NAME.fullmatch(name) or len(name) > MAX_HEADER_NAME:
            text = f"{field} is no name for a header field: use up to {MAX_HEADER_NAME} ASCII letters, digits and -."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        if name.lower() in _DENIED or name.lower().startswith(_DENIED_PREFIXES):
            text = f"The header field {_echo(name)} cannot be set this way; leave it out."
            raise _refused(ErrorKind.HEADER_NOT_ALLOWED, text, field)
        if not isinstance(value, str):
            raise _wrong_type(field, "a string")
        if len(value) > MAX_HEADER_VALUE:
            text = f"{field} is longer than {MAX_HEADER_VALUE} characters."
            raise _refused(ErrorKind.INVALID_HEADER_VALUE, text, field)
        _check_header_value(value, field)
        yield name, value


def _echo(text: str) -> str:
    """A caller's own word, fit to be given back."""
    shown = "".join(character if character.isprintable() else "?" for character in text[:MAX_ECHO])
    return shown + "..." if len(text) > MAX_ECHO else shown


def _read_attachments(payload: dict[str, Any]) -> tuple[Attachment, ...]:
    attachments = payload.get("attachments")
    if attachments is None:
        return ()
    if not isinstance(attachments, list):
        raise _wrong_type("attachments", "an array of objects")
    return tuple(_read_attachment(item, f"attachments[{index}]") for index, item in enumerate(attachments))


def _read_attachment(item: Any, label: str) -> Attachment:
    if not isinstance(item, dict):
        raise _wrong_type(label, "an object")
    if item.get("uploadId") is not None:
        field = f"{label}.uploadId"
        if not isinstance(item["uploadId"], str):
            raise _wrong_type(field, "a string")
        raise _refused(ErrorKind.UNKNOWN_UPLOAD, f"{field} names no upload of this account.", field)
    filename = _attachment_string(item, "filename", label)
    if not filename or len(filename) > MAX_FILENAME:
        text = f"{label}.filename must be 1 to {MAX_FILENAME} characters."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.filename")
    content_type = _attachment_string(item, "contentType", label) or "application/octet-stream"
    if not _CONTENT_TYPE.fullmatch(content_type):
        text = f'{label}.contentType is no media type; "application/pdf" is one.'
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentType")
    content_id = _attachment_string(item, "contentId", label)
    content_id = content_id.removeprefix("<").removesuffix(">")
    if content_id and not _CONTENT_ID.fullmatch(content_id):
        text = f"{label}.contentId must be up to 200 ASCII characters without spaces and angle brackets."
        raise _refused(ErrorKind.INVALID_ATTACHMENT, text, f"{label}.contentId")
    return Attachment(filename, _read_content(item, f"{label}.content"), content_type, content_id or None)


def _attachment_string(item: dict[str, Any], member: str, label: str) -> str:
    field = f"{label}.{member}"
    value = item.get(member)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(field, "a string")
    _check_header_value(value, field)
    return value


def _read_content(item: dict[str, Any], field: str) -> bytes:
    encoded = item.pop("content", None)
    if encoded is None:
        raise _refused(ErrorKind.INVALID_ATTACHMENT, f"{field} is missing: the file in base64.", field)
    if not isinstance(encoded, str):
        raise _wrong_type(field, "a string in base64")
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
