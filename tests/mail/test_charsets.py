# SPDX-License-Identifier: Apache-2.0
"""Charsets that mail names: those it uses are read, the other codecs of Python are not."""

from __future__ import annotations

import encodings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.mail import charsets
from hepmaild.mail.charsets import decode
from hepmaild.mail.headers import decode_words

# https://www.iana.org/assignments/character-sets, and what is only customary.
USED = """
us-ascii UTF-8 utf8 ISO-8859-1 iso-8859-15 ISO_8859-1:1987 windows-1252 Windows-1251 KOI8-R koi8-u GB2312 gb18030
GBK Big5 Shift_JIS x-sjis Windows-31J EUC-JP ISO-2022-JP EUC-KR ks_c_5601-1987 UTF-16LE utf-7 macintosh tis-620
windows-874
iso-8859-8-i ANSI_X3.4-1968
""".split()  # noqa: SIM905
STRANGE = "punycode idna unicode_escape raw_unicode_escape undefined rot13 hex base64 zlib mbcs x-unknown ..".split()  # noqa: SIM905


@pytest.mark.parametrize("charset", USED)
def test_what_mail_uses_is_read(charset: str) -> None:
    assert decode("ab".encode("utf-16-le" if charset == "UTF-16LE" else "ascii"), charset) == "ab"


@pytest.mark.parametrize("charset", STRANGE)
def test_what_it_does_not_use_is_not(charset: str) -> None:
    with pytest.raises(LookupError, match="no charset of mail"):
        decode(b"ab", charset)
    assert decode_words(f"=?{charset}?q?ab?=") == f"=?{charset}?q?ab?="


def test_names_that_do_not_exist_are_not_remembered() -> None:
    before = len(encodings._cache)  # type: ignore[attr-defined]
    for n in range(100):
        decode_words(f"=?no-such-{n}?q?ab?=")
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@given(st.binary(max_size=200), st.sampled_from(sorted(charsets._BY_NAME)))
def test_what_comes_out_can_be_written(octets: bytes, charset: str) -> None:
    text = decode(octets, charset)
    assert text.encode("utf-8").decode("utf-8") == text
