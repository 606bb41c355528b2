"""Cross-validation: the main job once for each fold, as many side by side as the cluster has room for.

Each fold is a command of its own, ``bts run``, in a run of its own below this one's: what is done is skipped, what was
killed goes on, and a fold that fails leaves the others alone.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import ray

from bts_dist.compose import dump_yaml, with_overrides
from bts_dist.config import Config
from bts_dist.run import absolute, run_uri
from cluster.resources import max_concurrent, ray_cluster
from cluster.termination import PARENT
from shards.config import HoldoutSplit
from shards.errors import InputError
from shards.store import join_uri

Say = Callable[[int, str], None]
"""Is told a fold and a line of what its command says."""

BAD_INPUT = 2


def num_folds(config: Config) -> int:
    """How many folds ``split`` asks for."""
    assert isinstance(config.split, HoldoutSplit)
    return config.split.folds


def fold_config(config: Config, fold: int) -> Config:
    """The config of one fold: data set and run of its own, W&B's runs of all folds in one group."""
    return with_overrides(
        config,
        {
            "split.fold": fold,
            "data.shards": f"{config.data.shards.rstrip('/')}-fold-{fold}-of-{num_folds(config)}",
            "run.dir": join_uri(run_uri(config), "folds"),
            "run.name": f"fold-{fold}",
            "track.group": config.track.group or config.run.name,
        },
    )


def run_folds(config: Config, say: Say) -> None:
    """Do the main job for every fold.

    Raises:
        InputError: the folds were refused as bad input; they have said why.
        RuntimeError: a fold failed; the others were done.
    """
    base = absolute(config)
    with ray_cluster(config.cluster) if config.cluster.runtime == "ray" else nullcontext():
        limit, place = 1, {}
        if config.cluster.runtime == "ray":
            limit = max_concurrent(config.cluster, num_folds(config))
            place = {"cluster.address": ray.get_runtime_context().gcs_address}
        configs = [with_overrides(fold_config(base, fold), place) for fold in range(num_folds(config))]
        codes = _run_commands(configs, limit, say)
    failed = [fold for fold, code in enumerate(codes) if code]
    if failed:
        message = (
            f"folds {failed} of {len(codes)} failed, as said above; the same command does only what is left"
        )
        raise (
            InputError(message) if {codes[fold] for fold in failed} == {BAD_INPUT} else RuntimeError(message)
        )


def _run_commands(configs: list[Config], limit: int, say: Say) -> list[int]:
    """Run ``bts run`` for each config, so many at a time; their exit codes."""
    running: list[subprocess.Popen[str]] = []
    interrupted = False
    starting = threading.Lock()  # from the look at ``interrupted`` until what was started is in ``running``
    with tempfile.TemporaryDirectory(prefix="bts-folds-") as scratch, ThreadPoolExecutor(limit) as pool:

        def run(fold: int) -> int:
            file = Path(scratch) / f"fold-{fold}.yaml"
            file.write_text(dump_yaml(configs[fold]))
            with starting:
                if interrupted:
                    return -signal.SIGINT
                process = subprocess.Popen(
                    [sys.executable, "-m", "cluster.cli", "run", "--config", str(file)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env={**os.environ, PARENT: str(os.getpid())},
                    start_new_session=True,  # Ctrl-C reaches it once, from here
                )
                running.append(process)
            assert process.stdout is not None
            for line in process.stdout:
                say(fold, line.rstrip())
            return process.wait()

        try:
            done = [pool.submit(run, fold) for fold in range(len(configs))]
            return [future.result() for future in done]
        except BaseException:
            # Ctrl-C, above all: no command is left behind, and each ends in good order.  What was started in the
            # background has all its processes ignore Ctrl-C, and none of them ignores this.
            interrupted = True
            with starting:
                begun = list(running)
            for process in begun:
                if process.poll() is None:
                    process.terminate()
            raise
