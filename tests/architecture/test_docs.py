"""The documents say what the code does: generated pages are fresh, and every command line in them is valid."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer

from bts_dist.compose import load_config
from cluster.cli import app
from shards.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
PRICES = ROOT / "configs" / "prices.yaml"
"""What machines cost: no config, but ``bts estimate`` reads it."""
PRESETS = sorted({*(ROOT / "configs").glob("*.yaml")} - {PRICES})
CLUSTERS = sorted(ROOT.glob("ray_cluster*.yaml"))

OUTPUTS = "runs/"
"""Config files below this folder are made by a run; no page can count on them."""


def command_lines(text: str) -> list[str]:
    """The ``bts`` command lines of a page: in code blocks, in inline code and in YAML comments."""
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", joined, re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", joined, flags=re.MULTILINE | re.DOTALL))
    comments = re.findall(r"^#\s*(.*)", joined, re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()] + inline + comments
    found = (re.match(r"(?:\w+=\S* |torchrun .*--no-python )*(bts [^#]+)", line) for line in lines)
    return [match[1].strip() for match in found if match]


def check_command(line: str) -> None:
    """Parse a ``bts`` command line as the program would and load the config it names.

    Raises:
        InputError: a config file or key does not exist, or a value is refused.
        Exception: whatever the parser raises for an unknown command or option.
    """
    root = typer.main.get_command(app)
    arguments = [a for a in shlex.split(line)[1:] if a != "--debug"]
    name, command, rest = root.resolve_command(  # type: ignore[attr-defined]
        root.make_context("bts", list(arguments)), arguments
    )
    context = command.make_context(name, rest)
    files = [path for path in context.params["config"] or () if not str(path).startswith(OUTPUTS)]
    load_config([ROOT / path for path in files], context.params["overrides"] or ())


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_configuration", ROOT / "docs" / "make_configuration.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_what_the_code_says() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == generator().render(), f"run `{Path(sys.executable).name} docs/make_configuration.py`"


@pytest.mark.parametrize(
    "path", [*PAGES, *PRESETS, *CLUSTERS], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_command_lines_are_valid(path: Path) -> None:
    for line in command_lines(path.read_text(encoding="utf-8")):
        check_command(line)


def test_the_pages_have_command_lines() -> None:
    assert len(command_lines((ROOT / "README.md").read_text(encoding="utf-8"))) > 10


def test_command_lines_are_found_wherever_they_stand() -> None:
    block = "```sh\nX=1 bts train \\\n  --set a.b=1  # why\ntorchrun -n 2 --no-python bts run\n```\n"
    assert command_lines(f"Use `bts pack` here.\n{block}") == ["bts train --set a.b=1", "bts run", "bts pack"]
    assert command_lines("# Do:\n#   bts tune -s x=1\ndata: 1") == ["bts tune -s x=1"]


@pytest.mark.parametrize(
    "line",
    ["bts run --config configs/none.yaml", "bts run --set optim.rate=1", "bts run --set train.epochs=many"],
)
def test_a_config_that_does_not_load_is_noticed(line: str) -> None:
    with pytest.raises(InputError):
        check_command(line)


@pytest.mark.parametrize("line", ["bts fly", "bts train --lr 1", "bts score --model"])
def test_an_unknown_command_or_option_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r"No such|requires an argument"):
        check_command(line)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_presets_load_alone_or_over_a_recipe(path: Path) -> None:
    assert load_config([ROOT / "configs" / "lgg.yaml", path]).run.name is not None
