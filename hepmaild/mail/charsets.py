# SPDX-License-Identifier: Apache-2.0
"""The charsets that mail names, decoded by a list of our own.

Python would take any of its codecs by name: some take time by the square of the text (`punycode`), some give what
cannot be encoded again (`unicode_escape`), and it remembers each name for good, one that does not exist too.
"""

from __future__ import annotations

import re
from encodings.aliases import aliases

_CODECS = frozenset(
    """
    ascii utf_8 utf_7 utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le
    latin_1 iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8 iso8859_9 iso8859_10 iso8859_11
    iso8859_13 iso8859_14 iso8859_15 iso8859_16
    cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp437 cp850 cp852 cp866 cp874
    koi8_r koi8_u koi8_t kz1048 mac_cyrillic mac_roman tis_620
    big5 big5hkscs gb2312 gbk gb18030 hz cp936 cp949 cp950 johab euc_kr iso2022_kr
    shift_jis shift_jisx0213 cp932 euc_jp euc_jisx0213 iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_3 iso2022_jp_ext
    """.split()  # noqa: SIM905
)
# Names that mail uses and Python has no alias for.
_ALSO = {
    "windows_31j": "cp932",
    "x_sjis": "shift_jis",
    "windows_874": "cp874",
    "x_gbk": "gbk",
    "x_mac_roman": "mac_roman",
    "iso_8859_8_i": "iso8859_8",
    "iso_8859_6_i": "iso8859_6",
    "iso_8859_8_e": "iso8859_8",
    "iso_8859_6_e": "iso8859_6",
}
_PUNCTUATION = re.compile("[^a-z0-9]+")


def _plain(name: str) -> str:
    return _PUNCTUATION.sub("_", name.lower()).strip("_")


_BY_NAME = {
    **{_plain(alias): codec for alias, codec in aliases.items() if codec in _CODECS},
    **{codec: codec for codec in _CODECS},
    **_ALSO,
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def decode(octets: bytes, charset: str) -> str:
    """The text, with U+FFFD for what is none in this charset.  Takes time by the length.

    Raises LookupError for a charset that mail does not use.
    """
    codec = _BY_NAME.get(_plain(charset))
    if codec is None:
        raise LookupError(f"no charset of mail: {charset[:40]}")
    return _SURROGATE.sub("\ufffd", octets.decode(codec, "replace"))
