# SPDX-License-Identifier: Apache-2.0
"""Links, passwords, the users of an account: who may do what, and that it is written down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
from sqlalchemy import insert

from hepmaild.config import DAY_US
from hepmaild.login import LoginRefusal, TokenSet, Viewer
from hepmaild.people import link_url
from hepmaild.storage import accounts, links, users
from hepmaild.storage.schema_people import user
from tests.people.conftest import AGENT, ANN, BEN, EVE, IP, PASSWORD, World, actor_of, add_account

NEW = "another horse battery"


async def make_link(world: World, email: str = ANN, purpose: str = links.RESET) -> str:
    token = links.new_token()
    user = await world.store.read(users.find, email)
    await world.store.write(links.make, token=token, user_id=user.user_id, purpose=purpose, now_us=world.clock.us)
    return token


async def use_link(world: World, token: str, password: str = NEW, otp: str | None = None) -> TokenSet | LoginRefusal:
    return await world.people.set_password_by_link(token, password, ip=IP, agent=AGENT, otp=otp)


def code_of(answer: TokenSet | LoginRefusal) -> int:
    return answer.code if isinstance(answer, LoginRefusal) else 200


async def test_a_link_sets_the_password_once(world: World) -> None:
    before = await world.tokens(kind="browser")
    token = await make_link(world)
    for _ in range(2):
        link = await world.people.open_link(token)
        assert link is not None, "looking does not use it up"
        assert (link.email, link.purpose, link.needs_otp) == (ANN, "reset", False)
    assert await world.people.viewer_of(before.access_token) is not None
    granted = await use_link(world, token)
    assert isinstance(granted, TokenSet)
    viewer = await world.people.viewer_of(granted.access_token)
    assert viewer is not None
    assert viewer.email == ANN
    assert await world.people.viewer_of(before.access_token) is None
    assert code_of(await use_link(world, token)) == 41001
    assert await world.people.open_link(token) is None
    assert await world.refusal(ANN, PASSWORD) == 40102
    assert isinstance(await world.login(ANN, NEW), TokenSet)
    assert (await world.store.read(users.find, ANN)).is_verified
    assert await world.actions() == ["user.password"]


async def test_a_link_used_twice_at_once(world: World) -> None:
    token = await make_link(world)
    codes: list[int] = []

    async def one(of: World) -> None:
        codes.append(code_of(await use_link(of, token)))

    async with world.another() as second, trio.open_nursery() as nursery:
        nursery.start_soon(one, world)
        nursery.start_soon(one, second)
    assert sorted(codes) == [200, 41001]


async def test_links_that_do_not_work(world: World) -> None:
    token = await make_link(world)
    for wrong in ("", "x", token[:-1], token + "A", "ä", "\ud800", "x" * 10_000):
        assert await world.people.open_link(wrong) is None
        assert code_of(await use_link(world, wrong)) == 41001
    newer = await make_link(world)
    assert await world.people.open_link(token) is None, "a newer one takes its place"
    world.clock.us += DAY_US
    assert await world.people.open_link(newer) is None


async def test_a_bad_password_does_not_use_the_link_up(world: World) -> None:
    token = await make_link(world)
    for password in ("short", "password1234", ANN, ""):
        answer = await use_link(world, token, password)
        assert isinstance(answer, LoginRefusal)
        assert (answer.code, answer.http_status) == (40003, 400)
    assert isinstance(await use_link(world, token), TokenSet)


async def test_another_password_ends_links(world: World) -> None:
    token = await make_link(world)
    viewer = await world.viewer()
    assert isinstance(await world.people.change_password(viewer, PASSWORD, NEW, ip=IP, agent=AGENT), TokenSet)
    assert code_of(await use_link(world, token, PASSWORD)) == 41001


async def test_a_link_needs_the_second_factor_too(world: World) -> None:
    _, codes = await world.enrol()
    token = await make_link(world)
    link = await world.people.open_link(token)
    assert link is not None
    assert link.needs_otp
    assert code_of(await use_link(world, token)) == 40103
    wrong = [code_of(await use_link(world, token, otp="0" * 7)) for _ in range(6)]
    assert wrong == [40103] * 5 + [42901]
    world.clock.us += 900_000_000
    assert isinstance(await use_link(world, token, otp=codes[0]), TokenSet)


async def test_the_operators_link_frees_who_is_locked_out(world: World) -> None:
    await add_account(world.store, "account-3", "op@example.com", world.clock.us, is_operator=True)
    operator = await world.viewer("op@example.com")
    _, codes = await world.enrol()
    for _ in range(5):
        await world.login(ANN, "wrong")
    members = world.people.members
    token = await members.reset_link(operator, actor_of(operator), world.ids[ANN], drop_second_factor=True)
    assert isinstance(await use_link(world, token), TokenSet)
    assert isinstance(await world.login(ANN, NEW), TokenSet)
    assert codes
    assert await world.actions() == ["second_factor.on", "user.link", "user.password"]
    eve = await world.viewer(EVE)
    with pytest.raises(ValueError, match="only the operator"):
        await members.reset_link(eve, actor_of(eve), world.ids[ANN])


def test_the_address_of_a_link() -> None:
    assert link_url("https://mail.example.com/", "abc") == "https://mail.example.com/link/abc"


# The own password


async def test_the_own_password(world: World) -> None:
    program = await world.tokens()
    tokens = await world.tokens(kind="browser")
    viewer = await world.people.viewer_of(tokens.access_token)
    assert viewer is not None
    change = world.people.change_password
    assert code_of(await change(viewer, "wrong", NEW, ip=IP, agent=AGENT)) == 40102
    assert code_of(await change(viewer, PASSWORD, "short", ip=IP, agent=AGENT)) == 40003
    fresh = await change(viewer, PASSWORD, NEW, ip=IP, agent=AGENT)
    assert isinstance(fresh, TokenSet)
    assert fresh.session_id != tokens.session_id
    for old in (program, tokens):
        assert await world.people.viewer_of(old.access_token) is None
    assert await world.people.viewer_of(fresh.access_token) is not None
    assert isinstance(await world.login(ANN, NEW), TokenSet)
    assert code_of(await change(viewer, NEW, PASSWORD, ip=IP, agent=AGENT)) == 40102, "its session has ended"
    assert await world.actions() == ["user.password"]


async def test_the_old_password_is_not_to_be_guessed(world: World) -> None:
    viewer = await world.viewer()
    codes = [code_of(await world.people.change_password(viewer, "x", NEW, ip=IP, agent=AGENT)) for _ in range(6)]
    assert codes == [40102] * 5 + [42901]


# The users of an account


async def test_an_invitation(world: World) -> None:
    ann = await world.viewer()
    members = world.people.members
    world.clock.us += 1
    token = await members.invite(ann, actor_of(ann), " Ben@example.com ", "admin")
    assert await world.refusal(BEN, "") == 40102
    again = await members.invite_again(ann, actor_of(ann), (await world.store.read(users.find, BEN)).user_id)
    assert await world.people.open_link(token) is None
    granted = await use_link(world, again)
    assert isinstance(granted, TokenSet)
    assert granted.scope == ("admin",)
    assert [(row["email"], row["scope"]) for row in await members.users(ann)] == [
        (ANN, "owner"),
        ("Ben@example.com", "admin"),
    ]
    assert all("password_hash" not in row for row in await members.users(ann))
    with pytest.raises(ValueError, match="has a password already"):
        await members.invite_again(ann, actor_of(ann), (await world.store.read(users.find, BEN)).user_id)
    for email, scope, why in (
        (BEN, "admin", "is a user of this service already"),
        (EVE, "admin", "is a user of this service already"),
        ("nobody", "admin", "is not an email address"),
        ("x@example.com", "king", "no role"),
    ):
        with pytest.raises(ValueError, match=why):
            await members.invite(ann, actor_of(ann), email, scope)
    assert await world.actions() == ["user.invite", "user.invite", "user.password"]


async def test_an_account_has_so_many_users_and_no_more(world: World) -> None:
    """One page shows them all.  Of several who take the last place at once, in two processes, one gets it."""
    now_us = world.clock.us
    common = {"account_id": "account-1", "scope": "read_only", "is_operator": False}
    rows = [
        {**common, "id": f"u{n}", "email": f"u{n}@a.example", "email_key": f"u{n}@a.example"}
        for n in range(users.MAX_USERS - 2)
    ]
    times = {"created_at_us": now_us, "modified_at_us": now_us}
    await world.store.write(lambda conn: conn.execute(insert(user), [{**row, **times} for row in rows]).rowcount)
    said: list[str] = []

    async def invite(process: World, email: str) -> None:
        ann = await process.viewer()
        try:
            await process.people.members.invite(ann, actor_of(ann), email, "admin")
        except ValueError as error:
            said.append(str(error))

    async with world.another() as other, trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(invite, (world, other)[n % 2], f"last{n}@b.example")
    assert said == [f"the account has {users.MAX_USERS} users, as many as it may: remove one first"] * 3
    assert len(await world.people.members.users(await world.viewer())) == users.MAX_USERS
    await world.add_user(BEN, "admin", of="account-2")


async def test_an_owner_who_was_only_invited_is_none_to_leave_the_account_to(world: World) -> None:
    ann = await world.viewer()
    members, actor = world.people.members, actor_of(ann)
    token = await members.invite(ann, actor, BEN, "owner")
    for leave in (members.remove(ann, actor, ann.user_id), members.set_scope(ann, actor, ann.user_id, "admin")):
        with pytest.raises(ValueError, match="at least one owner who has a password"):
            await leave
    ben_id = (await world.store.read(users.find, BEN)).user_id
    await members.set_scope(ann, actor, ben_id, "admin")
    await members.set_scope(ann, actor, ben_id, "owner")
    assert isinstance(await use_link(world, token), TokenSet)
    await members.remove(ann, actor, ann.user_id)


async def test_owners_change_everything_but_the_last_owner(world: World) -> None:
    ben = await world.add_user(BEN, "admin")
    ann = await world.viewer()
    members, actor = world.people.members, actor_of(ann)
    with pytest.raises(ValueError, match="at least one owner"):
        await members.set_scope(ann, actor, ann.user_id, "admin")
    with pytest.raises(ValueError, match="at least one owner"):
        await members.remove(ann, actor, ann.user_id)
    with pytest.raises(ValueError, match="cannot suspend yourself"):
        await members.set_status(ann, actor, ann.user_id, "suspended")
    await members.set_status(ann, actor, ben, "suspended")
    await members.set_status(ann, actor, ben, "active")
    await members.set_scope(ann, actor, ben, "owner")
    await members.set_scope(ann, actor, ben, "owner")
    await members.set_names(ann, actor, " Ann ", "Ärmel 😀")
    viewer = await world.people.viewer_of((await world.tokens()).access_token)
    assert viewer is not None
    assert viewer.name == "Ann Ärmel 😀"
    with pytest.raises(ValueError, match="100 printable"):
        await members.set_names(ann, actor, "x\ny", "")
    await members.set_scope(ann, actor, ann.user_id, "read_only")
    assert await world.actions() == ["user.suspend", "user.resume", "user.scope", "user.name", "user.scope"]


Attempt = Callable[[World, Viewer, str], Awaitable[object]]
ATTEMPTS: dict[str, Attempt] = {
    "scope": lambda w, v, who: w.people.members.set_scope(v, actor_of(v), who, "read_only"),
    "status": lambda w, v, who: w.people.members.set_status(v, actor_of(v), who, "suspended"),
    "remove": lambda w, v, who: w.people.members.remove(v, actor_of(v), who),
    "invite again": lambda w, v, who: w.people.members.invite_again(v, actor_of(v), who),
    "reset": lambda w, v, who: w.people.members.reset_link(v, actor_of(v), who),
}


@pytest.mark.parametrize("what", ATTEMPTS)
async def test_who_may_not(world: World, what: str) -> None:
    ben, cat = await world.add_user(BEN, "admin"), await world.add_user("cat@example.com", "read_only")
    op = await add_account(world.store, "account-3", "op@example.com", world.clock.us, is_operator=True)
    viewers = {email: await world.viewer(email) for email in (ANN, BEN, "cat@example.com", EVE)}
    for email, others in {
        ANN: (world.ids[EVE], op, "nobody"),
        BEN: (world.ids[ANN], world.ids[EVE]),
        "cat@example.com": (world.ids[ANN], ben, cat),
        EVE: (world.ids[ANN], ben, cat),
    }.items():
        for other in others:
            with pytest.raises(ValueError, match=r"only|no longer|role|operator"):
                await ATTEMPTS[what](world, viewers[email], other)
    assert await world.actions() == await world.actions("account-2") == []


async def test_who_may_not_see_or_end_sessions(world: World) -> None:
    await world.add_user(BEN, "admin")
    await world.add_user("cat@example.com", "read_only")
    ann, ben = await world.viewer(), await world.viewer(BEN)
    cat, eve = await world.viewer("cat@example.com"), await world.viewer(EVE)
    members = world.people.members
    for viewer, other in ((ben, ann), (cat, ann), (cat, ben), (eve, ann), (ann, eve)):
        with pytest.raises(ValueError, match=r"only|ended|role"):
            await members.end_session(viewer, actor_of(viewer), other.session_id)
    with pytest.raises(ValueError, match="role"):
        await members.sessions(cat, of_all=True)
    assert {row["email"] for row in await members.sessions(ben, of_all=True)} == {ANN, BEN, "cat@example.com"}
    assert [row["email"] for row in await members.sessions(cat)] == ["cat@example.com"]
    await members.end_session(ben, actor_of(ben), cat.session_id)
    assert await world.people.viewer_in(cat.session_id) is None
    await world.tokens(BEN)
    assert await members.end_other_sessions(ben, actor_of(ben)) == 1
    assert await world.people.viewer_in(ben.session_id) is not None


async def test_an_admin_makes_nobody_owner(world: World) -> None:
    await world.add_user(BEN, "admin")
    cat = await world.add_user("cat@example.com", "read_only")
    ben = await world.viewer(BEN)
    members, actor = world.people.members, actor_of(ben)
    with pytest.raises(ValueError, match="only an owner"):
        await members.invite(ben, actor, "x@example.com", "owner")
    with pytest.raises(ValueError, match="only an owner"):
        await members.set_scope(ben, actor, cat, "owner")
    await members.set_scope(ben, actor, cat, "admin")
    await members.remove(ben, actor, cat)
    assert await world.refusal("cat@example.com") == 40102


async def test_a_removed_user_leaves_nothing(world: World) -> None:
    cat = await world.add_user("cat@example.com", "read_only")
    await world.enrol("cat@example.com")
    tokens = await world.tokens(EVE)
    ann = await world.viewer()
    await world.people.members.remove(ann, actor_of(ann), cat)
    await world.add_user("cat@example.com", "read_only")
    assert isinstance(await world.login("cat@example.com"), TokenSet), "the address is free, its second factor gone"
    assert await world.people.viewer_of(tokens.access_token) is not None


async def test_an_account_keeps_its_address_when_its_first_owner_is_gone(world: World) -> None:
    await world.add_user(BEN, "owner")
    await world.store.write(users.remove, "account-1", world.ids[ANN])
    with pytest.raises(ValueError, match=f"there is an account for {ANN} already"):
        await add_account(world.store, "account-3", ANN, world.clock.us)
    await world.add_user(ANN, "read_only", of="account-2")
    assert (await world.store.read(users.find, ANN)).account_id == "account-2"


async def test_of_many_that_take_an_address_at_once_one_gets_it(world: World) -> None:
    """Accounts and invitations, in two processes: the others are told so, and leave nothing behind."""
    said: list[str] = []

    async def take(process: World, number: int) -> None:
        try:
            if number % 2:
                await process.add_user(BEN, "admin", of="account-2")
            else:
                await add_account(process.store, f"account-{number}", BEN, world.clock.us)
        except ValueError as error:
            said.append(str(error))

    async with world.another() as other, trio.open_nursery() as nursery:
        for number in range(10, 18):
            nursery.start_soon(take, (world, other)[number % 4 // 2], number)
    assert len(said) == 7
    assert all("already" in text for text in said)
    owner = await world.store.read(users.find, BEN)
    made = {row["id"] for row in await world.store.read(accounts.list_all)} - {"account-1", "account-2"}
    assert made == {owner.account_id} - {"account-2"}, "no account without anybody"
