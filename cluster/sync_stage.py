"""Uploading a run's offline W&B records as a stage."""

import tempfile
from pathlib import Path

from bts_dist.config import Config
from bts_dist.wandb_login import LoginError, check_login
from bts_dist.wandb_upload import find_records, upload
from cluster import console
from shards.errors import InputError
from shards.store import open_store


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
            f"{location} has no offline W&B records; name a run that was trained with track.wandb=offline"
        )
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
    for record in records:
        for log in record.growing:
            console.out.print(
                f"  {log} has no end: its run goes on, or was killed; give its command again, or send it as it is with "
                f"`wandb sync {location}/{log}`"
            )
    before = len(records) - len(waiting)
    console.stage("sync", f"{location}: {len(waiting)} W&B runs uploaded, {before} with nothing to upload")
