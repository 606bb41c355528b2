"""The images by inspection: pinned, without a root user, without secrets, of files that exist."""

import re
import shlex

import pytest
from cluster_files import IMAGES, ROOT, ray_clusters

Instruction = tuple[str, str]


def instructions(text: str) -> list[Instruction]:
    """The instructions of a Dockerfile with their arguments, continued lines joined, comments left out."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\s*\\\n\s*", " ", lines)
    found = (line.strip().partition(" ") for line in joined.splitlines() if line.strip())
    return [(name.upper(), rest.strip()) for name, _, rest in found]


def stages() -> dict[str, list[Instruction]]:
    """Each stage by its name, with the instructions of those it is built from before its own."""
    found: dict[str, list[Instruction]] = {}
    name = ""
    for instruction, rest in instructions(IMAGES.read_text(encoding="utf-8")):
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        if name:
            found[name].append((instruction, rest))
    return found


TARGETS = pytest.mark.parametrize("target", ["cpu", "gpu"])


def test_continued_lines_and_comments_are_read() -> None:
    assert instructions("# a\nFROM x AS y\nRUN a \\\n # b\n && c\n") == [
        ("FROM", "x AS y"),
        ("RUN", "a && c"),
    ]


def test_every_stage_is_built_from_a_pinned_image() -> None:
    (base,) = (
        rest
        for name, rest in instructions(IMAGES.read_text(encoding="utf-8"))
        if name == "ARG" and "=" in rest
    )
    assert re.fullmatch(r"BASE=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    names = set(stages())
    for name, rest in instructions(IMAGES.read_text(encoding="utf-8")):
        if name == "FROM":
            assert rest.partition(" AS ")[0] in {"${BASE}"} | names


def test_packages_are_copied_from_where_this_python_keeps_them() -> None:
    text = IMAGES.read_text(encoding="utf-8")
    (version,) = re.findall(r"^ARG BASE=python:(3\.\d+)\.", text, re.MULTILINE)
    assert set(re.findall(r"/usr/local/lib/python(3\.\d+)/", text)) == {version}


@TARGETS
def test_nobody_is_root(target: str) -> None:
    *_, user = (rest for name, rest in stages()[target] if name == "USER")
    assert user == "1000:1000", "a number: Kubernetes cannot tell of a name that it is not root"


@TARGETS
def test_the_pods_run_as_the_images_user(target: str) -> None:
    *_, user = (rest for name, rest in stages()[target] if name == "USER")
    for _, cluster in ray_clusters():
        pod = cluster["headGroupSpec"]["template"]["spec"]["securityContext"]
        assert f"{pod['runAsUser']}:{pod['runAsGroup']}" == user


@TARGETS
def test_packages_have_the_tested_versions(target: str) -> None:
    runs = [rest for name, rest in stages()[f"packages-{target}"] if name == "RUN"]
    installs = [part for run in runs for part in run.split("&&") if "pip install" in part]
    assert installs
    assert all("--constraint /constraints.txt" in part for part in installs)


@TARGETS
def test_the_image_asks_for_a_token_and_holds_none(target: str) -> None:
    variables = dict(
        pair.split("=") for name, rest in stages()[target] if name == "ENV" for pair in shlex.split(rest)
    )
    assert variables["RAY_AUTH_MODE"] == "token"
    assert [name for name in variables if re.search("TOKEN|SECRET|PASSWORD|API_KEY", name)] == []
    assert all("TOKEN" not in rest for name, rest in stages()[target] if name == "ARG")


def test_the_wheel_is_told_its_commit_and_the_image_is_not() -> None:
    steps = stages()["wheel"]
    (told,) = (i for i, step in enumerate(steps) if step == ("ARG", "BTS_COMMIT"))
    (built,) = (i for i, (name, rest) in enumerate(steps) if name == "RUN" and "pip wheel" in rest)
    assert told < built
    comments = IMAGES.read_text(encoding="utf-8").partition("\nARG BASE")[0]
    assert comments.count('--build-arg "$commit"') == comments.count("#   docker build ") == 2
    for target in ("cpu", "gpu"):
        assert not any("BTS_COMMIT" in rest for name, rest in stages()[target])


def test_what_is_copied_is_there_and_let_in() -> None:
    let_in = set((ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines())
    assert "*" in let_in, "everything else stays out: data, runs, keys"
    for name, rest in instructions(IMAGES.read_text(encoding="utf-8")):
        if name == "COPY" and "--from=" not in rest:
            *sources, _ = (word for word in rest.split() if not word.startswith("--"))
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in let_in, source


def test_the_images_have_what_the_operator_and_the_jobs_call() -> None:
    # The operator's health checks use wget; jobs take their recipe from the image.
    assert any("install" in rest and "wget" in rest for name, rest in stages()["cpu"] if name == "RUN")
    assert ("COPY", "--chown=1000:1000 configs /home/bts/configs") in stages()["cpu"]


def test_the_images_of_the_pods_are_of_this_version() -> None:
    version = re.search(
        r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert version is not None
    images = {
        c["image"]
        for _, cluster in ray_clusters()
        for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
        for c in g["template"]["spec"]["containers"]
    }
    assert images == {f"REGISTRY/bts-dist:{version[1]}-{kind}" for kind in ("cpu", "gpu")}
