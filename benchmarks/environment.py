"""The environment of the benchmarks: the project's packages, with the peers beside them, and a word on the machine.

The peers must not enter the project's own environment: they would bring some sixty packages and hold numpy back.
So ``.venv-bench`` holds the peers alone and looks up everything else, torch and the project included, where the
project has it: every contender then runs on the very same torch, numpy, Pillow and boto3.

    python benchmarks/environment.py      # makes it, or does nothing when it is there
"""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")

STAND_INS = {
    "torchvision/__init__.py": "",
    "torchvision/datasets.py": "class VisionDataset: ...\n",
    "torchvision/transforms/__init__.py": "",
    "torchvision/transforms/functional.py": "def to_tensor(picture): raise NotImplementedError\n",
    "transformers/__init__.py": "",
    "transformers/feature_extraction_utils.py": "class BatchFeature: ...\n",
    "transformers/tokenization_utils_base.py": "class BatchEncoding: ...\n",
    "transformers/models/__init__.py": "",
    "transformers/models/auto/__init__.py": "",
    "transformers/models/auto/tokenization_auto.py": "class AutoTokenizer: ...\n",
}
"""Names that ``import streaming`` asks for and nothing measured here calls: its ready-made vision and text sets
import torchvision, which PyPI has for CUDA builds of torch only, and transformers."""

SHOWN = ("torch", "numpy", "pillow", "boto3", "webdataset", "mosaicml-streaming", "litdata")


def prepare() -> Path:
    """The benchmark environment's Python, made at the first call or when the requirements have changed."""
    python = HOME / "bin" / "python"
    if Path(sys.prefix) == HOME:
        return python
    stamp = HOME / "installed.txt"
    wanted = f"{REQUIREMENTS.read_text()}{_project_packages()}\n{STAND_INS}"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(HOME, clear=True, with_pip=True)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(HOME), "platbase": str(HOME)}))
    # A .pth line that starts with "import" is run at start-up; addsitedir appends, so the peers' own come first.
    (own / "project.pth").write_text(f"import site; site.addsitedir({str(_project_packages())!r})\n")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--requirement", REQUIREMENTS], check=True)
    for name, text in STAND_INS.items():
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(text)
    stamp.write_text(wanted)
    return python


def enter() -> None:
    """Go on in the benchmark environment: run the same command there, in this process's place."""
    if Path(sys.prefix) != HOME:
        python = prepare()
        os.execv(python, [str(python), *sys.argv])


def describe(packages: Sequence[str] = SHOWN) -> str:
    """A Markdown list of what a result depends on: command, commit, date, machine, versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    lines = (
        f"Command: `{_command()}`",
        f"Commit: {_commit()}; date: {datetime.date.today().isoformat()}",
        f"Machine: {_processor()}, {len(os.sched_getaffinity(0))} cores, {_memory_gib():.0f} GiB memory, "
        f"{platform.system()} {platform.release()}",
        f"Versions: Python {platform.python_version()}, {versions}",
    )
    return "\n".join(f"- {line}" for line in lines)


def _project_packages() -> Path:
    """Where the Python that runs this file keeps the project's dependencies."""
    return Path(sysconfig.get_path("purelib"))


def _command() -> str:
    script = os.path.relpath(sys.argv[0], ROOT)
    return shlex.join(["python", script, *sys.argv[1:]])


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = " with uncommitted changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short", "HEAD") or "unknown") + changed


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30


if __name__ == "__main__":
    sys.stdout.write(f"{prepare()}\n")
