# SPDX-License-Identifier: Apache-2.0
"""How large a draft may be (contract: money-and-limits.md "Other limits").  Pure."""

from __future__ import annotations

from collections.abc import Mapping

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.mail.submission import Draft

MAX_BODY_OCTETS = 10 << 20
MAX_ATTACHMENTS = 10
MAX_ATTACHMENT_OCTETS = 15 << 20
MAX_TOTAL_OCTETS = 18 << 20
SIZE_KINDS = frozenset({ErrorKind.BODY_TOO_LARGE, ErrorKind.TOO_MANY_ATTACHMENTS, ErrorKind.ATTACHMENT_TOO_LARGE})


def check_sizes(draft: Draft, uploaded: Mapping[str, int] | None = None) -> None:
    """Raises RefusedError: BODY_TOO_LARGE, TOO_MANY_ATTACHMENTS, ATTACHMENT_TOO_LARGE.

    uploaded: the octets of files that are not in the draft yet, by `Attachment.upload_id`.
    """
    body = sum(len(part.encode("utf-8")) for part in (draft.text, draft.html) if part is not None)
    if body > MAX_BODY_OCTETS:
        text = "The html and text together are larger than 10 MB; shorten them."
        raise _refused(ErrorKind.BODY_TOO_LARGE, text, "html" if draft.html else "text")
    if len(draft.attachments) > MAX_ATTACHMENTS:
        text = f"A message may have {MAX_ATTACHMENTS} attachments; send fewer."
        raise _refused(ErrorKind.TOO_MANY_ATTACHMENTS, text, "attachments")
    known = uploaded or {}
    sizes = [len(each.content) + known.get(each.upload_id, 0) for each in draft.attachments]
    for index, size in enumerate(sizes):
        if size > MAX_ATTACHMENT_OCTETS:
            text = "An attachment may have 15 MB; this one is larger."
            raise _refused(ErrorKind.ATTACHMENT_TOO_LARGE, text, f"attachments[{index}]")
    if body + sum(sizes) > MAX_TOTAL_OCTETS:
        text = "The attachments and the body together are larger than 18 MB; send fewer or smaller ones."
        raise _refused(ErrorKind.ATTACHMENT_TOO_LARGE, text, "attachments")


def _refused(kind: ErrorKind, message: str, field: str) -> RefusedError:
    return RefusedError(Refusal(kind, message, field=field))
