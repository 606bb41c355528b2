"""What a command says when it ends with an error."""

import sys
import traceback

import typer
from rich.markup import escape

from cluster import console
from shards.errors import InputError
from shards.store import StoreError


def explain(error: Exception, code: int) -> int:
    """Say what went wrong, with the traceback only under ``--debug``, and return the exit code."""
    debug = "--debug" in sys.argv
    if debug:
        traceback.print_exception(error)
    spoken = isinstance(error, InputError | RuntimeError | FloatingPointError | StoreError)
    if isinstance(error, typer.TyperException):
        text = f"{error.format_message()} (`bts --help` lists commands and options)"
    else:
        text = str(error) if spoken else f"{type(error).__name__}: {error}"
    console.err.print("[bold red]error[/bold red]", escape(text))
    if code == 1 and not debug:
        console.err.print("  `bts --debug …` shows where it happened")
    return code
