"""Uploading a run's W&B records as a stage."""

import tempfile
from pathlib import Path

from bts_dist.config import Config
from bts_dist.lease import last_owner
from bts_dist.wandb_login import LoginError, check_login
from bts_dist.wandb_upload import LeftRecord, end_killed, find_records, runs_above, upload
from cluster import console
from cluster.stages import say
from shards.errors import InputError
from shards.store import join_uri, open_store


def sync(location: str, config: Config) -> None:
    """Upload what W&B does not have of a run, its trials and its folds.

    Raises:
        InputError: there are no records.
        RuntimeError: W&B does not answer or knows no key, or refused a record; what was uploaded before stays so.
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
    records = [_settled(record, location, config) for record in records]
    waiting = [record for record in records if record.waiting]
    if waiting:
        try:
            check_login()
        except LoginError as error:
            raise RuntimeError(f"W&B: {len(waiting)} records wait in {location}, and {error}") from error
    for done, record in enumerate(waiting, start=1):
        with tempfile.TemporaryDirectory(prefix="bts-sync-") as scratch:
            upload(run, record, Path(scratch))
        console.out.print(f"  {done}/{len(waiting)} {record.wandb_id}: {len(record.waiting)} logs uploaded")
    before = len(records) - len(waiting)
    console.stage("sync", f"{location}: {len(waiting)} W&B runs uploaded, {before} with nothing to upload")


def _settled(record: LeftRecord, location: str, config: Config) -> LeftRecord:
    """The record, logs without an end among what waits if whoever wrote them is gone; if not, people are told."""
    for log in record.growing:
        owners = [
            last_owner(open_store(join_uri(location, place) if place else location, config.store), say)
            for place in runs_above(log)
        ]
        living = [str(each.owner) for each in owners if each is not None and each.alive]
        if living:
            console.out.print(f"  {log} has no end: {living[0]} writes it; sync again when that has ended")
            return record
        if not any(owners):
            console.out.print(
                f"  {log} has no end, and nothing here tells who wrote it; give its command again, or sync the "
                "search or the folds that it belongs to"
            )
            return record
    return end_killed(open_store(location, config.store), record) if record.growing else record
