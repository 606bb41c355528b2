"""A stage made ready to run as a job of a cluster: checked, its run named and its places absolute."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from bts_dist.run import absolute, named, run_uri
from cluster.payload import CONFIG
from shards.errors import InputError
from shards.location import absolute_uri, is_local

STAGES = ("verify", "pack", "tune", "train", "score", "report", "run")
"""Commands that can be jobs.  A job's own process runs on the head, its work on the workers."""
ON_HEAD = ("verify", "report")
"""Those that the job's own process does alone."""
OPTIONS = {"--packed": ("verify",), "--model": ("score", "report"), "--scores": ("report",)}
"""Options of the stages' own commands that travel, and whose they are."""

_RUNLESS = ("verify", "pack")
"""Stages that need no run; where none is named they belong to none."""
_READS = {
    "verify": ("data.source",),
    "pack": ("data.source", "data.shards"),
    "tune": ("data.shards", "run.dir"),
    "train": ("data.shards", "run.dir", "score.ensemble"),
    "score": ("data.shards", "run.dir", "score.ensemble"),
    "report": ("run.dir",),
    "run": ("data.source", "data.shards", "run.dir", "score.ensemble"),
}
"""Places of the config that a stage reads or writes."""


@dataclass(frozen=True)
class Submission:
    stage: str
    config: Config
    options: Mapping[str, str] = field(default_factory=dict)
    """The stage's own, as ``OPTIONS`` has them."""

    @property
    def place(self) -> str:
        """What the job is about: its run, or the data set where it has none."""
        if self.stage == "verify":
            return self.options.get("--packed", self.config.data.source)
        if self.stage == "pack":
            return self.config.data.shards
        return self.options.get("--model") or run_uri(self.config)


def check_stage(stage: str, options: Mapping[str, str]) -> None:
    """Refuse what cannot be a job.

    Raises:
        InputError: it names the stages that can, or those that have the option.
    """
    if stage not in STAGES:
        raise InputError(f"{stage!r} is no stage that can be a job; those are {', '.join(STAGES)}")
    for name in options:
        if stage not in OPTIONS[name]:
            raise InputError(f"{name} belongs to {' and '.join(OPTIONS[name])}, not to {stage}")


def make_submission(stage: str, config: Config, options: Mapping[str, str] | None = None) -> Submission:
    """What is to be sent.

    Raises:
        InputError: as ``check_stage``, or the config is for another runtime.
    """
    options = dict(options or {})
    check_stage(stage, options)
    if config.cluster.runtime != "ray":
        raise InputError(
            f"cluster.runtime is {config.cluster.runtime}; a job runs on the cluster's workers: "
            "--set cluster.runtime=ray"
        )
    if stage not in _RUNLESS:
        # The name is part of what travels: the same command continues the same run.
        config = named(config)
    config = with_overrides(absolute(config), {"cluster.address": "auto"})
    # ``--scores`` is a folder's name within the run.
    places = {name: absolute_uri(value) for name, value in options.items() if name != "--scores"}
    return Submission(stage, config, {**options, **places})


def local_places(submission: Submission) -> dict[str, str]:
    """The places of a job that are folders, by config key or option: wherever it runs must see them."""
    config = submission.config
    values = {
        "data.source": [config.data.source],
        "data.shards": [config.data.shards],
        "run.dir": [config.run.dir],
        "score.ensemble": list(config.score.ensemble),
    }
    places = {key: values[key] for key in _READS[submission.stage]}
    for option, instead_of in (("--packed", "data.source"), ("--model", "run.dir")):
        if option in submission.options:
            del places[instead_of]
            places[option] = [submission.options[option]]
    local = {key: [uri for uri in uris if is_local(uri)] for key, uris in places.items()}
    return {key: ",".join(uris) for key, uris in local.items() if uris}


def entrypoint(submission: Submission, python: str) -> str:
    """The job's command line.  It runs in the folder that travelled."""
    words = [python, "-m", "cluster.cli", submission.stage, "--config", CONFIG]
    words += [word for option in submission.options.items() for word in option]
    return shlex.join(words)
