# SPDX-License-Identifier: Apache-2.0
"""The users of an account and its audit log, through the real daemon on both engines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from hepmaild.audit_words import ACTIONS
from hepmaild.http.dashboard.audit import KINDS
from hepmaild.http.dashboard.devices import device_words
from tests.dashboard.conftest import OTHER, READER, Site
from tests.dashboard.test_pages import alter
from tests.dashboard.test_security import make_person, session_ids, user_id_of
from tests.dashboard.visitor import csrf_of, link_of, open_client, sign_in, words
from tests.peers.daemon import ACCOUNT

USERS = "/security/users"
POSTS: dict[str, dict[str, str]] = {"suspend": {}, "resume": {}, "link": {}}


def link_in(page: str) -> str:
    found = re.findall(r"https://[^\s<\"]+/link/[\w-]{43}", page)
    assert len(set(found)) == 1, words(page)
    return str(found[0])


def test_somebody_is_invited_and_comes(site: Site) -> None:
    before = words(site.owner.get(USERS))
    assert ACCOUNT in before
    assert "you" in before
    email = "new.one@example.com"
    page = site.owner.post(USERS, {"email": f" {email} ", "scope": "admin"}, page=f"{USERS}/new")
    assert page.status_code == 200
    assert page.headers["Cache-Control"] == "no-store"
    link = link_in(page.text)
    path = f"{USERS}/{user_id_of(site, email)}"
    assert link.rpartition("/")[2] not in site.owner.get(path) + site.owner.get(USERS) + site.daemon.log()
    assert "pending" in words(site.owner.get(path))
    # Another link takes the place of the first.
    second = link_in(site.owner.post(f"{path}/link", page=path).text)
    assert second != link
    with open_client(site.daemon) as client:
        assert client.get(f"/link/{link.rpartition('/')[2]}").status_code == 410
    with sign_in(site.daemon, second) as visitor:
        assert "Invite a user" in words(visitor.get(USERS))
        assert "pending" not in words(site.owner.get(path))
        again = site.owner.post(f"{path}/link", page=path)
        assert again.status_code == 422
        assert "has a password already" in words(again.text)
        # Their sessions stand on the page, and end there.
        (session,) = session_ids(site.owner.get(path))
        assert "The session has ended" in words(site.owner.follow(f"/security/sessions/{session}/end", page=path))
        assert visitor.client.get("/security").status_code == 303


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"email": "nonsense"}, "is not an email address"),
        ({"email": ""}, "Give the e-mail address"),
        ({"email": ACCOUNT}, "is a user of this service already"),
        ({"email": OTHER}, "is a user of this service already"),
        ({"scope": "operator"}, "Choose a role that you may give."),
        ({"scope": ""}, "Choose a role that you may give."),
    ],
)
def test_what_is_wrong_with_an_invitation(site: Site, fields: dict[str, str], says: str) -> None:
    typed = {"email": "typed@example.com", "scope": "admin", **fields}
    answer = site.owner.post(USERS, typed, page=f"{USERS}/new")
    assert answer.status_code == 422
    assert says in words(answer.text)
    assert f'value="{typed["email"]}"' in answer.text
    assert "typed@example.com" not in site.owner.get(USERS)


def test_roles_suspension_and_removal_count_at_once(site: Site) -> None:
    with make_person(site, "admin") as person:
        path = f"{USERS}/{person.user_id}"
        person.visitor.get(USERS)
        assert "read only now" in words(site.owner.follow(f"{path}/scope", {"scope": "read_only"}, page=path))
        person.visitor.get(USERS, status=403)
        person.visitor.get("/security")
        site.owner.follow(f"{path}/scope", {"scope": "admin"}, page=path)
        person.visitor.get(USERS)

        assert "signed out everywhere" in words(site.owner.follow(f"{path}/suspend", page=path))
        assert not person.is_in(person.visitor.client)
        assert "suspended" in words(site.owner.get(path))
        with open_client(site.daemon) as client:
            assert person.log_in(client).status_code == 401
            site.owner.follow(f"{path}/resume", page=path)
            assert person.log_in(client).status_code == 303
            wrong = site.owner.post(f"{path}/remove", {"confirm": "somebody@example.com"}, page=path)
            assert wrong.status_code == 422
            assert "Nobody was removed." in words(wrong.text)
            assert 'value="somebody@example.com"' in wrong.text
            assert person.is_in(client)
            gone = site.owner.follow(f"{path}/remove", {"confirm": person.email.upper()}, page=path)
            assert "is removed and signed out" in words(gone)
            assert not person.is_in(client)
            assert person.log_in(client).status_code == 401
        site.owner.get(path, status=404)
        done = words(site.owner.get(f"/security/audit?q={person.email}"))
    for action in ("User invited", "Role changed", "User suspended", "User let in again", "User removed"):
        assert action in done, action


@pytest.mark.parametrize(
    ("change", "status"), [(("user", "remove"), 303), (("user", "scope", "read_only"), 403)], ids=["removed", "demoted"]
)
def test_a_form_that_began_before_its_sender_fell_changes_nothing(
    site: Site, change: tuple[str, ...], status: int
) -> None:
    """Its last octets may wait for just that moment."""
    fallen, friend = f"fallen-{status}@example.com", f"friend-{status}@example.com"
    with sign_in(site.daemon, link_of(site.daemon.json("user", "add", ACCOUNT, fallen, "--scope", "admin"))) as visitor:
        fields = {"csrf": csrf_of(visitor.get("/security")), "email": friend, "scope": "admin"}
        content = urlencode(fields).encode()

        def slowly() -> Iterator[bytes]:
            yield content[:-1]
            site.daemon.json(*change[:2], fallen, *change[2:])
            yield content[-1:]

        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Content-Length": str(len(content)),
            "Sec-Fetch-Site": "same-origin",
        }
        response = visitor.client.post("/security/users", content=slowly(), headers=headers)
    assert response.status_code == status, words(response.text)[:500]
    assert friend not in [row["email"] for row in site.daemon.json("user", "list", ACCOUNT)]


def test_the_last_owner_stays(site: Site) -> None:
    me = user_id_of(site, ACCOUNT)
    path = f"{USERS}/{me}"
    for action, fields in (("scope", {"scope": "admin"}), ("remove", {"confirm": ACCOUNT})):
        refused = site.owner.post(f"{path}/{action}", fields, page=path)
        assert refused.status_code == 422
        assert "keeps at least one owner" in words(refused.text)
    assert "You cannot suspend yourself." in words(site.owner.post(f"{path}/suspend", page=path).text)
    # With a second one they may go; the second one then is the last.
    with make_person(site, "owner") as person:
        theirs = f"{USERS}/{person.user_id}"
        left = person.visitor.follow(f"{theirs}/scope", {"scope": "read_only"}, page=theirs)
        assert "read only now" in words(left)
        site.owner.follow(f"{theirs}/scope", {"scope": "owner"}, page=theirs)
        site.owner.follow(f"{theirs}/remove", {"confirm": person.email}, page=theirs)
    assert site.owner.client.get(path).status_code == 200


def test_admins_cannot_touch_owners(site: Site) -> None:
    owner = f"{USERS}/{user_id_of(site, ACCOUNT)}"
    with make_person(site, "admin") as admin, make_person(site) as reader:
        page = admin.visitor.get(owner)
        assert f'action="{owner}' not in page
        assert session_ids(page) == []
        assert "can change" in words(page)
        posts = {
            "scope": {"scope": "read_only"},
            "remove": {"confirm": ACCOUNT},
            "suspend": {},
            "resume": {},
            "link": {},
        }
        for action, fields in posts.items():
            assert admin.visitor.post(f"{owner}/{action}", fields, page="/security").status_code == 403, action
        theirs = f"{USERS}/{reader.user_id}"
        assert 'value="owner"' not in admin.visitor.get(theirs)
        for path, fields in (
            (f"{theirs}/scope", {"scope": "owner"}),
            (USERS, {"email": "x@example.com", "scope": "owner"}),
        ):
            refused = admin.visitor.post(path, fields, page="/security")
            assert refused.status_code == 422
            assert "Choose a role that you may give." in words(refused.text)
        assert "admin now" in words(admin.visitor.follow(f"{theirs}/scope", {"scope": "admin"}, page=theirs))


def test_other_accounts_and_readers_and_forgers(site: Site) -> None:
    with make_person(site) as person:
        path = f"{USERS}/{person.user_id}"
        site.other.get(path, status=404)
        posts = {
            "scope": {"scope": "owner"},
            "remove": {"confirm": person.email},
            "suspend": {},
            "resume": {},
            "link": {},
        }
        for action, fields in posts.items():
            assert site.other.post(f"{path}/{action}", fields, page="/security").status_code == 404, action
            assert person.visitor.post(f"{path}/{action}", fields, page="/security").status_code == 403, action
            assert site.owner.post(f"{path}/{action}", fields, token="forged").status_code == 403, action
        assert person.visitor.post(USERS, {"email": "x@example.com"}, page="/security").status_code == 403
        assert person.visitor.post("/security/audit/verify", page="/security").status_code == 403
        assert person.email not in site.other.get(USERS)
        assert person.is_in(person.visitor.client)


# The audit log


def test_the_audit_log_says_who_what_and_from_where(site: Site) -> None:
    with make_person(site, "admin") as person:
        page = words(site.owner.get("/security/audit"))
        assert "User invited" in page
        assert person.email in page
        assert "dashboard, 127.0.0.1" in page
        found = words(site.owner.get(f"/security/audit?q={person.email}&kind=user"))
        assert "Password set" in found
        assert "Key made" not in found
        assert "No row like this" in words(site.owner.get("/security/audit?q=nobody-was-here"))
        assert "No row like this" in words(site.owner.get("/security/audit?q=%25"))
        mine = words(person.visitor.get("/security/audit"))
        assert "User invited" in mine
        assert person.email not in words(site.other.get("/security/audit"))


def test_the_audit_log_goes_page_by_page(site: Site) -> None:
    path = f"{USERS}/{user_id_of(site, READER)}"
    for n in range(52):
        scope = "admin" if n % 2 == 0 else "read_only"
        assert site.owner.post(f"{path}/scope", {"scope": scope}, page="/security").status_code == 303
    for start in ("/security/audit", "/security/audit?kind=user", "/security/audit?q=reader%40"):
        seen: list[str] = []
        address = start
        while address:
            page = site.owner.get(address)
            seen += re.findall(r'<tr data-line data-id="(\d+)"', page)
            older = re.search(r'rel="next" href="([^"]+)"', page)
            address = older[1].replace("&amp;", "&") if older else ""
        assert len(seen) >= 52
        assert seen == sorted(set(seen), key=int, reverse=True)
    for text in ("-1", "x", "9" * 30, "²"):
        assert site.owner.client.get("/security/audit", params={"before": text}).status_code == 200


def test_words_from_outside_stay_text(site: Site) -> None:
    name = '<img src=x onerror="alert(1)">{{ 7 * 7 }}'
    fields = {"name": name, "permission": ["smtp", "http"]}
    assert site.owner.post("/keys", fields, page="/keys/new").status_code == 200
    page = site.owner.get("/security/audit?kind=key")
    assert "<img" not in page
    assert "onerror=&#34;alert" in page
    with (
        open_client(site.daemon, headers={"User-Agent": "<script>alert(2)</script>"}) as client,
        make_person(site) as person,
    ):
        assert person.log_in(client).status_code == 303
        shown = client.get("/security").text
        assert "<script>alert" not in shown
        assert "script" in words(shown)


def test_the_chain_is_verified(site: Site) -> None:
    good = site.other.post("/security/audit/verify", page="/security/audit")
    assert good.status_code == 200
    assert "The chain holds" in words(good.text)
    rows = site.daemon.json("audit", "list", OTHER)
    account_id = rows[0]["account_id"]
    alter(site, f"update audit set subject = 'somebody else' where account_id = '{account_id}' and seq = 1")
    bad = site.other.post("/security/audit/verify", page="/security/audit")
    assert "The chain is broken: row 1 was changed" in words(bad.text)
    alter(site, f"update audit set subject = '{rows[-1]['subject']}' where account_id = '{account_id}' and seq = 1")
    assert "The chain holds" in words(site.other.post("/security/audit/verify", page="/security/audit").text)


def test_every_action_has_words() -> None:
    assert {action.partition(".")[0] for action in ACTIONS} <= set(KINDS)


@pytest.mark.parametrize(
    ("agent", "says"),
    [
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "Firefox on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/126.0 Safari/537.36 Edg/126.0", "Edge on Windows"),
        ("Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/126.0 Mobile Safari/537.36", "Chrome on Android"),
        ("Mozilla/5.0 (Macintosh) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15", "Safari on macOS"),
        ("curl/8.5.0", "curl 8.5.0"),
        ("", "Unknown device"),
        ("\u202e" + "x" * 500, "\u202e" + "x" * 59),
    ],
)
def test_devices_have_words(agent: str, says: str) -> None:
    assert device_words(agent) == says
