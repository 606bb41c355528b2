"""A stage's record on object storage: the log goes there, and its references are the bucket's."""

import json
from pathlib import Path

import pytest
from bucket import Bucket
from model_run import NAME, fresh_run
from wandb_log import read_all

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.track import wandb_id
from bts_dist.wandb_stages import patient_table, record_score
from shards.store import open_store

RESULT = {
    "metrics": {
        "dice/patient": {"mean": 0.75, "low": 0.5, "high": 0.875},
        "hd95/patient": {"mean": None, "low": None, "high": None},
    },
    "patients": [
        {"patient": "TCGA_CS_4941", "institution": "CS", "dice": 0.5, "tumour_ml": None},
        {"patient": "TCGA_DU_5855", "institution": "DU", "dice": 1.0, "tumour_ml": None},
    ],
}


@pytest.fixture
def bucket(tmp_path: Path, config: Config) -> Bucket:
    """A run in a bucket with a checkpoint and a score."""
    fresh_run(tmp_path / "bucket", config)
    bucket = Bucket(tmp_path / "bucket")
    bucket.put("score/score.json", b"{}")
    bucket.put("score/patients.csv", b"patient\n")
    return bucket


def test_the_record_goes_to_the_bucket_and_refers_to_it(
    config: Config, bucket: Bucket, tmp_path: Path
) -> None:
    offline = with_overrides(config, {"track.wandb": "offline", "track.group": "cohort"})
    record_score(offline, bucket, "score", RESULT, [(bucket, NAME)], open_store(config.data.shards))
    [log] = read_all(tmp_path / "bucket", f"{wandb_id(bucket)}-score")
    assert (log.job_type, log.group, log.name, log.exit_code) == ("score", "cohort", "run score", 0)
    assert log.summary["dice/patient"] == 0.75
    assert (log.summary["dice/patient/low"], log.summary["dice/patient/high"]) == (0.5, 0.875)
    assert "hd95/patient" not in log.summary
    files = {name: uri for each in log.artifacts for name, (uri, _, _) in each.files.items()}
    assert files["patients.csv"] == "s3://bucket/runs/run/score/patients.csv"
    assert files["model.safetensors"] == f"s3://bucket/runs/run/checkpoints/{NAME}/model.safetensors"
    assert [entry for entry in bucket.list("wandb/") if entry.key.endswith(".table.json")]
    assert not list(tmp_path.glob("runs")), "nothing is left elsewhere"


def test_without_wandb_the_figures_still_stand_beside_the_score(config: Config, bucket: Bucket) -> None:
    record_score(config, bucket, "score", RESULT, [(bucket, NAME)], None)
    row = json.loads(bucket.get("score/metrics.jsonl"))
    assert (row["kind"], row["dice/patient"]) == ("score", 0.75)
    assert bucket.list("wandb") == []


def test_the_table_leaves_out_what_tells_who_someone_is() -> None:
    columns, rows = patient_table(RESULT["patients"], str.lower, hide=True)
    assert columns == ["patient", "dice", "tumour_ml"]
    assert rows[0] == ["tcga_cs_4941", 0.5, None]
    assert patient_table(RESULT["patients"], str, hide=False)[0] == list(RESULT["patients"][0])
