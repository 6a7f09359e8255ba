# SPDX-License-Identifier: Apache-2.0
"""Dot-stuffing and the octets that must not pass: the same for every split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.mail.wire import ChunkDecoder, DataDecoder, DotStuffer, Flaw

# Octets that matter, more often than others.
OCTETS = st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"a", b"\0", b"bc", b"x" * 600])).map(
    b"".join
)
SIZES = st.lists(st.integers(1, 7), max_size=60)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    result, at = [], 0
    for size in sizes:
        result.append(data[at : at + size])
        at += size
    return [piece for piece in (*result, data[at:]) if piece]


def stuff(parts: Iterable[bytes]) -> Iterator[bytes]:
    """All of a message as DATA content with its end."""
    stuffer = DotStuffer()
    for part in parts:
        yield stuffer.feed(part)
    yield stuffer.finish()


def decode(parts: list[bytes], limit: int = 10**9) -> tuple[bytes, bytes, bool, Flaw, int]:
    decoder = DataDecoder(limit)
    content, rest = b"", b""
    for part in parts:
        if decoder.finished:
            rest += part
            continue
        content += decoder.feed(part)
        if decoder.finished:
            rest += decoder.rest
    return content, rest, decoder.finished, decoder.flaws, decoder.size


@given(OCTETS, SIZES)
def test_decoding_is_the_same_for_every_split(data: bytes, sizes: list[int]) -> None:
    data += b"\r\n.\r\nQUIT\r\n"
    assert decode(pieces(data, sizes)) == decode([data])


@given(OCTETS)
def test_decoding_agrees_with_a_plain_reading_of_the_rfc(data: bytes) -> None:
    """RFC 5321 §4.5.2."""
    wire = data + b"\r\n.\r\nQUIT\r\n"
    content, rest, finished, flaws, size = decode([wire])
    whole, rest_wanted = (b"\r\n" + wire).split(b"\r\n.\r\n", 1)
    lines = (whole + b"\r\n")[2:].split(b"\r\n")[:-1] if whole else []
    wanted = b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)
    assert (content, rest, finished, size) == (wanted, rest_wanted, True, len(wanted))
    assert (Flaw.BARE_LF in flaws) == (re.search(rb"(?<!\r)\n", wanted) is not None)
    assert (Flaw.BARE_CR in flaws) == (re.search(rb"\r(?!\n)", wanted) is not None)
    assert (Flaw.NUL in flaws) == (b"\0" in wanted)
    header = wanted.split(b"\r\n\r\n", 1)[0] if not wanted.startswith(b"\r\n") else b""
    assert (Flaw.LONG_HEADER_LINE in flaws) == any(len(line) > 998 for line in header.split(b"\r\n"))


@given(OCTETS, SIZES)
def test_chunks_are_checked_the_same_for_every_split(data: bytes, sizes: list[int]) -> None:
    """RFC 3030."""
    results = []
    for parts in (pieces(data, sizes), [data] if data else []):
        decoder = ChunkDecoder(10**9)
        content = b"".join([decoder.feed(part) for part in parts]) + decoder.finish()
        results.append((content, decoder.flaws, decoder.size))
    assert results[0] == results[1]
    assert results[0][0] == data


@given(st.lists(st.sampled_from([b".", b"..", b"\r\n", b"abc", b"\r\n.\r\n"])).map(b"".join), SIZES)
def test_what_is_stuffed_is_read_back(data: bytes, sizes: list[int]) -> None:
    """RFC 5321 §4.5.2."""
    wire = b"".join(stuff(pieces(data, sizes)))
    content, rest, finished, flaws, _ = decode([wire + b"NEXT"])
    assert finished
    assert rest == b"NEXT"
    assert not flaws
    assert content == (data if data.endswith(b"\r\n") or not data else data + b"\r\n")
    assert wire == b"".join(stuff([data] if data else []))


@given(OCTETS, SIZES)
def test_what_could_end_the_content_early_never_leaves(data: bytes, sizes: list[int]) -> None:
    """RFC 5321 §2.3.8."""
    flawed = re.search(rb"(?<!\r)\n|\r(?!\n)|\0", data) is not None
    try:
        wire = b"".join(stuff(pieces(data, sizes)))
    except ValueError:
        assert flawed
    else:
        assert not flawed
        assert wire.count(b"\r\n.\r\n") + wire.startswith(b".\r\n") == 1
        assert wire.endswith(b".\r\n")


@pytest.mark.parametrize("piece", [b"a\nb", b"a\rb", b"a\0b", b"\n", b"a\r\r\n"])
def test_flaws_are_refused_at_once(piece: bytes) -> None:
    with pytest.raises(ValueError, match=r"message"):
        DotStuffer().feed(piece)


def test_a_last_cr_is_refused_at_the_end() -> None:
    stuffer = DotStuffer()
    assert stuffer.feed(b"a\r") == b"a"
    with pytest.raises(ValueError, match="CR"):
        stuffer.finish()


def test_an_oversize_content_is_counted_but_not_kept() -> None:
    decoder = DataDecoder(100)
    kept = decoder.feed(b"a" * 60 + b"\r\n")
    for _ in range(1000):
        kept += decoder.feed(b"b" * 60 + b"\r\n")
    assert decoder.oversize
    assert len(kept) <= 100
    assert decoder.feed(b".\r\n") == b""
    assert decoder.finished
    assert decoder.size == 62 * 1001
