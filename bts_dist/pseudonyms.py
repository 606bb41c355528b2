"""Names for patients in what leaves the run: a keyed hash, so that nobody without the key gets back to the patient.

A plain hash would not do: who knows a list of patients hashes it and compares.  The hash is HMAC with SHA-256 (RFC
2104), of which 40 bits are kept: two of a thousand patients share a name with a chance of one in two millions.

A run keeps to one key, so that a patient never has two names in it: its folder holds a hash of the key, and whoever
comes with another one is refused.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from bts_dist.config import Config
from shards.errors import InputError
from shards.store import AlreadyExists, LocalStore, MissingObject, ObjectStore

VARIABLE = "BTS_PSEUDONYM_KEY"
KEY_FILE = "pseudonym-key"
FINGERPRINT_FILE = "pseudonym-key-fingerprint"
"""Tells keys apart and gives none away."""

_LABEL = b"bts-dist\0pseudonym key"
"""What is hashed for a fingerprint: no patient's name, since there is a zero byte in it."""
_SHORTEST = 16
"""Characters of a key.  Shorter ones can be tried out."""
_DIGITS = 10

Rename = Callable[[str], str]
"""A patient's name to the one shown."""


def pseudonym(patient: str, key: bytes) -> str:
    """``p-`` and ten hexadecimal digits; the same for the same patient and key."""
    return f"p-{hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:_DIGITS]}"


def fingerprint(key: bytes) -> str:
    """16 hexadecimal digits: a keyed hash of a label, which says as little of the key as a pseudonym does."""
    return hmac.new(key, _LABEL, hashlib.sha256).hexdigest()[:16]


def renaming(config: Config, run: ObjectStore) -> Rename:
    """How patients of a run are called outside of it, as ``track.pseudonymise`` says.

    The key is that of the environment, the same on every machine, or one that the run draws for itself when the first
    patient is named.

    Raises:
        InputError: the key in the environment is too short, or not the one that the run has named patients with; also
            when called, if another machine has named some with another key meanwhile.
    """
    if not config.track.pseudonymise:
        return lambda patient: patient
    given = _given_key()
    _check_same(run, given)
    key = cache(lambda: _key(run, given))
    return lambda patient: pseudonym(patient, key())


def check_key(config: Config, run: ObjectStore) -> None:
    """Before hours of work: as ``renaming`` will, refuse a key that is not the run's.

    Raises:
        InputError: as ``renaming``.
    """
    if config.track.wandb != "disabled":
        renaming(config, run)


def _key(run: ObjectStore, given: bytes | None) -> bytes:
    _check_same(run, given)
    key = given or _own_key(run)
    try:
        run.put(FINGERPRINT_FILE, fingerprint(key).encode(), if_absent=True)
    except AlreadyExists:
        if given is None and run.get(FINGERPRINT_FILE).decode() != fingerprint(key):
            run.delete(KEY_FILE)  # nobody has been named with it
    _check_same(run, given)
    return key


def _check_same(run: ObjectStore, given: bytes | None) -> None:
    """Refuse another key than the one with which the run's patients have been named.

    Where none is given the run's own counts, if it has drawn one.
    """
    drawn, kept = _read(run, KEY_FILE), _read(run, FINGERPRINT_FILE)
    before = kept.decode() if kept is not None else drawn and fingerprint(drawn)
    key = given or drawn
    if before is None or (key is not None and fingerprint(key) == before):
        return
    here = "is not set" if given is None else f"has a key of fingerprint {fingerprint(given)}"
    own = drawn is not None and fingerprint(drawn) == before
    remedy = (
        f"unset it, since the run has drawn that key itself ({KEY_FILE})"
        if own
        else "set the key of that fingerprint"
    )
    raise InputError(
        f"{VARIABLE} {here} on this machine, and {run.uri} names its patients with one of fingerprint {before}: a "
        f"patient would have two names in one run; {remedy} on every machine, or give the run another name with "
        "--set run.name=…"
    )


def _read(run: ObjectStore, name: str) -> bytes | None:
    try:
        return run.get(name)
    except MissingObject:
        return None


def _given_key() -> bytes | None:
    given = os.environ.get(VARIABLE)
    if given is None:
        return None
    if len(given) < _SHORTEST:
        raise InputError(
            f"{VARIABLE} has {len(given)} characters, so few that it can be guessed; give at least {_SHORTEST}, such "
            "as `openssl rand -hex 32` prints, or unset it"
        )
    return given.encode()


def _own_key(run: ObjectStore) -> bytes:
    """The run's own key, drawn by whoever needs it first."""
    kept = _read(run, KEY_FILE)
    if kept is not None:
        return kept
    drawn = secrets.token_hex(32).encode()
    with suppress(AlreadyExists, FileExistsError):
        if isinstance(run, LocalStore):
            _put_private(run.root, drawn)
        else:
            run.put(KEY_FILE, drawn, if_absent=True)
    return run.get(KEY_FILE)


def _put_private(folder: Path, data: bytes) -> None:
    """Write the key file so that it is never there without its content, nor readable by others.

    Raises:
        FileExistsError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:  # mode 0600
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        (folder / KEY_FILE).hardlink_to(file.name)
