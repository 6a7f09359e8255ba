# SPDX-License-Identifier: Apache-2.0
"""Messages that show whether somebody touched them, and what a relay may do to one all the same."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

# Everything that careless relays break: dots, a From line, trailing spaces, tabs, 8-bit text, a line of the greatest
# length, empty lines at the end.
BODY = "\r\n".join(
    [
        "Dear reader,",
        ".",
        "..",
        ".hidden",
        "From here on it is about lines that begin with From",
        "trailing spaces   ",
        "\ttab\tand tab\t",
        "=?utf-8?q?not_a_header?= =3D soft=",
        "Grüße aus Žilina, 日本語, 🚀",
        "x" * 998,
        "--not-a-boundary",
        "",
        "",
    ]
).encode()


def new_id() -> str:
    """A fresh X-Test-Id."""
    return uuid.uuid4().hex


def tricky_message(test_id: str, *, sender: str, to: str, leave_out: tuple[str, ...] = (), bcc: str = "") -> bytes:
    """A complete message with CRLF line ends; `leave_out` names header fields that it shall lack."""
    fields = [
        ("Return-Receipt-To", "<nobody@example.com>"),
        ("From", f'"Hep, the \\"mailer\\"" <{sender}>'),
        ("To", f"Some One\r\n\t<{to}>"),
        ("Bcc", f"Hidden <{bcc}>,\r\n <{bcc}>" if bcc else ""),
        ("Subject", "=?utf-8?B?R3LDvMOfZQ==?=\r\n folded   with   spaces"),
        ("Date", "Sun, 22 Nov 2026 12:00:00 +0100"),
        ("Message-ID", f"<{test_id}@client.test>"),
        ("X-Test-Id", test_id),
        ("x-lower-case", "kept"),
        ("X-Empty", ""),
        ("MIME-Version", "1.0"),
        ("Content-Type", 'text/plain;\r\n charset="utf-8"'),
        ("Content-Transfer-Encoding", "8bit"),
    ]
    kept = [(name, value) for name, value in fields if name not in leave_out and (value or name == "X-Empty")]
    header = "".join(f"{name}: {value}\r\n" for name, value in kept)
    return header.encode() + b"\r\n" + BODY


def plain_message(test_id: str, *, sender: str, to: str, size_octets: int = 0) -> bytes:
    """A short message, filled up to about a size."""
    head = (
        f"From: <{sender}>\r\nTo: <{to}>\r\nSubject: test {test_id}\r\nDate: Sun, 22 Nov 2026 12:00:00 +0100\r\n"
        f"Message-ID: <{test_id}@client.test>\r\nX-Test-Id: {test_id}\r\n\r\n"
    ).encode()
    line = b"all work and no play makes mail a dull thing, and this line is filler.\r\n"
    return head + line * max(1, (size_octets - len(head)) // len(line))


@dataclass(frozen=True, slots=True)
class Parts:
    """A message as raw header fields (with their folding and line ends) and its body."""

    fields: tuple[bytes, ...]
    body: bytes


def split(message: bytes) -> Parts:
    """Take a message apart without interpreting anything."""
    header, separator, body = message.partition(b"\r\n\r\n")
    assert separator, "no empty line after the header"
    fields = re.findall(rb"[^\r\n]+\r\n(?:[ \t][^\r\n]*\r\n)*", header + b"\r\n")
    return Parts(tuple(fields), body)


def name_of(field: bytes) -> str:
    return field.partition(b":")[0].decode("ascii").lower()


def differences(sent: bytes, arrived: bytes, *, may_lose: tuple[str, ...] = ("bcc",)) -> list[str]:
    """What happened on the way, in the order of the header.

    `+name` for each field that was added, `-name` for each of `may_lose` that is gone, `changed name` for any other
    that is not there octet for octet, and `body` if the body differs.
    """
    before, after = split(sent), split(arrived)
    found: list[str] = []
    rest = list(after.fields)
    for field in before.fields:
        if field in rest:
            index = rest.index(field)
            found += [f"+{name_of(extra)}" for extra in rest[:index]]
            del rest[: index + 1]
        elif name_of(field) in may_lose:
            found.append(f"-{name_of(field)}")
        else:
            found.append(f"changed {name_of(field)}")
    found += [f"+{name_of(extra)}" for extra in rest]
    if before.body != after.body:
        found.append("body")
    return found
