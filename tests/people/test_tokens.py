# SPDX-License-Identifier: Apache-2.0
"""Access tokens and form guards: nothing that we did not sign ourselves is believed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from hepmaild import tokens
from hepmaild.login import TokenSet
from hepmaild.storage import sessions
from tests.people.conftest import EVE, World


def b64(value: bytes | dict[str, Any]) -> str:
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    head, body, signature = token.split(".")
    return (
        json.loads(base64.urlsafe_b64decode(head + "==")),
        json.loads(base64.urlsafe_b64decode(body + "==")),
        signature,
    )


async def forgeries(world: World, good: TokenSet, other: TokenSet) -> dict[str, str]:
    """Tokens that must not be believed, by what is wrong with them."""
    head, body, signature = parts(good.access_token)
    key = Ed25519PrivateKey.generate()
    ((public, _until),) = (await world.store.read(sessions.public_keys, world.clock.us)).values()
    other_body = good.access_token.split(".")[0] + "." + other.access_token.split(".")[1] + "." + signature
    made = {
        "empty": "",
        "nonsense": "x.y.z",
        "two dots": "..",
        "no signature": f"{b64(head)}.{b64(body)}.",
        "somebody else's body": other_body,
        "alg none": f"{b64({**head, 'alg': 'none'})}.{b64(body)}.",
        "alg None": f"{b64({**head, 'alg': 'None'})}.{b64(body)}.{signature}",
        "alg none, signed": f"{b64({**head, 'alg': 'none'})}.{b64(body)}.{signature}",
        "no alg": f"{b64({'kid': head['kid']})}.{b64(body)}.{signature}",
        "other key, our kid": jwt.encode(body, key, algorithm="EdDSA", headers={"kid": head["kid"]}),
        "other key, no kid": jwt.encode(body, key, algorithm="EdDSA"),
        "other kid": jwt.encode(body, key, algorithm="EdDSA", headers={"kid": "x" * 22}),
        "api key": "hyd-mail-" + "A" * 40,
        "refresh token": good.refresh_token,
        "too long": good.access_token + "A" * 5000,
        "space": " " + good.access_token,
        "twice": f"{good.access_token}.{signature}",
    }
    for name, kid in (("a list as kid", ["x"]), ("no kid", None), ("a path as kid", "../../dev/null"), ("number", 1)):
        made[name] = f"{b64({**head, 'kid': kid})}.{b64(body)}.{signature}"
    for secret in (public, public.hex().encode(), b64(public).encode(), b""):
        for algorithm in ("HS256", "HS512"):
            said = f"{b64({**head, 'alg': algorithm})}.{b64(body)}"
            digest = hashlib.sha256 if algorithm == "HS256" else hashlib.sha512
            mac = hmac.new(secret, said.encode(), digest).digest()
            made[f"{algorithm} by {secret!r}"] = f"{said}.{b64(mac)}"
    changes: dict[str, Any] = {
        "exp": body["exp"] + 3600,
        "iat": body["iat"] - 1,
        "scope": ["operator"],
        "account_id": "account-2",
        "id": world.ids[EVE],
        "sid": other.session_id,
        "iss": "elsewhere",
    }
    for name, value in changes.items():
        made[f"changed {name}"] = f"{b64(head)}.{b64({**body, name: value})}.{signature}"
        made[f"no {name}"] = f"{b64(head)}.{b64({k: v for k, v in body.items() if k != name})}.{signature}"
    return made


async def test_no_forgery_is_believed(world: World) -> None:
    """RFC 7519, RFC 8037."""
    good, other = await world.tokens(kind="browser"), await world.tokens(EVE, kind="browser")
    for name, forged in (await forgeries(world, good, other)).items():
        assert await world.people.viewer_of(forged) is None, name
    for good_one in (good, other):
        assert await world.people.viewer_of(good_one.access_token) is not None


async def test_every_changed_character_is_seen(world: World) -> None:
    good = (await world.tokens()).access_token
    for at in range(0, len(good) - 1, 7):  # the last one has bits that stand for nothing
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        assert await world.people.viewer_of(changed) is None, at


async def test_what_we_sign_must_be_whole(world: World) -> None:
    """Even our own key does not make a token of claims that are not there or of times that are too long."""
    good = await world.tokens()
    head, body, _ = parts(good.access_token)
    own = world.people._tokens._own
    assert own is not None
    now_s = world.clock.us // 1_000_000

    def signed(claims: dict[str, Any]) -> str:
        octets = json.dumps(claims).encode()
        return jwt.PyJWS().encode(octets, own.private, algorithm="EdDSA", headers={"kid": head["kid"]})

    assert await world.people.viewer_of(signed(body)) is not None
    for name in body:
        assert await world.people.viewer_of(signed({k: v for k, v in body.items() if k != name})) is None, name
    wrong: list[dict[str, Any]] = [
        {"exp": now_s + 901},
        {"exp": now_s},
        {"exp": str(now_s + 100)},
        {"exp": now_s + 1.5},
        {"exp": True},
        {"iss": "hepmaild "},
        {"iss": ["hepmaild"]},
        {"sid": 7},
        {"sid": "nobody"},
        {"id": world.ids[EVE]},
        {"id": None},
    ]
    for change in wrong:
        assert await world.people.viewer_of(signed({**body, **change})) is None, change


async def test_every_process_believes_every_other(world: World) -> None:
    async with world.another() as second:
        for one, two in ((world, second), (second, world)):
            granted = await one.tokens(kind="browser")
            assert await two.people.viewer_of(granted.access_token) is not None
            assert two.people.check_csrf("a session", one.people.csrf_token("a session"))
        tokens_before = await second.tokens()
    # It has ended since, and what it signed goes on.
    assert await world.people.viewer_of(tokens_before.access_token) is not None


async def test_keys_change_and_old_ones_are_forgotten(world: World) -> None:
    form = world.people.csrf_token("s")
    world.clock.us += tokens.SIGNING_US
    await world.people._tokens.renew()
    assert world.people.csrf_token("s") != form
    assert world.people.check_csrf("s", form)
    world.clock.us += tokens.CHECKING_US - tokens.SIGNING_US
    assert not world.people.check_csrf("s", form)
    await world.people.learn()
    assert world.people.check_csrf("s", world.people.csrf_token("s"))


async def test_a_forms_guard_is_of_one_session(world: World) -> None:
    people = world.people
    guard = people.csrf_token("one")
    assert people.check_csrf("one", guard)
    assert not people.check_csrf("two", guard)
    assert not people.check_csrf("", guard)
    granted = await world.tokens()
    head, body, signature = granted.access_token.split(".")
    wrong = [
        "",
        ".",
        guard[:-1],
        guard + "A",
        guard.partition(".")[0],
        "x" * 1000,
        granted.access_token,
        "ä.ö",
        "\ud800.x",
    ]
    wrong.append(f"{parts(granted.access_token)[0]['kid']}.{signature}")
    for each in wrong:
        assert not people.check_csrf("one", each), each
        assert not people.check_csrf(f"{head}.{body}", each), each


async def test_a_visitors_guard_is_of_no_session(world: World) -> None:
    """Whoever asks may call himself what he likes."""
    people = world.people
    session_id = (await world.tokens(kind="browser")).session_id
    guard = people.visitor_token(session_id)
    assert people.check_visitor(session_id, guard)
    assert not people.check_visitor("another", guard)
    assert not people.check_csrf(session_id, guard)
    assert not people.check_visitor(session_id, people.csrf_token(session_id))


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_wrapped_token_opens_with_its_predecessor_only(one: str, two: str) -> None:
    successor = tokens.new_refresh_token()
    wrapped = tokens.wrap(one, successor)
    assert tokens.unwrap(one, wrapped) == successor
    assert successor.encode() not in wrapped
    if one != two:
        assert tokens.unwrap(two, wrapped) is None
    assert tokens.unwrap(one, wrapped[:-1]) is None
    assert tokens.unwrap(one, b"") is None
