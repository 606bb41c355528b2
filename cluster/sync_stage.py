"""Uploading a run's W&B records as a stage."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

from rich.markup import escape

from bts_dist.config import Config
from bts_dist.lease import Sign, last_owner, last_writer
from bts_dist.wandb_login import LoginError, check_login
from bts_dist.wandb_upload import LeftRecord, RefusedError, find_records, runs_above, upload
from cluster import console
from cluster.stages import say
from shards.errors import InputError
from shards.store import ObjectStore, join_uri, open_store


def sync(location: str, config: Config) -> None:
    """Upload what W&B does not have of a run, its trials and its folds.

    Raises:
        InputError: there are no records.
        RuntimeError: W&B does not answer or knows no key, or refused records; what was uploaded stays so.
    """
    run = open_store(location, config.store)
    try:
        records = find_records(run)
    except ValueError as error:
        raise InputError(f"{location}: a record {error}; use the version of wandb that wrote it") from error
    if not records:
        raise InputError(
            f"{location} has no W&B records; name a run that was trained with track.wandb=offline or online"
        )
    writers = _Writers(location, config)
    records = [writers.settled(record) for record in records]
    waiting = [record for record in records if record.waiting]
    if waiting:
        try:
            check_login()
        except LoginError as error:
            raise RuntimeError(f"W&B: {len(waiting)} records wait in {location}, and {error}") from error
    refused = [
        error for error in (_upload(run, waiting, n) for n in range(len(waiting))) if error is not None
    ]
    if refused:
        raise RuntimeError(f"{len(refused)} of {len(waiting)} W&B runs were refused; the first: {refused[0]}")
    before = len(records) - len(waiting)
    console.stage("sync", f"{location}: {len(waiting)} W&B runs uploaded, {before} with nothing to upload")


def _upload(run: ObjectStore, waiting: list[LeftRecord], number: int) -> RefusedError | None:
    """Upload one of the records, and give the error if W&B refused it: it may take the others."""
    record = waiting[number]
    which = f"{number + 1}/{len(waiting)} {record.wandb_id}"
    say(f"{which}: logs to upload: {len(record.waiting)}")
    with tempfile.TemporaryDirectory(prefix="bts-sync-") as scratch:
        try:
            upload(run, record, Path(scratch))
        except RefusedError as error:
            say(escape(f"{which}: {error}"))
            return error
    say(f"{which}: uploaded")
    return None


class _Writers:
    """Those who may still write to the logs below a run; each is looked at once."""

    def __init__(self, location: str, config: Config) -> None:
        self._location, self._config = location, config
        self._owner = cache(lambda place: last_owner(self._store(place)))
        self._lived: dict[tuple[str, str], bool] = {}

    def settled(self, record: LeftRecord) -> LeftRecord:
        """The record up to the first log that may still be written; people are told who writes it.

        What follows waits with it: W&B would take none of its rows after theirs.
        """
        for log in record.growing:
            signs = self._signs(record, log)
            living = next((sign.owner for sign in signs if self._lives(sign)), None)
            if signs and living is None:
                continue
            if living is not None:
                say(f"{log} has no end: {living} writes it; sync again when that has ended")
            else:
                say(
                    f"{log} has no end, and nothing here tells who wrote it; give its command again, or sync the "
                    "search or the folds that it belongs to"
                )
            return replace(record, waiting=record.waiting[: record.waiting.index(log)], growing=(log,))
        return replace(record, growing=())

    def _lives(self, sign: Sign) -> bool:
        where = (sign.run.uri, sign.key)
        if where not in self._lived:
            self._lived[where] = sign.lives(say)
        return self._lived[where]

    def _signs(self, record: LeftRecord, log: str) -> list[Sign]:
        places = runs_above(log)
        found = [last_writer(self._store(places[-1]), record.wandb_id), *map(self._owner, places)]
        return [sign for sign in found if sign is not None]

    def _store(self, place: str) -> ObjectStore:
        return open_store(join_uri(self._location, place) if place else self._location, self._config.store)
