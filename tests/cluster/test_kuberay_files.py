"""The Kubernetes files fit Kubernetes and KubeRay, and say the same as the rest of the project."""

import copy
import functools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from cluster_files import JOBS, KUBERAY, MANIFESTS, PINNED, ROOT, documents, port_table, ray_clusters
from jsonschema import Draft202012Validator, ValidationError

from bts_dist import pseudonyms
from bts_dist.compose import load_config
from bts_dist.config import Config
from cluster.cli import app

SCHEMAS = Path(__file__).parent / "schemas"
KINDS = {
    "RayCluster": "RayCluster",
    "RayJob": "RayJob",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
}
POD = ("spec", "workerGroupSpecs", 1, "template", "spec")
CONTAINER = (*POD, "containers", 0)


def strict(schema: Any) -> Any:
    """A CRD's schema as one that refuses unknown fields, which a cluster drops in silence, and heeds ``format``."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: strict(field) for name, field in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if "properties" in found:
        found["additionalProperties"] = False
    if found.get("format") == "int32":
        found = {"minimum": -(2**31), "maximum": 2**31 - 1} | found
    return found


@functools.cache
def validator(kind: str) -> Draft202012Validator:
    kubernetes = json.loads((SCHEMAS / "kubernetes.json").read_text(encoding="utf-8"))["$defs"]
    crds = yaml.safe_load((SCHEMAS / "kuberay.yaml").read_text(encoding="utf-8"))
    kuberay = {name: strict(schema) for name, schema in crds.items()}
    schema = {"$ref": f"#/$defs/{KINDS[kind]}", "$defs": kubernetes | kuberay}
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def objects() -> list[Any]:
    return [
        pytest.param(content, id=f"{path.relative_to(KUBERAY)}:{content['kind']}")
        for path in MANIFESTS
        for content in documents(path)
    ]


def the(kind: str, file: str) -> dict[str, Any]:
    (content,) = (c for c in documents(KUBERAY / file) if c["kind"] == kind)
    return content


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The overlay as pods see it at /etc/bts/site.yaml."""
    path = tmp_path / "site.yaml"
    path.write_text(the("ConfigMap", "site.yaml")["data"]["site.yaml"], encoding="utf-8")
    return path


def command_of(job: dict[str, Any], site: Path) -> tuple[str, Config]:
    """The command that a job runs, and its config, parsed as the program would."""
    program, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "bts"
    places = {"/etc/bts/site.yaml": str(site)}
    words = [places.get(w, w.replace("/home/bts/", f"{ROOT}/")) for w in words]
    root = typer.main.get_command(app)
    name, command, rest = root.resolve_command(root.make_context("bts", list(words)), words)  # type: ignore[attr-defined]
    context = command.make_context(name, rest)
    return name, load_config(context.params["config"], context.params["overrides"] or ())


@pytest.mark.parametrize("content", objects())
def test_each_object_fits_its_schema(content: dict[str, Any]) -> None:
    validator(content["kind"]).validate(content)


Place = tuple[str | int, ...]


