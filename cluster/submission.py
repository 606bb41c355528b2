"""A stage made ready to run as a job of a cluster: checked, its run named and its places absolute."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import absolute, named
from cluster.payload import CONFIG
from shards.errors import InputError

STAGES = ("verify", "pack", "tune", "train", "score", "report", "run")
"""Commands that can be jobs.  A job's own process runs on the head, its work on the workers."""
WITH_MODEL = ("score", "report")


@dataclass(frozen=True)
class Submission:
    stage: str
    config: Config
    model: str | None = None


def check_stage(stage: str, model: str | None) -> None:
    """Refuse what cannot be a job.

    Raises:
        InputError: it names the stages that can.
    """
    if stage not in STAGES:
        raise InputError(f"{stage!r} is no stage that can be a job; those are {', '.join(STAGES)}")
    if model is not None and stage not in WITH_MODEL:
        raise InputError(f"--model belongs to {' and '.join(WITH_MODEL)}, not to {stage}")


def make_submission(stage: str, config: Config, model: str | None = None) -> Submission:
    """What is to be sent.

    Raises:
        InputError: as ``check_stage``, or the config is for another runtime.
    """
    check_stage(stage, model)
    if config.cluster.runtime != "ray":
        raise InputError(
            f"cluster.runtime is {config.cluster.runtime}; a job runs on the cluster's workers: "
            "--set cluster.runtime=ray"
        )
    # The name is part of what travels: the same command continues the same run.
    config = with_overrides(absolute(named(config)), {"cluster.address": "auto"})
    if model is not None and "://" not in model:
        model = str(Path(model).resolve())
    return Submission(stage, config, model)


def entrypoint(submission: Submission, python: str) -> str:
    """The job's command line.  It runs in the folder that travelled."""
    words = [python, "-m", "cluster.cli", submission.stage, "--config", CONFIG]
    if submission.model is not None:
        words += ["--model", submission.model]
    return shlex.join(words)
