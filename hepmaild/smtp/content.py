# SPDX-License-Identifier: Apache-2.0
"""Content: what follows DATA, and the chunks of BDAT (RFC 3030)."""

from __future__ import annotations

from hepmaild.mail.reply import Reply
from hepmaild.mail.wire import ChunkDecoder, DataDecoder
from hepmaild.smtp import replies
from hepmaild.smtp.actions import CloseReason, EndMessage, MessageChunk
from hepmaild.smtp.core import OVERRUN_FACTOR, MachineCore, Mode
from hepmaild.smtp.facts import Envelope
from hepmaild.smtp.replies import Line


class ContentLayer(MachineCore):
    """Reads message octets to their true end, whatever becomes of them."""

    def _read_data(self) -> None:
        decoder = self._decoder
        assert decoder is not None
        data = self._buffer[self._at :] if self._at else self._buffer
        self._buffer, self._at = b"", 0
        piece = decoder.feed(data)
        if piece:
            self._actions.append(MessageChunk(piece))
        if decoder.finished:
            self._buffer = decoder.rest
            self._decoder = None
            self._content_complete(decoder)
        elif decoder.size > OVERRUN_FACTOR * self._max_octets:
            self._refuse_mail(replies.TOO_LARGE)
            self._close(CloseReason.OVERSIZE)

    def _begin_chunk(self) -> None:
        self._mode = Mode.CHUNK
        if self._chunk_left == 0:
            self._end_chunk()

    def _read_chunk(self) -> None:
        assert self._chunks is not None
        data = self._buffer[self._at : self._at + self._chunk_left]
        self._at += len(data)
        self._chunk_left -= len(data)
        piece = self._chunks.feed(data)
        if piece:
            self._actions.append(MessageChunk(piece))
        if self._chunk_left == 0:
            self._end_chunk()

    def _end_chunk(self) -> None:
        decoder = self._chunks
        assert decoder is not None
        if not self._chunk_is_last:
            self._mode = Mode.COMMAND
            self._say(replies.line(Reply(250, "2.0.0", f"{self._chunk_octets} octets received")))
            return
        piece = decoder.finish()
        if piece:
            self._actions.append(MessageChunk(piece))
        self._chunks = None
        self._content_complete(decoder)

    def _discard_chunk(self, line: Line) -> None:
        """The transaction is refused at a BDAT: its octets are still to come, then this reply."""
        self.session.refused += 1
        self._drop_transaction()
        self._forgiving = True
        self._discard_line = line
        self._begin_discard()

    def _begin_discard(self) -> None:
        self._mode = Mode.DISCARD
        if self._chunk_left == 0:
            self._read_discarded()

    def _read_discarded(self) -> None:
        octets = min(self._chunk_left, len(self._buffer) - self._at)
        self._at += octets
        self._chunk_left -= octets
        if self._chunk_left == 0:
            self._mode = Mode.COMMAND
            self._say(self._discard_line)

    def _content_complete(self, decoder: DataDecoder | ChunkDecoder) -> None:
        """The true end of the content was read."""
        transaction, key = self._transaction, self.session.key
        assert transaction is not None
        assert key is not None
        self._mode = Mode.COMMAND
        self._heard(f"message content, {decoder.size} octets")
        if decoder.flaws:
            self.session.refused += 1
            self._say(replies.line(Reply(550, "5.6.0", decoder.flaws.sentence)))
            self._drop_transaction()
            self._close(CloseReason.MALFORMED_CONTENT)
        elif decoder.oversize or transaction.content_lost:
            self._refuse_mail(replies.TOO_LARGE if decoder.oversize else replies.STORE_DOWN)
        else:
            self._flush()
            steps = (*self.session.prelude.snapshot(), *transaction.steps.snapshot())
            recipients = tuple(transaction.recipients.values())
            envelope = Envelope(transaction.reverse_path, recipients, transaction.smtputf8, decoder.size, steps)
            self._is_collecting = False
            self._ask(EndMessage(key, envelope))
