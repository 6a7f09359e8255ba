# SPDX-License-Identifier: Apache-2.0
"""Where one-time links lead, whoever makes them: to the address by which people reach the dashboard."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Connection, update

from hepmaild.config import HttpSettings, ServerSettings, Settings, dashboard_url
from hepmaild.storage.schema_people import user
from tests.dashboard.inside import open_inside
from tests.people.conftest import EVE, database_url, opener
from tests.storage.conftest import Opener

__all__ = ["database_url", "opener"]


def make_operators(conn: Connection) -> None:
    conn.execute(update(user).values(is_operator=True))


@pytest.mark.parametrize(
    ("listen", "public_url", "place"),
    [
        (("[::]:8443", "[::]:443"), "", "https://mail.example.org:8443"),
        (("[::]:443",), "", "https://mail.example.org"),
        (("[::]:8443",), "https://post.example.org/", "https://post.example.org"),
    ],
)
async def test_links(opener: Opener, tmp_path: Path, listen: tuple[str, ...], public_url: str, place: str) -> None:
    """Of a new account and of a user's new password, by the operator; of an invitation; and the command line's."""
    http = HttpSettings(listen=listen, public_url=public_url)
    settings = replace(Settings(), server=ServerSettings(hostname="mail.example.org"), http=http)
    async with open_inside(opener, tmp_path, settings) as inside:
        await inside.world.store.write(make_operators)
        await inside.sign_in()
        for path, form in (
            ("/operator/accounts", {"email": "new@example.com", "credits": "1", "plan": "standard"}),
            (f"/operator/accounts/account-2/users/{inside.world.ids[EVE]}/link", {}),
            ("/security/users", {"email": "invited@example.com", "scope": "admin"}),
        ):
            answer = await inside.post(path, form)
            found = re.search(r'data-copy="(https://[^"]*)/link/[^"/]+"', answer.text)
            assert found is not None, f"{path}: {answer.status_code}"
            assert found[1] == place, path
        assert dashboard_url(settings) == place
