# SPDX-License-Identifier: Apache-2.0
"""Every fixed reply of the door, encoded once (contract: smtp-relay.md "Replies"; RFC 3463, RFC 5248).

A reply is here because of what the *client said*.  Replies that are decisions about mail come from the intake.
"""

from __future__ import annotations

from typing import NamedTuple

from hepmaild.mail.reply import Reply


class Line(NamedTuple):
    """A reply ready to be sent, and as it is written in transcripts."""

    code: int
    wire: bytes
    text: str


def line(reply: Reply) -> Line:
    """Encode any reply."""
    return Line(reply.code, reply.encode(), str(reply))


def _fixed(code: int, enhanced: str, text: str) -> Line:
    return line(Reply(code, enhanced, text))


BYE = _fixed(221, "2.0.0", "Bye")
OK = _fixed(250, "2.0.0", "OK")
SENDER_OK = _fixed(250, "2.1.0", "OK")
RECIPIENT_OK = _fixed(250, "2.1.5", "OK")
START_CONTENT = _fixed(354, "", "End data with <CR><LF>.<CR><LF>")
READY_FOR_TLS = _fixed(220, "2.0.0", "Ready to start TLS")
AUTHENTICATED = _fixed(235, "2.7.0", "Authentication successful")
CANNOT_VERIFY = _fixed(252, "2.5.0", "Not verified; send the message and see")
HELP = _fixed(214, "2.0.0", "Submission with STARTTLS or TLS, AUTH PLAIN or LOGIN, your API key as password")

SHUTTING_DOWN = _fixed(421, "4.3.2", "Shutting down, try again")
CRASHED = _fixed(421, "4.3.0", "Internal error, try again")
TIMED_OUT = _fixed(421, "4.4.2", "Timed out, closing")
TOO_MANY_CONNECTIONS = _fixed(421, "4.7.0", "Too many connections from your address")
TOO_MANY_WRONG = _fixed(421, "4.7.0", "Too many wrong commands, closing")
TOO_MANY_FAILED_AUTH = _fixed(421, "4.7.0", "Too many failed authentications, closing")
ENDLESS_LINE = _fixed(421, "4.7.0", "Line without end, closing")

STORE_DOWN_AT_AUTH = _fixed(454, "4.7.0", "Temporary authentication failure, try again")
STORE_DOWN = _fixed(451, "4.3.0", "Temporary failure, nothing was accepted, try again")

UNKNOWN_COMMAND = _fixed(500, "5.5.2", "Unknown command")
BAD_LINE_END = _fixed(500, "5.5.2", "Command lines end in CRLF and hold no NUL or bare CR")
LINE_TOO_LONG = _fixed(500, "5.5.6", "Line too long")
NOT_UTF8 = _fixed(501, "5.5.2", "Command is not valid UTF-8")
NOT_IMPLEMENTED = _fixed(502, "5.5.1", "Not implemented")
NO_ARGUMENT = _fixed(501, "5.5.4", "This command takes no argument")
BAD_ARGUMENT = _fixed(501, "5.5.4", "Syntax error in argument")
BAD_HELO = _fixed(501, "5.5.4", "Say EHLO with a host name")
BAD_PARAMETER = _fixed(501, "5.5.4", "Bad value of a parameter")
UNKNOWN_PARAMETER = _fixed(555, "5.5.4", "Unknown parameter")
BAD_REVERSE_PATH = _fixed(501, "5.1.7", "Bad sender address syntax; say MAIL FROM:<address>")
BAD_FORWARD_PATH = _fixed(501, "5.1.3", "Bad recipient address syntax; say RCPT TO:<address>")
NEEDS_SMTPUTF8 = _fixed(553, "5.6.7", "An address outside ASCII needs the SMTPUTF8 parameter")
BAD_CHUNK_SIZE = _fixed(501, "5.5.4", "Say BDAT octets [LAST]")

EHLO_FIRST = _fixed(503, "5.5.1", "Say EHLO first")
TLS_FIRST = _fixed(530, "5.7.0", "Must issue a STARTTLS command first")
TLS_FIRST_FOR_AUTH = _fixed(538, "5.7.11", "Encryption required for AUTH; issue STARTTLS first")
AUTH_FIRST = _fixed(530, "5.7.0", "Authentication required")
TLS_TWICE = _fixed(503, "5.5.1", "TLS is already active")
AUTH_TWICE = _fixed(503, "5.5.1", "Already authenticated")
AUTH_TOO_LATE = _fixed(503, "5.5.1", "AUTH is not permitted inside a transaction")
MAIL_FIRST = _fixed(503, "5.5.1", "Need MAIL first")
MAIL_TWICE = _fixed(503, "5.5.1", "A transaction is already open")
RCPT_FIRST = _fixed(503, "5.5.1", "Need a valid RCPT first")
CHUNKS_BEGUN = _fixed(503, "5.5.1", "The message is being sent by BDAT; only BDAT or RSET now")

AUTH_CANCELLED = _fixed(501, "5.7.0", "Authentication cancelled")
BAD_BASE64 = _fixed(501, "5.5.2", "Cannot decode the authentication response")
UNKNOWN_MECHANISM = _fixed(504, "5.5.4", "Unknown authentication mechanism")

TOO_LARGE = _fixed(552, "5.3.4", "Message too large")
NO_TRANSACTION_ANY_MORE = _fixed(503, "5.5.1", "The transaction was refused; begin again with MAIL")
