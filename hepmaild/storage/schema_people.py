# SPDX-License-Identifier: Apache-2.0
"""The tables of those who log in: users, sessions, tokens, links, tries, and the record of what they changed."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, LargeBinary, String, Table, Text, text

from hepmaild.storage.schema_base import metadata

# People who log in.
user = Table(
    "user_account",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(36), ForeignKey("account.id"), nullable=False, index=True),
    Column("email", Text, nullable=False),
    Column("email_key", Text, nullable=False, unique=True),
    Column("first_name", Text, nullable=False, server_default=""),
    Column("surname", Text, nullable=False, server_default=""),
    Column("password_hash", Text, nullable=True),
    Column("scope", String(20), nullable=False),  # owner, admin, read_only
    Column("is_operator", Boolean, nullable=False),
    Column("is_verified", Boolean, nullable=False, server_default=text("false")),  # came in by a link given to them
    Column("status", String(20), nullable=False, server_default="active"),  # active, suspended
    # The second factor: its secret, sealed (`vault`); since when it is asked for (null: not confirmed yet); the newest
    # step whose code was used.
    Column("totp_sealed", LargeBinary, nullable=True),
    Column("totp_since_us", BigInteger, nullable=True),
    Column("totp_step", BigInteger, nullable=False, server_default="0"),
    Column("created_at_us", BigInteger, nullable=False),
    Column("modified_at_us", BigInteger, nullable=False),
)

# For whoever has lost the device that makes the codes; each once.
recovery_code = Table(
    "recovery_code",
    metadata,
    Column("user_id", String(36), primary_key=True),
    Column("code_hash", LargeBinary(32), primary_key=True),
    Column("used_at_us", BigInteger, nullable=True),
    sqlite_with_rowid=False,
)

# Somebody who is logged in: a browser or a program.  It is the family of its refresh tokens.
login_session = Table(
    "login_session",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(36), nullable=False),
    Column("kind", String(10), nullable=False),  # browser, program
    Column("ip", String(45), nullable=False),
    Column("agent", String(200), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("seen_at_us", BigInteger, nullable=False),  # when it last got an access token
    Column("ends_at_us", BigInteger, nullable=False),  # at the latest
    Column("ended_at_us", BigInteger, nullable=True),
    Column("ended_by", String(20), nullable=True),  # why
)
Index("ix_login_session_user_id", login_session.c.user_id, login_session.c.created_at_us)
Index("ix_login_session_ends_at_us", login_session.c.ends_at_us)

refresh_token = Table(
    "refresh_token",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("session_id", String(36), nullable=False),
    Column("created_at_us", BigInteger, nullable=False),  # when the one before it was used
    Column("used_at_us", BigInteger, nullable=True),
    # Browsers only: the token that came after this one, readable with this one alone (`sessions.wrap`).
    Column("successor", LargeBinary, nullable=True),
)
# A program may have had a million of them in its 30 days: the latest are found without the others.
Index("ix_refresh_token_session_id_used_at_us", refresh_token.c.session_id, refresh_token.c.used_at_us)

# The public halves of the keys that sign access tokens; the private ones never leave their processes.
token_key = Table(
    "token_key",
    metadata,
    Column("id", String(22), primary_key=True),
    Column("public_key", LargeBinary(32), nullable=False),
    Column("until_us", BigInteger, nullable=False),
)

# Links that sign somebody in once: the first time, after a reset, as an invitation.
one_time_link = Table(
    "one_time_link",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("user_id", String(36), nullable=False, index=True),
    Column("purpose", String(10), nullable=False),  # sign-in, reset, invite
    Column("created_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("used_at_us", BigInteger, nullable=True),
)
Index("ix_one_time_link_expires_at_us", one_time_link.c.expires_at_us)

# Tries to log in that failed, or are not decided yet.
login_try = Table(
    "login_try",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("client", String(49), nullable=False),  # an IPv4 address, or the /64 of an IPv6 one
    Column("email_hash", LargeBinary(32), nullable=False),  # of what was typed; of nothing: a refresh
    Column("counts_client", Boolean, nullable=False),  # false: the client has had a success since
    Column("is_code", Boolean, nullable=False),  # the password was right, the second factor was not
    Column("at_us", BigInteger, nullable=False),
)
Index("ix_login_try_client_at_us", login_try.c.client, login_try.c.at_us)
Index("ix_login_try_at_us", login_try.c.at_us)
Index("ix_login_try_email_hash_at_us", login_try.c.email_hash, login_try.c.at_us)

# Who changed what, from where: append-only and hash-chained for each account ("": the service itself), like the ledger.
audit = Table(
    "audit",
    metadata,
    Column("account_id", String(36), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("at_us", BigInteger, nullable=False),
    Column("user_id", String(36), nullable=True),
    Column("actor", Text, nullable=False),  # an e-mail address, or who ran the command line
    Column("ip", String(45), nullable=False),
    Column("via", String(10), nullable=False),  # dashboard, api, cli
    Column("action", String(60), nullable=False),
    Column("subject", Text, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Column("hash", String(64), nullable=False),
    sqlite_with_rowid=False,
)
audit_head = Table(
    "audit_head",
    metadata,
    Column("account_id", String(36), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)
