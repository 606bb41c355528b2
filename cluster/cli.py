"""The ``bts`` command.  It parses, calls a stage, and turns errors into a message and an exit code.

Knobs are config keys, set with ``--set``; there are no other options for them.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bts_dist.run import named, run_uri
from cluster import cli_doctor, cli_jobs, cli_tracking, console
from cluster.auth_token import use_token
from cluster.explanation import explain
from cluster.options import (
    ConfigFiles,
    ModelOption,
    Overrides,
    PackedOption,
    ScoresOption,
    load,
    load_to_score,
    same,
)
from cluster.termination import (
    INTERRUPTED,
    end_wandb,
    end_with_parent,
    heed_termination,
    interrupted_code,
)
from shards.errors import InputError
from shards.location import is_local, local_path

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distributed training for brain tumour segmentation: pack, tune, train, score, report.",
)


@app.callback()
def _root(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    # Read again where errors are told, which is also reached when parsing itself fails.
    del debug


@app.command()
def synth(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Generate a phantom data set in Kaggle's layout at data.source."""
    from shards.phantom import generate

    cfg = load(config, overrides)
    if not is_local(cfg.data.source):
        raise InputError(
            f"data.source={cfg.data.source}: a phantom is written to a local folder; copy it from there"
        )
    with console.progress("synth") as update:
        generate(cfg.phantom, local_path(cfg.data.source), update)
    console.stage("synth", f"{cfg.data.source}: {cfg.phantom.patients} patients")
    console.next_step(f"bts pack {same(config, overrides)}")


@app.command()
def verify(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    packed: PackedOption = None,
) -> None:
    """Check every image and mask of data.source, or every byte of a packed data set."""
    from cluster import stages
    from shards.check import check_packed

    cfg = load(config, overrides)
    if packed is None:
        stages.verify(cfg)
        console.next_step(f"bts pack {same(config, overrides)}")
        return
    with console.progress("verify") as update:
        manifest = check_packed(packed, cfg.store, update)
    console.stage(
        "verify", f"{packed}: {len(manifest.shards)} shards, {manifest.num_samples()} samples, all intact"
    )
    console.next_step(f"bts train --set data.shards={packed}")


@app.command()
def pack(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Verify data.source, split it by patient and pack it into shards at data.shards."""
    from cluster import stages

    cfg = load(config, overrides)
    stages.pack(cfg, stages.verify(cfg))
    if cfg.split.kind == "none":
        console.next_step(f"bts score --model RUN --set data.shards={cfg.data.shards}")
    else:
        console.next_step(f"bts train {same(config, overrides)}")


@app.command()
def inspect(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--out", help="Contact sheet to write.")] = Path(
        "contact-sheet.png"
    ),
) -> None:
    """Print what a packed data set holds and draw a contact sheet of training slices."""
    from cluster import inspection

    cfg = load(config, overrides)
    inspection.inspect(cfg, output)
    console.next_step(f"bts train {same(config, overrides)}")


@app.command()
def train(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Train on data.shards, resuming the run if it is unfinished."""
    from cluster import choice_stage, stages

    cfg = named(load(config, overrides))
    choice_stage.check(cfg)
    stages.train(cfg)
    choice_stage.choose(cfg)
    console.next_step(f"bts score --model {run_uri(cfg)} --set data.shards={cfg.data.shards}")


@app.command()
def tune(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """Search hyperparameters and write best.yaml."""
    from cluster import search_stage
    from cluster.tune_job import BEST

    cfg = named(load(config, overrides))
    search_stage.tune(cfg)
    console.next_step(f"bts train --config {run_uri(cfg)}/{BEST}")


@app.command()
def score(config: ConfigFiles = None, overrides: Overrides = None, model: ModelOption = None) -> None:
    """Score a model on the held-out test patients of data.shards."""
    from cluster import stages

    location = stages.score(named(load_to_score(config, overrides, model)), model)
    run, _, folder = location.rpartition("/")
    suffix = "" if folder == "score" else f" --scores {folder}"
    console.next_step(f"bts report --model {run}{suffix}")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="A run (its best checkpoint) or one checkpoint.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT", help="TIFF or PNG slices, NIfTI or a DICOM series (docs/predict.md)."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New folder for masks, overlays and volumes.")],
    config: ConfigFiles = None,
    overrides: Overrides = None,
) -> None:
    """Predict masks for images that have none, in their own format and geometry."""
    from cluster import predict_stage

    predict_stage.predict(model, source, out, config or [], overrides or [])
    console.next_step(f"open {out}/overlays")


@app.command()
def report(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    model: ModelOption = None,
    scores: ScoresOption = None,
) -> None:
    """Write a run's HTML report."""
    from cluster import stages

    cfg = named(load(config, overrides))
    console.next_step(f"open {stages.report(model or run_uri(cfg), cfg, scores or 'score')}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run (its best checkpoint) or one checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
    config: ConfigFiles = None,
    overrides: Overrides = None,
) -> None:
    """Write a model as ONNX, torch.export and safetensors, once all three predict what scoring predicts."""
    from cluster import export_stage

    export_stage.export(model, out, config or [], overrides or [])


@app.command()
def run(config: ConfigFiles = None, overrides: Overrides = None) -> None:
    """The main job: verify, pack, tune, train, score and report, skipping what is up to date."""
    from cluster import main_job

    cfg = named(load(config, overrides))
    console.stage("run", run_uri(cfg))
    console.next_step(f"open {main_job.run(cfg)}")


app.command()(cli_doctor.doctor)
app.command()(cli_doctor.estimate)
app.command()(cli_tracking.sync)
app.command()(cli_jobs.submit)
app.command()(cli_jobs.jobs)
app.command()(cli_jobs.logs)
app.command()(cli_jobs.stop)
app.command()(cli_jobs.status)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``bts``."""
    use_token()
    heed_termination()
    end_with_parent()
    code = guarded(arguments)
    end_wandb()
    sys.exit(code)


def guarded(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 2 for bad input, 1 for a failure, 130 for Ctrl-C, 143 for SIGTERM.

    An error is one message without a traceback, unless ``--debug`` is given.
    """
    try:
        result = app(arguments, standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.Exit as error:
        code = error.exit_code
    except (InputError, typer.TyperException) as error:
        return explain(error, 2)
    except Exception as error:  # noqa: BLE001 - the last line of defence: told to the user, exit code 1
        return explain(error, 1)
    if code == INTERRUPTED:
        console.err.print("interrupted; give the same command again to go on")
        return interrupted_code()
    return code


if __name__ == "__main__":
    main()