def changed(content: dict[str, Any], path: Place, value: Any) -> dict[str, Any]:
    """A copy with another value at a place, which is made where it is not there."""
    content = copy.deepcopy(content)
    place: Any = content
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("kind", "file", "path"),
    [
        ("RayCluster", "cluster.yaml", ("spec", "enableInTreeAutoscalling")),
        ("RayCluster", "cluster.yaml", ("spec", "autoscalerOptions", "idleTimeout")),
        ("RayCluster", "cluster.yaml", ("spec", "authOptions", "token")),
        ("RayCluster", "cluster.yaml", ("spec", "headGroupSpec", "template", "spec", "serviceAcountName")),
        ("RayCluster", "cluster.yaml", ("spec", "workerGroupSpecs", 1, "maxReplica")),
        ("RayCluster", "cluster.yaml", (*CONTAINER, "resources", "limit")),
        ("RayCluster", "cluster.yaml", (*POD, "volumes", 0, "configMap", "items", "x")),
        ("RayJob", "main_job.yaml", ("spec", "runtimeEnv")),
        ("RayJob", "main_job.yaml", ("spec", "rayClusterSpec", "headGroup")),
        ("RayJob", "jobs/train.yaml", ("spec", "submitterConfig", "backoff")),
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_misspelt_field_is_noticed(kind: str, file: str, path: Place) -> None:
    # Kubernetes would drop it in silence.
    with pytest.raises(ValidationError, match=r"Additional properties|is not of type"):
        validator(kind).validate(changed(the(kind, file), path, True))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("headGroupSpec", "rayStartParams", "port"), 6379, "6379 is not of type 'string'"),
        (("workerGroupSpecs", 0, "maxReplicas"), 2**31, "greater than the maximum"),
        (("authOptions", "mode"), "password", "is not one of"),
        (("autoscalerOptions", "version"), 2, "is not of type 'string'"),
        (("upgradeStrategy",), {"type": "RollingUpdate"}, "is not one of"),
        (("gcsFaultToleranceOptions",), {"externalStorageNamespace": "a"}, "'redisAddress' is a required"),
        (("managedBy",), "me", "is not one of"),
        (("workerGroupSpecs", 0), {"groupName": "a"}, "is a required property"),
        (("ttlSecondsAfterIdle",), 60, "Additional properties"),  # of a KubeRay after 1.6
    ],
    ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
)
def test_a_value_that_kuberay_does_not_take_is_noticed(path: Place, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        validator("RayCluster").validate(changed(the("RayCluster", "cluster.yaml"), ("spec", *path), value))


def test_a_job_without_a_cluster_is_noticed() -> None:
    content = copy.deepcopy(the("RayJob", "jobs/train.yaml"))
    del content["spec"]["clusterSelector"]
    with pytest.raises(ValidationError):
        validator("RayJob").validate(content)


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_each_stage_has_a_job_on_the_cluster(path: Path, site: Path) -> None:
    job = the("RayJob", f"jobs/{path.name}")
    stage, config = command_of(job, site)
    assert stage == path.stem
    assert config.run.dir.startswith("s3://")
    assert config.cluster.address == "auto"
    assert job["spec"]["clusterSelector"] == {
        "ray.io/cluster": the("RayCluster", "cluster.yaml")["metadata"]["name"]
    }
    # The operator refuses both together.
    assert "backoffLimit" not in job["spec"]


def test_the_stages_are_those_of_the_main_job() -> None:
    assert {path.stem for path in JOBS} == {"pack", "tune", "train", "score", "report"}


def test_all_jobs_are_of_one_run(site: Path) -> None:
    jobs = [the("RayJob", f"jobs/{path.name}") for path in JOBS] + [the("RayJob", "main_job.yaml")]
    configs = [command_of(job, site)[1] for job in jobs]
    assert len({(c.run.dir, c.run.name, c.data.shards) for c in configs}) == 1


def test_the_main_job_has_the_same_cluster_and_leaves_none(site: Path) -> None:
    job = the("RayJob", "main_job.yaml")
    assert command_of(job, site)[0] == "run"
    assert job["spec"]["rayClusterSpec"] == the("RayCluster", "cluster.yaml")["spec"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize(("name", "cluster"), ray_clusters())
def test_a_cluster_asks_for_a_token_and_runs_the_pinned_ray(name: str, cluster: dict[str, Any]) -> None:
    assert cluster["authOptions"]["mode"] == "token", name
    assert cluster["rayVersion"] == PINNED["ray"]


def groups() -> list[Any]:
    return [
        pytest.param(group["template"]["spec"], id=f"{name}:{group.get('groupName', 'head')}")
        for name, cluster in ray_clusters()
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]


@pytest.mark.parametrize("pod", groups())
def test_a_pod_has_few_rights_and_no_secret(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert pod["serviceAccountName"] == the("ServiceAccount", "site.yaml")["metadata"]["name"]
    for variable in container["env"]:
        assert set(variable) == {"name", "valueFrom"}, f"{variable['name']} is written into the file"


@pytest.mark.parametrize("pod", groups())
def test_a_pod_has_the_keys_of_secrets_that_need_not_be(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    secrets = {v["name"]: v["valueFrom"]["secretKeyRef"] for v in container["env"]}
    assert set(secrets) == {"WANDB_API_KEY", pseudonyms.VARIABLE}
    comments = (KUBERAY / "site.yaml").read_text(encoding="utf-8")
    for secret in secrets.values():
        assert secret["optional"] is True
        made = f"kubectl create secret generic {secret['name']} --from-file={secret['key']}=/dev/stdin"
        assert made in comments


@pytest.mark.parametrize("pod", groups())
def test_a_pod_mounts_what_it_has(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    site = the("ConfigMap", "site.yaml")["metadata"]["name"]
    assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == [site]
    assert container["resources"]["limits"] == container["resources"]["requests"]


@pytest.mark.parametrize("pod", groups())
def test_gpus_go_with_the_gpu_image_and_a_notice(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    gpus = "nvidia.com/gpu" in container["resources"]["limits"]
    assert container["image"].endswith("-gpu" if gpus else "-cpu")
    if gpus:
        *_, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
        assert int(seconds) < pod["terminationGracePeriodSeconds"]


def test_gpu_groups_come_from_nothing_and_are_bounded() -> None:
    for _, cluster in ray_clusters():
        assert cluster["enableInTreeAutoscaling"] is True
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] == group["replicas"] == 0
            assert group["maxReplicas"] >= 1


def test_the_overlay_fits_the_pods(site: Path) -> None:
    config = load_config([ROOT / "configs" / "lgg.yaml", site])
    cluster = the("RayCluster", "cluster.yaml")["spec"]
    pods = [
        (group["maxReplicas"], group["template"]["spec"]["containers"][0]["resources"]["limits"])
        for group in cluster["workerGroupSpecs"]
    ]
    gpus = sum(most * int(limits.get("nvidia.com/gpu", 0)) for most, limits in pods)
    assert config.cluster.most * config.cluster.gpus_per_worker <= gpus
    for _, limits in pods:
        if "nvidia.com/gpu" in limits:
            workers = int(limits["nvidia.com/gpu"]) / config.cluster.gpus_per_worker
            assert workers * config.cluster.cpus_per_worker <= int(limits["cpu"])


def test_the_cache_has_room_for_what_is_kept_there(site: Path) -> None:
    config = load_config([site])
    (head, *_) = groups()
    (cache,) = (v["emptyDir"]["sizeLimit"] for v in head.values[0]["volumes"] if v["name"] == "cache")
    mounts = {m["name"]: m["mountPath"] for m in head.values[0]["containers"][0]["volumeMounts"]}
    assert config.store.cache_dir == mounts["cache"]
    assert config.store.cache_gib < int(cache.removesuffix("Gi"))


def test_only_pods_of_the_cluster_the_dashboard_and_a_prometheus_are_let_in() -> None:
    policy = the("NetworkPolicy", "site.yaml")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    inside, dashboard, metrics = policy["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": labels}}]}
    assert [p["port"] for p in dashboard["ports"]] == [8265]
    # One place: both its namespace, which nobody has labelled yet, and the pod.
    (prometheus,) = metrics["from"]
    assert prometheus["namespaceSelector"]["matchLabels"] == {"bts-dist/metrics": "read"}
    assert prometheus["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "prometheus"}
    documented = {int(numbers) for numbers, *_, who in port_table() if "Prometheus" in who}
    assert {p["port"] for p in metrics["ports"]} == documented
    label = "kubectl label namespace monitoring bts-dist/metrics=read"
    assert label in " ".join((ROOT / "docs" / "operations.md").read_text(encoding="utf-8").split())
    for _, cluster in ray_clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert group["template"]["metadata"]["labels"].items() >= labels.items()
