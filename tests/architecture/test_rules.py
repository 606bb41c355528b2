"""Rules of the house that a reviewer would have to remember, as tests."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer

from cluster.cli import app
from shards.reader import PackedData

ROOT = Path(__file__).parents[2]
PACKAGES = ("shards", "bts_dist", "cluster")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 400

KNOBS = {"--config", "-c", "--set", "-s"}
PLACES = {"--model", "--packed", "--out", "--scores", "--address"}
MANNERS = {"--wait", "--follow", "-f"}
"""How long a command stays; they change nothing of what is done."""
POSITIONAL = {
    "export": ["model", "out"],
    "predict": ["model", "source", "out"],
    "submit": ["stage"],
    "logs": ["job"],
    "stop": ["job"],
}
"""Places again: what a command takes without an option's name, from where to where, or which job."""
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
# Calls that run code out of data; numpy's is safe unless told otherwise, which `allow_pickle` below catches.
UNSAFE_CALLS = {"torch.load", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen", "eval", "exec"}
SAFE_LOADER = {"yaml.SafeLoader"}
UNSAFE_ARGUMENTS = {"shell", "allow_pickle"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def safe_loaders(tree: ast.Module) -> set[str]:
    """PyYAML's safe loader and the classes that a module derives from it."""
    derived = {
        node.name
        for node in tree.body
        if isinstance(node, ast.ClassDef) and _names(node.bases) == SAFE_LOADER
    }
    return SAFE_LOADER | derived


def _names(nodes: list[ast.expr]) -> set[str]:
    return {ast.unparse(node) for node in nodes}


def unsafe(source: str) -> list[str]:
    """What in a module's source could run code that came as data."""
    tree = ast.parse(source)
    loaders = safe_loaders(tree)
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in PICKLERS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found += sorted(names & UNSAFE_CALLS)
            found += [node.module] if node.module.partition(".")[0] in PICKLERS else []
    for call in calls(tree):
        name = ast.unparse(call.func)
        given = _names([*call.args[1:], *(k.value for k in call.keywords)])
        if name in UNSAFE_CALLS or (name in ("yaml.load", "yaml.load_all") and not given & loaders):
            found.append(name)
        for argument in call.keywords:
            off = isinstance(argument.value, ast.Constant) and not argument.value.value
            found += [f"{argument.arg}="] if argument.arg in UNSAFE_ARGUMENTS and not off else []
    return found


def opens_test_patients(source: str) -> list[str]:
    """The expressions in a module's source that ask a data set for its test split."""
    found = []
    for call in calls(ast.parse(source)):
        if isinstance(call.func, ast.Attribute):
            reader = call.func.attr in ("_reader", "training")
            split = any(isinstance(a, ast.Constant) and a.value == "test" for a in call.args)
            if (call.func.attr == "test" and not call.args) or (reader and split):
                found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_nothing_runs_code_from_data(path: Path) -> None:
    assert unsafe(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    import cloudpickle.dumps",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.run('ls', shell=wanted)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(source: str) -> None:
    assert len(unsafe(source)) == 1


def test_the_search_lets_safe_loading_pass() -> None:
    source = (
        "class Loader(yaml.SafeLoader):\n    pass\nyaml.load(a, Loader)\nyaml.load(b, Loader=yaml.SafeLoader)"
    )
    assert unsafe(source) == []


def test_only_scoring_opens_test_patients() -> None:
    opening = {relative(p) for p in MODULES if opens_test_patients(p.read_text(encoding="utf-8"))}
    assert opening == {"bts_dist/score.py", "shards/reader.py"}
    assert opens_test_patients("PackedData(uri).test().index") == ["PackedData(uri).test()"]


def test_the_training_reader_cannot_name_the_test_split() -> None:
    assert get_args(get_type_hints(PackedData.training)["split"]) == ("train", "val")


def test_the_command_line_has_no_knobs_of_its_own() -> None:
    root = typer.main.get_command(app)
    commands = root.commands  # type: ignore[attr-defined]
    named = [p for command in commands.values() for p in command.params if p.param_type_name == "option"]
    options = {opt for param in named for opt in param.opts}
    assert options == KNOBS | PLACES | MANNERS
    assert {opt for param in root.params for opt in param.opts} - {"--help"} == {"--debug"}
    for name, command in commands.items():
        own = {opt for param in command.params for opt in param.opts}
        assert own >= KNOBS, name
        positional = [param.name for param in command.params if param.param_type_name == "argument"]
        assert positional == POSITIONAL.get(name, []), name


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_is_one_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_LINES


def loaded_with(modules: list[str], unwanted: list[str]) -> str:
    """Which of the unwanted packages a fresh interpreter has loaded once it has imported the modules."""
    code = f"import sys, {', '.join(modules)}; print([m for m in {unwanted} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules_of(package: str) -> list[str]:
    return [f"{package}.{path.stem}" for path in (ROOT / package).glob("*.py") if path.stem != "__init__"]


def test_the_data_plane_loads_neither_torch_nor_ray_nor_wandb() -> None:
    assert loaded_with(modules_of("shards"), ["torch", "ray", "wandb"]) == "[]"


def test_training_and_scoring_load_no_ray() -> None:
    assert loaded_with(modules_of("bts_dist"), ["ray"]) == "[]"


def test_the_probe_for_loaded_modules_sees_one() -> None:
    assert loaded_with(["json"], ["json", "ray"]) == "['json']"


def test_imports_go_one_way() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    kept, broken = re.findall(r"Contracts: (\d+) kept, (\d+) broken", done.stdout)[0]
    assert int(kept) >= 3
    assert int(broken) == 0
