"""A whole object of known content, through damaged and broken transfers."""

import hashlib

from shards.config import StoreConfig
from shards.errors import InputError
from shards.patience import Patience
from shards.store import LocalStore, MissingObject, ObjectStore, join_uri


def fetch(store: ObjectStore, key: str, *, sha256: str, size: int, config: StoreConfig) -> bytes:
    """The object's bytes, if they are ``size`` bytes with this ``sha256`` (hex).

    The store itself goes on where a transfer breaks.  What arrives whole but wrong may have been damaged on the
    way, so it is fetched again, from the start, ``config.attempts`` times at most; a further time begins only
    within ``config.deadline_s`` seconds of the first.  The same wrong bytes twice are what is stored, and a
    folder has no way to be damaged on: both are told at once.

    Raises:
        InputError: the object is missing, or is not the one that was packed.
        StoreError: the store could not deliver it.
    """
    patience = Patience.of(config)
    wrong: set[str] = set()
    while True:
        try:
            data = store.get(key)
        except MissingObject as error:
            raise InputError(f"{join_uri(store.uri, key)} is missing; copy or pack it again") from error
        found = hashlib.sha256(data).hexdigest()
        if found == sha256 and len(data) == size:
            return data
        stored_so = found in wrong or isinstance(store, LocalStore)
        if stored_so or not patience.wait():
            raise InputError(
                f"{join_uri(store.uri, key)}: sha256 is {found[:12]}…, the manifest says {sha256[:12]}… "
                f"({size} bytes expected, {len(data)} bytes found); the shard was changed or damaged: "
                "copy or pack it again"
            )
        wrong.add(found)
