# SPDX-License-Identifier: Apache-2.0
"""What a draft only names: a template of the account and files that were uploaded before.

The one place where they are looked up and put in, for every call that sends.  A template is read in one statement, so
a message is made of one revision as a whole; its number goes into the message's record.  Looking up and putting in are
two steps, so that a caller can find room in memory in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from uuid import UUID

import trio

from hepmaild.errors import ErrorKind, Refusal, RefusedError
from hepmaild.mail import template as wording_of
from hepmaild.mail.sizes import MAX_BODY_OCTETS, check_sizes
from hepmaild.mail.submission import Attachment, Draft, KeyIdentity, Permission
from hepmaild.mail.template import Ask, Wording
from hepmaild.storage import rate, templates, uploads
from hepmaild.storage.store import Store
from hepmaild.storage.templates import Template
from hepmaild.storage.uploads import Upload
from hepmaild.template_rules import is_key
from hepmaild.threads import in_thread
from hepmaild.uploads import Uploads

THREAD_OCTETS = 256 << 10  # above this, texts are filled in a thread


@dataclass(frozen=True, slots=True)
class Found:
    """A draft with what it names, not put in yet.

    octets: what that comes to at most, 0 when there is nothing to do.  note: for the message's record, "" without a
    template.  keeps_text: the draft's own text stays as it is beside a template.
    """

    draft: Draft
    octets: int = 0
    note: str = ""
    wording: Wording | None = None
    values: Mapping[str, str] = field(default_factory=dict)
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    keeps_text: bool = False


class Materials:
    """store: where they are; None: there are none.  threads: for filling large texts.  quota: of an account's uploads.

    uploads: how they come in; None without a store.
    """

    def __init__(
        self,
        store: Store | None = None,
        now_us: Callable[[], int] = lambda: 0,
        threads: trio.CapacityLimiter | None = None,
        quota: Callable[[], int] = lambda: 0,
    ) -> None:
        self._store = store
        self.uploads = None if store is None else Uploads(store, now_us, quota)
        self._now_us = now_us
        self._threads = threads

    async def calls_inside(self, key_id: str) -> int:
        """The calls of a key in its present window, without counting one.  Raises StoreUnavailable."""
        if self._store is None:
            return 0
        return (await self._store.read(rate.calls_inside, [key_id], self._now_us())).get(key_id, 0)

    async def find(self, key: KeyIdentity, draft: Draft, ask: Ask) -> Found:
        """Look up what is named; asks the store for nothing when nothing is.

        Raises RefusedError: CHANNEL_NOT_ALLOWED (the key may not use templates), UNKNOWN_TEMPLATE, UNKNOWN_UPLOAD,
        and those of `check_sizes`; raises StoreUnavailable.  Cancel-safe.
        """
        names_uploads = any(each.upload_id for each in draft.attachments)
        if ask.values is None and not ask.names_template and not names_uploads:
            return Found(draft)  # as almost always; who read the draft has checked its sizes
        found = await self._template(key, ask) if ask.names_template else None
        files = await self._uploads(key.account_id, draft)
        check_sizes(draft, {each.upload_id: each.size for each in files.values()})
        octets = sum(files[each.upload_id].size for each in draft.attachments if each.upload_id)
        wording = None
        keeps_text = bool(found is not None and draft.text and ask.values is None)
        if found is not None:
            wording = replace(found.wording, text=None if keeps_text else draft.text or found.wording.text)
        elif ask.values is not None:
            wording = Wording(draft.subject, draft.html, draft.text)
        if wording is not None:
            octets += await self._length_bound(wording, ask.values or {})
        return Found(
            draft,
            octets=octets,
            note="" if found is None else f"template {found.key} ({found.name}), revision {found.revision}",
            wording=wording,
            values=ask.values or {},
            uploads=files,
            keeps_text=keeps_text,
        )

    async def complete(self, found: Found) -> Draft:
        """The draft with everything in it.

        Raises RefusedError: UNKNOWN_UPLOAD (it has gone since), NO_BODY, BODY_TOO_LARGE, ATTACHMENT_TOO_LARGE; raises
        StoreUnavailable.  Cancel-safe.
        """
        draft = found.draft
        if found.wording is None and not found.uploads:
            return draft
        if found.wording is not None:
            filled = await self._fill(found)
            if found.keeps_text:
                filled = replace(filled, text=draft.text)
            if not filled.html and not filled.text:
                raise _refused(ErrorKind.NO_BODY, "The template has no content once it is filled in.", "variables")
            draft = replace(draft, subject=filled.subject, html=filled.html or None, text=filled.text or None)
        attachments = [await self._put_in(n, each, found.uploads) for n, each in enumerate(draft.attachments)]
        draft = replace(draft, attachments=tuple(attachments))
        check_sizes(draft)
        return draft

    async def _template(self, key: KeyIdentity, ask: Ask) -> Template:
        name = "templateId" if ask.template_id is not None else "templateKey"
        if key.permissions is not None and Permission.TEMPLATES not in key.permissions:
            text = "this API key may not use templates: allow it in the dashboard, or use another key"
            raise _refused(ErrorKind.CHANNEL_NOT_ALLOWED, text, name)
        found = None
        may_be = (ask.template_id is None or _is_id(ask.template_id)) and is_key(ask.template_key or "any")
        if self._store is not None and may_be:
            found = await self._store.read(templates.find, key.account_id, ask.template_id, ask.template_key)
        if found is None:
            raise _refused(ErrorKind.UNKNOWN_TEMPLATE, f"{name} names no template of this account.", name)
        return found

    async def _uploads(self, account_id: str, draft: Draft) -> dict[str, Upload]:
        wanted = {each.upload_id for each in draft.attachments if each.upload_id}
        good = {upload_id for upload_id in wanted if _is_id(upload_id)}
        found: dict[str, Upload] = {}
        if good and self._store is not None:
            found = await self._store.read(uploads.find, account_id, good, self._now_us())
        for n, each in enumerate(draft.attachments):
            if each.upload_id and each.upload_id not in found:
                raise _unknown_upload(n)
        return found

    async def _length_bound(self, wording: Wording, values: Mapping[str, str]) -> int:
        """Each placeholder is looked at: half a second for as many as a request can hold."""
        if sum(len(part or "") for part in (wording.subject, wording.html, wording.text)) <= THREAD_OCTETS:
            return wording_of.length_bound(wording, values)
        return await in_thread(wording_of.length_bound, wording, values, limiter=self._threads)

    async def _fill(self, found: Found) -> Wording:
        assert found.wording is not None
        if found.octets <= THREAD_OCTETS:
            return wording_of.fill(found.wording, found.values, MAX_BODY_OCTETS)
        return await in_thread(wording_of.fill, found.wording, found.values, MAX_BODY_OCTETS, limiter=self._threads)

    async def _put_in(self, n: int, attachment: Attachment, found: Mapping[str, Upload]) -> Attachment:
        if not attachment.upload_id or self._store is None:
            return attachment
        file = found[attachment.upload_id]
        pieces = await self._store.read(uploads.load, file.upload_id)
        content = b"".join(pieces)
        if len(content) != file.size:
            raise _unknown_upload(n)
        return Attachment(
            attachment.filename or file.filename,
            content,
            attachment.content_type or file.content_type,
            attachment.content_id,
        )


def _is_id(text: str) -> bool:
    """Whether this has the form in which our ids are written; nothing else is asked of the database."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _refused(kind: ErrorKind, message: str, name: str) -> RefusedError:
    return RefusedError(Refusal(kind, message, field=name))


def _unknown_upload(n: int) -> RefusedError:
    name = f"attachments[{n}].uploadId"
    return _refused(
        ErrorKind.UNKNOWN_UPLOAD, f"{name} names no upload of this account; one is kept for 24 hours.", name
    )
