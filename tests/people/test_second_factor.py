# SPDX-License-Identifier: Apache-2.0
"""The second factor: turned on, asked for, used once, turned off; and what is left when the vault's file is gone."""

from __future__ import annotations

import base64
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from hepmaild import totp
from hepmaild.config import ServerSettings, Settings
from hepmaild.daemon import Clock, _Daemon
from hepmaild.login import LoginRefusal, TokenSet
from hepmaild.sdnotify import Notifier
from hepmaild.storage import schema_people, tries, users
from hepmaild.storage.store import open_store
from hepmaild.storage.unit import UnitRunner
from hepmaild.tls import ServerTls
from hepmaild.vault import FILE_NAME
from tests.people.conftest import ANN, BEN, EVE, IP, MINUTE_US, PASSWORD, World, actor_of, add_account

STEP_US = totp.STEP_S * 1_000_000


def code_at(world: World, secret: bytes, steps: int = 0) -> str:
    return totp.code(secret, totp.step_of(world.clock.us) + steps)


def wrong_code(world: World, secret: bytes) -> str:
    right = {code_at(world, secret, n) for n in (-1, 0, 1)}
    return next(code for code in ("000000", "111111", "222222", "333333") if code not in right)


async def test_it_is_asked_for(world: World) -> None:
    assert isinstance(await world.login(), TokenSet)
    secret, _ = await world.enrol()
    refused = await world.login()
    assert isinstance(refused, LoginRefusal)
    assert (refused.code, refused.http_status) == (40103, 401)
    assert await world.refusal(ANN, "wrong", otp=code_at(world, secret, 1)) == 40102
    world.clock.us += STEP_US
    assert isinstance(await world.login(otp=code_at(world, secret)), TokenSet)
    assert isinstance(await world.login(EVE), TokenSet)
    assert await world.actions() == ["second_factor.on"]


async def test_a_missing_code_is_no_wrong_try(world: World) -> None:
    await world.enrol()
    for _ in range(8):
        assert await world.refusal() == 40103


