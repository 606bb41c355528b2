"""Names for patients in what leaves the run: a keyed hash, so that nobody without the key gets back to the patient.

A plain hash would not do: who knows a list of patients hashes it and compares.  The hash is HMAC with SHA-256 (RFC
2104), of which 40 bits are kept: two of a thousand patients share a name with a chance of one in two millions.
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

_SHORTEST = 16
"""Characters of a key.  Shorter ones can be tried out."""
_DIGITS = 10

Rename = Callable[[str], str]
"""A patient's name to the one shown."""


def pseudonym(patient: str, key: bytes) -> str:
    """``p-`` and ten hexadecimal digits; the same for the same patient and key."""
    return f"p-{hmac.new(key, patient.encode(), hashlib.sha256).hexdigest()[:_DIGITS]}"


def renaming(config: Config, run: ObjectStore) -> Rename:
    """How patients of a run are called outside of it, as ``track.pseudonymise`` says.

    The key is that of the environment, the same on every machine, or one that the run draws for itself.  It is asked
    for when the first patient is named.

    Raises:
        InputError: when called, if the key in the environment is too short.
    """
    if not config.track.pseudonymise:
        return lambda patient: patient
    key = cache(lambda: _key(run))
    return lambda patient: pseudonym(patient, key())


def _key(run: ObjectStore) -> bytes:
    given = os.environ.get(VARIABLE)
    if given is None:
        return _own_key(run)
    if len(given) < _SHORTEST:
        raise InputError(
            f"{VARIABLE} has {len(given)} characters, so few that it can be guessed; give at least {_SHORTEST}, such "
            "as `openssl rand -hex 32` prints, or unset it"
        )
    return given.encode()


def _own_key(run: ObjectStore) -> bytes:
    """The run's own key, drawn by whoever needs it first."""
    with suppress(MissingObject):
        return run.get(KEY_FILE)
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
