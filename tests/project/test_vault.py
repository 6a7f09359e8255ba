# SPDX-License-Identifier: Apache-2.0
"""What is sealed opens in its place, under its key, and nowhere else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepmaild.errors import SecretsUnavailable
from hepmaild.vault import HEAD_OCTETS, Place, SealingKey, Vault, new_key

PLACE = Place("dkim_key", "sealed_key", ("example.com", "s1"))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    made = Vault(tmp_path)
    made.make()
    return made


def test_sealed_and_opened(vault: Vault) -> None:
    sealed = vault.seal(PLACE, b"secret")
    assert b"secret" not in sealed
    assert sealed != vault.seal(PLACE, b"secret"), "a nonce of its own"
    assert vault.open(PLACE, sealed) == b"secret"
    assert Vault(vault.path.parent).open(PLACE, sealed) == b"secret"


@pytest.mark.parametrize(
    "elsewhere",
    [
        Place("smtp_server", "sealed_key", ("example.com", "s1")),
        Place("dkim_key", "other", ("example.com", "s1")),
        Place("dkim_key", "sealed_key", ("example.com", "s2")),
        Place("dkim_key", "sealed_key", ("example.coms1",)),
        Place("dkim_key", "sealed_key", ("example.com", "s1", "")),
    ],
)
def test_it_opens_only_in_its_place(vault: Vault, elsewhere: Place) -> None:
    with pytest.raises(SecretsUnavailable, match="changed or moved"):
        vault.open(elsewhere, vault.seal(PLACE, b"secret"))


def test_every_changed_bit_is_found(vault: Vault) -> None:
    sealed = vault.seal(PLACE, b"x")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SecretsUnavailable):
            vault.open(PLACE, bytes(changed))


@given(st.binary(max_size=80))
def test_nothing_that_is_not_ours_opens(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    vault = Vault(folder)
    vault.make()
    with pytest.raises(SecretsUnavailable):
        vault.open(PLACE, octets)


def test_the_file_is_for_its_owner_only(vault: Vault) -> None:
    assert vault.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in vault.path.parent.iterdir()] == ["secrets.key"], "nothing is left beside it"
    vault.path.chmod(0o640)
    with pytest.raises(SecretsUnavailable, match="chmod 600"):
        vault.seal(PLACE, b"x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    vault = Vault(tmp_path)
    vault.make()
    assert vault.path.stat().st_uid == 65534
    vault.replace(vault.read())
    assert (vault.path.stat().st_uid, vault.path.stat().st_mode & 0o777) == (65534, 0o600)


def test_making_it_twice_changes_nothing(vault: Vault) -> None:
    before = vault.path.read_bytes()
    vault.make()
    assert vault.path.read_bytes() == before


def test_many_makers_agree(tmp_path: Path) -> None:
    vaults = [Vault(tmp_path) for _ in range(8)]
    start = threading.Barrier(len(vaults))

    def make(vault: Vault) -> None:
        start.wait(30)
        vault.make()

    threads = [threading.Thread(target=make, args=(vault,)) for vault in vaults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({vault.read()[-1].id for vault in vaults}) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_or_other_file_is_told_in_one_line(vault: Vault, tmp_path: Path) -> None:
    sealed = vault.seal(PLACE, b"secret")
    kept = vault.path.read_bytes()
    vault.path.unlink()
    fresh = Vault(tmp_path)
    with pytest.raises(SecretsUnavailable, match=r"secrets\.key is missing: copy it"):
        fresh.open(PLACE, sealed)
    fresh.make()
    for call in (lambda: fresh.open(PLACE, sealed), lambda: fresh.check([sealed[:HEAD_OCTETS]])):
        with pytest.raises(SecretsUnavailable, match=r"has not the key .* copy the file") as caught:
            call()
        assert "\n" not in str(caught.value)
    fresh.path.write_bytes(kept)
    assert fresh.open(PLACE, sealed) == b"secret", "the file is read again"
    fresh.check([sealed[:HEAD_OCTETS]])


@pytest.mark.parametrize("damage", ["", "# only a comment\n", "1234 2027-01-01T00:00:00Z AAAA\n", "\xff\xfe", "a b"])
def test_a_damaged_file_is_told(vault: Vault, damage: str) -> None:
    vault.path.write_text(damage, encoding="latin-1")
    with pytest.raises(SecretsUnavailable, match="restore the file"):
        vault.read()


def test_a_key_that_was_copied_wrongly_does_not_fit_its_id(vault: Vault) -> None:
    text = vault.path.read_text()
    head, _, last = text.rstrip().rpartition(" ")
    swapped = ("A" if last[0] != "A" else "B") + last[1:]
    vault.path.write_text(f"{head} {swapped}\n")
    with pytest.raises(SecretsUnavailable, match="line 3 is damaged") as caught:
        vault.read()
    assert swapped not in str(caught.value)


def test_the_newest_key_seals_and_the_others_open(vault: Vault) -> None:
    old = vault.seal(PLACE, b"old")
    (first,) = vault.read()
    second, staged = new_key(), new_key(staged=True)
    vault.replace((first, second, staged))
    other = Vault(vault.path.parent)
    new = other.seal(PLACE, b"new")
    assert new[1:9] == second.id, "a staged one waits"
    assert other.open(PLACE, old) == b"old"
    assert vault.open(PLACE, new) == b"new"
    assert [key.staged for key in other.read()] == [False, False, True]


def test_keys_do_not_show_themselves() -> None:
    key: SealingKey = new_key()
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)


def test_a_rotation_waits_for_those_who_seal(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hepmaild.vault.LOCK_WAIT_S", 0.0)
    with (
        vault.holding(),
        vault.holding(),
        pytest.raises(SecretsUnavailable, match="try again"),
        vault.holding(alone=True),
    ):
        pass
    with vault.holding(alone=True):
        pass