async def test_codes_go_by_the_machines_clock(tmp_path: Path) -> None:
    """The daemon's own is behind it once the machine has slept, or its clock was set, for as long as it runs."""
    asleep_us = 10 * MINUTE_US
    clock = Clock(time.time_ns() - time.monotonic_ns() - asleep_us * 1000)
    settings = Settings(server=ServerSettings(state_dir=tmp_path))
    tls = ServerTls(settings.tls, state_dir=tmp_path, hostname="smtp.example.com")
    async with open_store(settings.database, tmp_path, UnitRunner(clock.now_us), exclusive=False) as store:
        await store.upgrade()
        await add_account(store, "account-1", ANN, clock.now_us())
        with closing(Notifier({})) as notifier:
            people = _Daemon(settings, store, tls, notifier, clock, None).people
        await people.start()
        granted = await people.password_grant(ANN, PASSWORD, otp=None, ip=IP, agent="", kind="browser")
        assert isinstance(granted, TokenSet)
        viewer = await people.viewer_of(granted.access_token)
        assert viewer is not None
        begun = await people.members.begin_second_factor(viewer)
        secret = base64.b32decode(begun.secret)
        shown = totp.code(secret, totp.step_of(time.time_ns() // 1000))
        assert await people.members.confirm_second_factor(viewer, actor_of(viewer), shown)


@pytest.mark.parametrize("steps", [-1, 0, 1])
async def test_each_step_counts_once(world: World, steps: int) -> None:
    secret, _ = await world.enrol()
    world.clock.us += 10 * STEP_US
    code = code_at(world, secret, steps)
    assert isinstance(await world.login(otp=f" {code[:3]} {code[3:]} "), TokenSet)
    assert await world.refusal(otp=code) == 40103
    async with world.another() as second:
        assert await second.refusal(otp=code) == 40103
    world.clock.us += 2 * STEP_US
    assert isinstance(await world.login(otp=code_at(world, secret, 1)), TokenSet)


async def test_the_code_that_turned_it_on_is_used(world: World) -> None:
    secret, _ = await world.enrol()
    assert await world.refusal(otp=code_at(world, secret)) == 40103


@pytest.mark.parametrize("steps", [-3, -2, 2, 3])
async def test_clocks_may_differ_by_one_step_only(world: World, steps: int) -> None:
    secret, _ = await world.enrol()
    world.clock.us += 10 * STEP_US
    code = code_at(world, secret, steps)
    if code not in {code_at(world, secret, n) for n in (-1, 0, 1)}:
        assert await world.refusal(otp=code) == 40103


async def test_wrong_codes_are_tries(world: World) -> None:
    secret, _ = await world.enrol()
    world.clock.us += STEP_US
    codes = [await world.refusal(otp=wrong_code(world, secret)) for _ in range(6)]
    assert codes == [40103] * 5 + [42901]
    assert await world.refusal(otp=code_at(world, secret)) == 42901


async def test_wrong_codes_are_limited_from_wherever_they_come(world: World) -> None:
    """Who knows the password could try a million codes from a thousand addresses."""
    secret, _ = await world.enrol()
    for n in range(20):
        taken: dict[str, Any] = {"client": f"198.51.100.{n}", "email_key": ANN, "now_us": world.clock.us}
        await world.store.write(tries.begin, try_id=str(n), **taken)
        await world.store.write(tries.wrong_code, str(n))
    assert await world.refusal(otp=code_at(world, secret, 1)) == 42901
    world.clock.us += 15 * MINUTE_US
    assert isinstance(await world.login(otp=code_at(world, secret)), TokenSet)


async def ticket_of(world: World, visitor: str = "ann's browser", **more: Any) -> str:
    """What the sign-in page carries after the right password."""
    refused = await world.people.password_grant(
        ANN, PASSWORD, otp=None, ip=IP, agent="a test", kind="browser", visitor=visitor, **more
    )
    assert isinstance(refused, LoginRefusal)
    assert refused.code == 40103
    assert refused.ticket
    return refused.ticket


async def by_ticket(world: World, ticket: str, otp: str | None, visitor: str = "ann's browser") -> TokenSet | int:
    done = await world.people.code_grant(ticket, otp, visitor=visitor, ip=IP, agent="a test")
    return done.code if isinstance(done, LoginRefusal) else done


async def test_the_code_is_enough_after_the_password(world: World) -> None:
    secret, codes = await world.enrol()
    world.clock.us += STEP_US
    ticket = await ticket_of(world)
    assert PASSWORD not in ticket
    assert await by_ticket(world, ticket, None) == 40103
    assert await by_ticket(world, ticket, wrong_code(world, secret)) == 40103
    async with world.another() as second:
        tokens = await by_ticket(second, ticket, code_at(world, secret))
    assert isinstance(tokens, TokenSet)
    viewer = await world.people.viewer_of(tokens.access_token)
    assert viewer is not None
    assert viewer.email == ANN
    # The ticket alone is worth nothing: a code works once.
    assert await by_ticket(world, ticket, code_at(world, secret)) == 40103
    assert isinstance(await by_ticket(world, await ticket_of(world), codes[0]), TokenSet)


async def test_only_a_browser_gets_a_ticket_and_only_for_the_right_password(world: World) -> None:
    refused = await world.login(kind="browser")
    assert isinstance(refused, TokenSet)
    await world.enrol()
    for password in (PASSWORD, "wrong"):
        refused = await world.login(ANN, password)
        assert isinstance(refused, LoginRefusal)
        assert not refused.ticket
    refused = await world.people.password_grant(
        ANN, "wrong", otp=None, ip=IP, agent="a test", kind="browser", visitor="ann's browser"
    )
    assert isinstance(refused, LoginRefusal)
    assert (refused.code, refused.ticket) == (40102, "")


async def test_a_ticket_is_one_visitors_for_some_minutes(world: World) -> None:
    secret, _ = await world.enrol()
    world.clock.us += STEP_US
    ticket = await ticket_of(world)
    code = code_at(world, secret)
    assert await by_ticket(world, ticket, code, visitor="mallory's browser") == 40102
    parts = ticket.split(".")
    turned = parts[4][:20] + ("B" if parts[4][20] == "A" else "A") + parts[4][21:]
    for n, other in ((1, "0" * 36), (2, str(int(parts[2]) + 600)), (3, "A" * 43), (4, turned)):
        forged = ".".join([*parts[:n], other, *parts[n + 1 :]])
        assert await by_ticket(world, forged, code) == 40102, n
    guard = world.people.csrf_token("ann's browser")
    for nonsense in ("", ".", "....", "a.b.c.d.e", "\ud800", "x" * 5000, guard, f"{parts[0]}.{ticket}"):
        assert await by_ticket(world, nonsense, code) == 40102, nonsense
    assert not world.people.check_csrf("ann's browser", ticket)
    world.clock.us += 300 * 1_000_000
    assert await by_ticket(world, ticket, code_at(world, secret)) == 40102


async def test_a_ticket_ends_with_the_password_and_the_factor(world: World) -> None:
    secret, codes = await world.enrol()
    world.clock.us += STEP_US
    ticket = await ticket_of(world)
    ann = await by_ticket(world, ticket, code_at(world, secret))
    assert isinstance(ann, TokenSet)
    session = await world.people.viewer_of(ann.access_token)
    assert session is not None
    changed = await world.people.change_password(session, PASSWORD, "another good one", ip=IP, agent="a test")
    assert isinstance(changed, TokenSet)
    assert await by_ticket(world, ticket, codes[0]) == 40102


async def test_codes_behind_a_ticket_are_tries(world: World) -> None:
    secret, _ = await world.enrol()
    world.clock.us += STEP_US
    ticket = await ticket_of(world)
    wrong = wrong_code(world, secret)
    found = [await by_ticket(world, ticket, wrong) for _ in range(3)]
    found += [await world.refusal(otp=wrong) for _ in range(2)]
    assert found == [40103] * 5, "counted together, by whichever way they come"
    assert await by_ticket(world, ticket, code_at(world, secret)) == 42901
    assert await world.refusal() == 42901


async def test_recovery_codes_work_once_each(world: World) -> None:
    _, codes = await world.enrol()
    assert len(set(codes)) == totp.RECOVERY_CODES
    assert isinstance(await world.login(otp=codes[0].lower().replace("-", " ")), TokenSet)
    assert await world.refusal(otp=codes[0]) == 40103
    assert isinstance(await world.login(otp=codes[1]), TokenSet)
    viewer = await world.people.viewer_of((await world.tokens(otp=codes[2])).access_token)
    assert viewer is not None
    state = await world.people.members.second_factor(viewer)
    assert (state["codes_left"], state["since_us"], state["pending"]) == (7, world.clock.us, None)
    await world.tokens(EVE)
    secret_of_eve, codes_of_eve = await world.enrol(EVE)
    assert secret_of_eve
    assert await world.refusal(otp=codes_of_eve[0]) == 40103, "somebody else's"


async def test_what_was_begun_is_not_asked_for(world: World) -> None:
    viewer = await world.viewer()
    members = world.people.members
    first = await members.begin_second_factor(viewer)
    assert isinstance(await world.login(), TokenSet)
    pending = (await members.second_factor(viewer))["pending"]
    assert pending == first
    assert first.secret not in repr(first)
    with pytest.raises(ValueError, match="clock of your device"):
        await members.confirm_second_factor(viewer, actor_of(viewer), "000000000")
    second = await members.begin_second_factor(viewer)
    assert second.secret != first.secret
    with pytest.raises(ValueError, match="not on"):
        await members.disable_second_factor(viewer, actor_of(viewer), "000000")


async def test_it_is_turned_off_with_a_code_only(world: World) -> None:
    secret, codes = await world.enrol()
    viewer = await world.people.viewer_of((await world.tokens(otp=codes[0])).access_token)
    assert viewer is not None
    members, actor = world.people.members, actor_of(viewer)
    with pytest.raises(ValueError, match="on already"):
        await members.begin_second_factor(viewer)
    with pytest.raises(ValueError, match="code is wrong"):
        await members.disable_second_factor(viewer, actor, wrong_code(world, secret))
    world.clock.us += STEP_US
    fresh = await members.new_recovery_codes(viewer, actor, code_at(world, secret))
    assert not set(fresh) & set(codes)
    assert await world.refusal(otp=codes[3]) == 40103
    for _ in range(3):
        with pytest.raises(ValueError, match="code is wrong"):
            await members.disable_second_factor(viewer, actor, wrong_code(world, secret))
    with pytest.raises(ValueError, match="too many wrong tries: wait 15 minutes"):
        await members.disable_second_factor(viewer, actor, fresh[0])
    world.clock.us += 15 * MINUTE_US
    await members.disable_second_factor(viewer, actor, fresh[0])
    assert isinstance(await world.login(), TokenSet)
    assert await world.actions() == ["second_factor.on", "second_factor.codes", "second_factor.off"]


async def test_the_secret_is_sealed(world: World) -> None:
    secret, codes = await world.enrol()
    row = await world.store.read(users.find, ANN)
    assert row.totp_sealed is not None
    assert secret not in row.totp_sealed
    kept = str(await world.store.read(lambda conn: conn.execute(select(schema_people.recovery_code)).all()))
    assert not any(totp.clean(code) in kept for code in codes)
    assert secret.hex() not in repr(row)


async def test_without_the_vaults_file_nobody_is_let_in_by_the_password_alone(world: World, log_events: Any) -> None:
    secret, codes = await world.enrol()
    await world.add_user(BEN, "admin")
    (world.folder / FILE_NAME).rename(world.folder / "elsewhere")
    async with world.another() as second:
        log_events.expect_error("second_factor_unusable")
        refused = await second.people.password_grant(
            ANN, PASSWORD, otp=code_at(world, secret, 1), ip=IP, agent="", kind="program"
        )
        assert isinstance(refused, LoginRefusal)
        assert (refused.code, refused.http_status) == (50301, 503)
        assert isinstance(await second.login(BEN), TokenSet)
        assert isinstance(await second.login(otp=codes[0]), TokenSet), "recovery codes need no secret"
