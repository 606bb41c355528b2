"""Names for patients that nobody without the key gets back."""

import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bts_dist import pseudonyms
from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.pseudonyms import FINGERPRINT_FILE, KEY_FILE, VARIABLE, fingerprint, pseudonym, renaming
from shards.errors import InputError
from shards.store import LocalStore

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_hash_is_that_of_the_standard() -> None:
    # RFC 4231, test case 2.
    assert pseudonym("what do ya want for nothing?", b"Jefe") == "p-5bdcc146bf"


@given(st.text(min_size=1), st.binary(min_size=16), st.binary(min_size=16))
def test_a_name_depends_on_patient_and_key_alone(patient: str, key: bytes, other: bytes) -> None:
    name = pseudonym(patient, key)
    assert re.fullmatch("p-[0-9a-f]{10}", name)
    assert name == pseudonym(patient, key)
    if key.rstrip(b"\0") != other.rstrip(b"\0"):  # HMAC fills a short key up with zeros
        assert name != pseudonym(patient, other)


def test_the_run_draws_a_key_once_and_keeps_it_to_its_owner(config: Config, run: LocalStore) -> None:
    first = renaming(config, run)
    assert not (run.root / KEY_FILE).exists(), "nobody has been named yet"
    name = first("TCGA_CS_4941")
    path = run.root / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.key for entry in run.list()] == [KEY_FILE, FINGERPRINT_FILE]
    assert renaming(config, run)("TCGA_CS_4941") == name == pseudonym("TCGA_CS_4941", path.read_bytes())
    assert first("TCGA_CS_4942") != name


def test_a_key_of_the_environment_is_the_same_for_all_runs(
    config: Config, run: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    other = LocalStore("", tmp_path / "other")
    assert renaming(config, run)("a") == renaming(config, other)("a") == pseudonym("a", KEY.encode())
    # Of the key itself nothing is kept.
    assert run.get(FINGERPRINT_FILE) == other.get(FINGERPRINT_FILE) == fingerprint(KEY.encode()).encode()
    assert [entry.key for entry in run.list()] == [FINGERPRINT_FILE]


def test_a_key_that_can_be_guessed_is_refused(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY[:-1])
    with pytest.raises(InputError, match=r"BTS_PSEUDONYM_KEY has 15 characters.*at least 16") as error:
        renaming(config, run)
    assert KEY[:-1] not in str(error.value)


@given(st.binary(min_size=16), st.binary(min_size=16))
def test_a_fingerprint_tells_keys_apart(key: bytes, other: bytes) -> None:
    assert re.fullmatch("[0-9a-f]{16}", fingerprint(key))
    if key.rstrip(b"\0") != other.rstrip(b"\0"):
        assert fingerprint(key) != fingerprint(other)


def test_a_run_is_refused_under_another_key(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    renaming(config, run)("a")
    before = fingerprint(KEY.encode())
    monkeypatch.setenv(VARIABLE, "another key of 16")
    here = fingerprint(b"another key of 16")
    told = rf"fingerprint {here} on this machine.*fingerprint {before}.*set the key of that .*run\.name="
    with pytest.raises(InputError, match=told) as error:
        renaming(config, run)
    assert "another key" not in str(error.value)
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(InputError, match=rf"is not set on this machine.*{before}"):
        renaming(config, run)
    assert [entry.key for entry in run.list()] == [FINGERPRINT_FILE], "no key was drawn"
    monkeypatch.setenv(VARIABLE, KEY)
    assert renaming(config, run)("a") == pseudonym("a", KEY.encode())


@pytest.mark.parametrize("has_fingerprint", [True, False], ids=["", "as runs before there were fingerprints"])
def test_a_run_with_a_key_of_its_own_takes_none_from_outside(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch, has_fingerprint: bool
) -> None:
    renaming(config, run)("a")
    if not has_fingerprint:
        run.delete(FINGERPRINT_FILE)
    monkeypatch.setenv(VARIABLE, KEY)
    with pytest.raises(InputError, match=r"unset it, since the run has drawn that key itself"):
        renaming(config, run)
    # The very key that was drawn is no other one.
    monkeypatch.setenv(VARIABLE, run.get(KEY_FILE).decode())
    renaming(config, run)("a")


def test_of_two_machines_with_two_keys_one_names_nobody(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = renaming(config, run)  # nothing is known yet
    monkeypatch.setenv(VARIABLE, KEY)
    first = renaming(config, run)("a")
    with pytest.raises(InputError, match=r"is not set on this machine.*two names in one run"):
        late("a")
    assert [entry.key for entry in run.list()] == [FINGERPRINT_FILE], "no key is left that names nobody"
    assert renaming(config, run)("a") == first


def test_a_key_that_was_drawn_too_late_is_not_left(
    config: Config, run: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine's fingerprint comes between the look and the drawing."""
    own_key = pseudonyms._own_key

    def slow(store: LocalStore) -> bytes:
        run.put(FINGERPRINT_FILE, fingerprint(KEY.encode()).encode())
        return own_key(store)

    monkeypatch.setattr(pseudonyms, "_own_key", slow)
    with pytest.raises(InputError, match=r"is not set on this machine.*two names in one run"):
        renaming(config, run)("a")
    assert [entry.key for entry in run.list()] == [FINGERPRINT_FILE]


def test_names_stay_where_they_are_wanted(config: Config, run: LocalStore) -> None:
    plain = with_overrides(config, {"track.pseudonymise": False})
    assert renaming(plain, run)("TCGA_CS_4941") == "TCGA_CS_4941"
    assert run.list() == []
