# SPDX-License-Identifier: Apache-2.0
"""Words of the door that depend on something: the EHLO reply, refusals, and lines as transcripts show them."""

from __future__ import annotations

from functools import lru_cache

from hepmaild.counted import counted
from hepmaild.errors import Refusal
from hepmaild.mail.reply import Reply
from hepmaild.smtp import replies
from hepmaild.smtp.replies import Line


@lru_cache(maxsize=8)
def ehlo_reply(hostname: str, max_octets: int, max_recipients: int, *, under_tls: bool) -> Line:
    """The EHLO reply (RFC 5321 §4.1.1.1).  STARTTLS only before TLS, AUTH only under it."""
    words = [
        hostname,
        "PIPELINING",
        f"SIZE {max_octets}",
        "8BITMIME",
        "SMTPUTF8",
        "ENHANCEDSTATUSCODES",
        "CHUNKING",
        f"LIMITS RCPTMAX={max_recipients}",
        "AUTH PLAIN LOGIN" if under_tls else "STARTTLS",
    ]
    return replies.line(Reply(250, "", "\n".join(words)))


def refusal_reply(refusal: Refusal) -> Reply:
    """A refusal as a reply.  One that says when to come back says it in its text: SMTP has no other place."""
    reply = refusal.to_reply()
    wait_s = refusal.retry_after_s
    if wait_s is not None and reply.code == 421 and str(wait_s) not in reply.text:
        return Reply(reply.code, reply.enhanced, f"{reply.text.rstrip('.')}; try again in {counted(wait_s, 'second')}")
    return reply


def refusal_line(refusal: Refusal) -> Line:
    """A refusal, ready to be sent."""
    return replies.line(refusal_reply(refusal))


def readable(line: bytes) -> str:
    """A client's line for the transcript: one line, printable."""
    text = line.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def masked_auth(rest: bytes) -> str:
    """An AUTH command without what may be a secret: only a mechanism that we know is repeated."""
    words = rest.split()
    mechanism = words[0].upper() if words else b""
    name = mechanism.decode() if mechanism in (b"PLAIN", b"LOGIN") else "***"
    return f"AUTH {name} ***" if len(words) > 1 and name != "***" else f"AUTH {name}"
