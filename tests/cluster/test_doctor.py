"""``bts doctor``: each line is shown well, doubtful and wrong, by things that really are so."""

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_proxy import Fault, FaultProxy, refusal

from bts_dist.compose import with_overrides
from bts_dist.config import ClusterConfig, Config
from bts_dist.wandb_login import Login, LoginError
from cluster import doctor, doctor_machine, doctor_services, doctor_stores
from cluster.auth_token import hide_token
from cluster.cli import guarded
from cluster.finding import Finding, refused
from cluster.placement import NodeType, Room, place
from shards.errors import InputError

HERE = "http://127.0.0.1"


class Web:
    """A server that answers every request alike, with the date of ``dated``."""

    def __init__(self, answer: dict[str, Any], status: int = 200, dated: str | None = None) -> None:
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.do_HEAD()
                self.wfile.write(json.dumps(answer).encode())

            def do_HEAD(self) -> None:
                outer.asked.append(self.headers.get("Authorization"))
                self.send_response_only(status)
                if dated is not None:
                    self.send_header("Date", dated)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"{HERE}:{self.server.server_port}"

    def __enter__(self) -> "Web":
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def states(findings: list[Finding]) -> list[str]:
    return [finding.state for finding in findings]


def s3_config(bucket: str = "s3://bucket") -> Config:
    return with_overrides(Config(), {"data.shards": f"{bucket}/shards", "run.dir": f"{bucket}/runs"})


def test_an_error_of_ours_ends_with_its_remedy() -> None:
    found = refused("a", InputError("x: is wrong; found y; set z"))
    assert (found.found, found.remedy) == ("x: is wrong; found y", "set z")
    assert refused("a", OSError("no remedy")).found == "no remedy"


def test_versions_are_those_that_the_package_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = doctor_machine.versions()
    assert found.state == "ok"
    assert f"torch {torch.__version__}" in found.found
    monkeypatch.setattr(doctor_machine.metadata, "requires", lambda _: ["torch>=99", "no-such-thing>=1"])
    (found,) = doctor_machine.versions()
    assert found.state == "error"
    assert "torch" in found.found
    assert "no-such-thing is missing" in found.found
    monkeypatch.undo()
    monkeypatch.setattr(doctor_machine, "PACKAGE", "no-such-package")
    assert states(doctor_machine.versions()) == ["warning"]


def test_little_of_anything_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = with_overrides(
        Config(), {"run.dir": str(tmp_path / "new" / "runs"), "store.cache_dir": str(tmp_path)}
    )
    assert states(doctor_machine.disks(config)) == ["ok", "ok"]
    for limit in ("LITTLE_MEMORY", "LITTLE_SHARED", "LITTLE_DISK"):
        monkeypatch.setattr(doctor_machine, limit, 1 << 60)
    found = [*doctor_machine.memory(), *doctor_machine.disks(config)]
    assert states(found) == ["warning"] * 4
    assert all(finding.remedy for finding in found)
    monkeypatch.setattr(doctor_machine, "NO_DISK", 1 << 60)
    assert states(doctor_machine.disks(config)) == ["error", "error"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without GPUs is what is looked at")
def test_gpus_that_are_asked_for_and_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert states(doctor_machine.gpus(Config())) == ["ok"]
    asked = with_overrides(Config(), {"cluster.gpus_per_worker": 1})
    assert states(doctor_machine.gpus(asked)) == ["error"]
    (found,) = doctor_machine.gpus(with_overrides(asked, {"cluster.address": "auto"}))
    assert (found.state, found.found) == ("ok", "none here; the workers' count")
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    )
    monkeypatch.setattr(doctor_machine, "DRIVER", driver)
    (found,) = doctor_machine.gpus(Config())
    assert found.state == "warning"
    assert "driver 535.104.05" in found.found


def test_a_folder_is_probed_and_left_as_it_was(tmp_path: Path) -> None:
    places = {"data.shards": str(tmp_path / "new" / "shards"), "run.dir": str(tmp_path)}
    found = doctor_stores.stores(with_overrides(Config(), places))
    assert states(found) == ["ok", "ok"]
    assert "MB/s" in found[0].found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", ["", "/x", "/x/y"])
def test_a_file_where_a_folder_should_be(tmp_path: Path, below: str) -> None:
    file = tmp_path / "README.md"
    file.write_text("read me")
    place = f"{file}{below}"
    config = with_overrides(
        Config(), {"data.shards": place, "run.dir": place, "store.cache_dir": place, "data.source": place}
    )
    found = [*doctor_stores.stores(config), *doctor_machine.disks(config)]
    assert states(found) == ["error"] * 4
    assert all(f"{file} is a file" in f.found and "another folder" in f.remedy for f in found)


def test_a_folder_without_hard_links_is_no_place_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    places = {"data.shards": str(tmp_path / "shards"), "run.dir": str(tmp_path / "runs")}
    packing, running = doctor_stores.stores(with_overrides(Config(), places))
    assert (packing.state, running.state) == ("warning", "error")
    assert "no hard links" in running.found
    assert running.remedy == "choose a folder on another file system, or s3://"
    assert list(tmp_path.iterdir()) == []


def test_raw_files_are_looked_for_where_none_are_packed(tmp_path: Path, packed: Path) -> None:
    config = with_overrides(
        Config(), {"data.source": str(tmp_path / "raw"), "data.shards": str(tmp_path / "shards")}
    )
    (found,) = doctor_stores.source(config)
    assert (found.state, found.found) == ("warning", f"{tmp_path}/raw is not there, and nothing is packed")
    (tmp_path / "raw").mkdir()
    assert states(doctor_stores.source(config)) == ["ok"]
    assert doctor_stores.source(with_overrides(config, {"data.shards": str(packed)})) == []


def test_raw_files_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = with_overrides(
        Config(), {"data.source": f"{bucket}/raw", "data.shards": str(tmp_path / "shards")}
    )
    assert states(doctor_stores.source(config)) == ["ok"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{HERE}:9")
    (found,) = doctor_stores.source(config)
    assert found.state == "warning"
    assert "cannot reach" in found.found


def test_a_bucket_that_keeps_its_word(bucket: str, s3: Any) -> None:
    found = doctor_stores.stores(s3_config(bucket))
    assert states(found) == ["ok", "ok"]
    assert "conditional writes hold" in found[0].found
    assert s3.client.list_objects_v2(Bucket=bucket.removeprefix("s3://")).get("Contents", []) == []
    (keys,) = doctor_stores.credentials(s3_config(bucket))
    assert (keys.state, keys.found) == ("ok", "from the environment")
    (clock,) = doctor_stores.clock(s3_config(bucket))
    assert clock.state == "ok"
    assert os.environ["AWS_ENDPOINT_URL"] in clock.found


def test_a_store_that_overwrites_all_the_same(bucket: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "strip", header="If-None-Match", times=99))
    packing, running = doctor_stores.stores(s3_config(bucket))
    # A data set can be read there; a run's owner could not be told from another.
    assert (packing.state, running.state) == ("warning", "error")
    assert "overwrites an object although" in running.found
    assert "conditional writes" in running.remedy


def test_a_store_that_may_only_be_read(bucket: str, s3_proxy: FaultProxy) -> None:
    s3_proxy.faults.append(Fault("PUT", "answer", answer=refusal(403, "AccessDenied"), times=99))
    packing, running = doctor_stores.stores(s3_config(bucket))
    assert (packing.state, running.state) == ("warning", "error")
    assert "access denied" in running.found


def test_a_server_that_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"{HERE}:9")
    found = doctor_stores.stores(s3_config(bucket))
    assert states(found) == ["error", "error"]
    assert "cannot reach" in found[0].found
    assert states(doctor_stores.clock(s3_config(bucket))) == ["warning"]


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (found,) = doctor_stores.credentials(s3_config())
    assert found.state == "error"
    assert "AWS_ACCESS_KEY_ID" in found.remedy
    assert "give the machine a role" in found.remedy
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in doctor_stores.credentials(s3_config())[0].found
    assert states(doctor_stores.credentials(Config())) == ["ok"]


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0, "ok"), (50, "ok"), (-90, "warning"), (600, "warning"), (-1200, "error")]
)
def test_a_clock_that_is_wrong(monkeypatch: pytest.MonkeyPatch, ahead_s: float, state: str) -> None:
    now = 1.8e9
    monkeypatch.setattr(doctor_stores.time, "time", lambda: now + ahead_s)
    with Web({}, 403, formatdate(now, usegmt=True)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        (found,) = doctor_stores.clock(s3_config())
    assert found.state == state
    assert f"{abs(ahead_s)} s {'ahead' if ahead_s > 0 else 'behind'}" in found.found
    assert bool(found.remedy) == (state != "ok")


def test_wandb_online_is_a_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a login is: ``tests/bts_dist/test_wandb_login.py``."""
    online = with_overrides(Config(), {"track.wandb": "online"})
    monkeypatch.setattr(doctor_services, "check_login", lambda: Login("https://w", "marie"))
    assert doctor_services.wandb(online) == [Finding("W&B", "ok", "online: logged in to https://w as marie")]

    def fail() -> Login:
        raise LoginError("https://w does not know the key (HTTP 401); log in")

    monkeypatch.setattr(doctor_services, "check_login", fail)
    (found,) = doctor_services.wandb(online)
    assert found.state == "error"
    assert found.found == "online, and https://w does not know the key (HTTP 401)"
    assert found.remedy == "log in, or set track.wandb=offline"
    for mode in ("offline", "disabled"):
        assert states(doctor_services.wandb(with_overrides(online, {"track.wandb": mode}))) == ["ok"]


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_a_setting_that_wandb_refuses_spoils_every_record(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise LoginError("W&B's setting base_url is not valid; mend WANDB_BASE_URL")

    monkeypatch.setattr(doctor_services, "load_settings", fail)
    (found,) = doctor_services.wandb(with_overrides(Config(), {"track.wandb": mode}))
    if mode == "disabled":
        assert found.state == "ok"
    else:
        remedy = "mend WANDB_BASE_URL, or set track.wandb=disabled"
        assert found == Finding("W&B", "error", "W&B's setting base_url is not valid", remedy)


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the token of this machine's Ray would lie."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


def test_the_token_is_its_owners_alone(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_services._token(joins=False).state == "ok"
    none = doctor_services._token(joins=True)
    assert (none.state, none.found) == ("warning", f"none: {token} is not there")
    assert none.remedy.startswith("put the one that `ray get-auth-token` prints on the cluster's head into")
    token.write_text("secret")
    token.chmod(0o644)
    found = doctor_services._token(joins=True)
    assert (found.state, found.remedy) == ("warning", f"chmod 600 {token}")
    token.chmod(0o600)
    assert doctor_services._token(joins=True).state == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", f"{token}-elsewhere")
    assert doctor_services._token(joins=False).state == "warning"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor_services._token(joins=False).state == "warning"


def test_the_token_is_looked_at_before_ray_is_joined_and_hides_it(
    token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.write_text("secret")
    token.chmod(0o644)

    @contextmanager
    def join(_: object) -> Iterator[None]:
        hide_token()
        raise InputError("nobody answers; start it")
        yield

    monkeypatch.setattr(doctor_services, "ray_cluster", join)
    found, silent = doctor_services.cluster(with_overrides(Config(), {"cluster.address": "10.0.0.1:6379"}))
    assert found.found == f"others may read {token} (0644)"
    assert silent.state == "error"
    assert token.stat().st_mode & 0o077 == 0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_is_joined() -> None:
    # The session's cluster is joined already, so the address is not dialled.
    joined = with_overrides(Config(), {"cluster.address": "auto", "cluster.workers": 1})
    found = doctor_services.cluster(joined)
    # bf16 is slow, and said to be, on a CPU without instructions for it.
    assert [
        f for f in found if f.state != "ok" and f.check.split(",")[0] not in ("Ray token", "arithmetic")
    ] == []
    told = {f.check.partition(",")[0]: f.found for f in found}
    assert "room for" in told["Ray"]
    assert "1 nodes differ from this machine's by 0 s" in told["nodes' clocks"]
    assert "one node has room for all workers" in told["all-reduce"]
    large = doctor_services.cluster(with_overrides(joined, {"cluster.cpus_per_worker": 4096}))[-1]
    assert large.state == "error"
    assert "lower cluster.workers" in large.remedy


def test_nothing_is_waited_for_that_only_a_run_starts() -> None:
    room = Room((), True, (NodeType({"CPU": 4}, 2),))
    (found,) = doctor_services.noted(place(ClusterConfig(workers=2), room, cuda=True), 2)
    assert found.state == "warning"
    assert "room for 0 of 2 workers" in found.found
    assert found.remedy.startswith("a run has them started")
    # GPUs that are left alone are nobody's to start.
    room = Room(({"CPU": 4, "GPU": 1},))
    (found,) = doctor_services.noted(place(ClusterConfig(workers=2), room, cuda=True), 2)
    assert found.remedy == "change what is asked for, or go on"


def test_folders_in_a_cluster_are_doubtful() -> None:
    joined = with_overrides(s3_config(), {"cluster.address": "auto"})
    assert doctor_stores.shared_places(joined) == []
    for folder in ("runs", "~/runs", "file:///runs"):
        assert states(doctor_stores.shared_places(with_overrides(joined, {"run.dir": folder}))) == ["warning"]


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_the_exit_code_tells_errors_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    remedy = "" if state == "ok" else "mend [it]"
    finding = Finding("a check", state, "found [this]", remedy)  # type: ignore[arg-type]
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: [finding],))
    assert guarded(["doctor", "--set", "run.name=x"]) == code
    printed = capsys.readouterr().out
    assert "found [this]" in printed
    assert (f"{state} a check: mend [it]" in printed) == (state != "ok")
    assert ("next: bts run --set run.name=x" in printed) == (code == 0)


def test_every_check_runs_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_machine, "measure_all_reduce", lambda _: 1e9)
    config = with_overrides(Config(), {"data.shards": str(tmp_path), "run.dir": str(tmp_path)})
    found = list(doctor.examine(config))
    assert {"versions", "arithmetic", "all-reduce", "data.shards", "run.dir", "W&B"} <= {
        f.check for f in found
    }
    assert not [f for f in found if f.state == "error"]


def test_a_device_that_fails_is_one_line_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> float:
        raise RuntimeError("CUDA error: no kernel image is available\nmore of it")

    monkeypatch.setattr(doctor_machine, "measure_peak", fail)
    monkeypatch.setattr(doctor_machine, "measure_all_reduce", fail)
    for found in [*doctor_machine.own_speeds(Config()), *doctor_machine.exchange()]:
        assert found.state == "error"
        assert "no kernel image" in found.found
        assert found.remedy


@pytest.mark.parametrize(("bf16", "state"), [(0.3e12, "warning"), (0.9e12, "ok"), (2e12, "ok")])
def test_bf16_that_is_emulated_and_bf16_that_others_slowed(
    bf16: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {torch.bfloat16: bf16, torch.float32: 1e12}
    monkeypatch.setattr(doctor_machine, "measure_peak", lambda _, dtype, __: speeds[dtype])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = doctor_machine.own_speeds(Config())
    assert found.state == state
    assert ("train.precision=fp32" in found.remedy) == (state == "warning")
    # Where nothing is trained in bf16, or not here, it is no matter.
    for other in ({"train.precision": "fp32"}, {"cluster.address": "auto"}):
        assert states(doctor_machine.own_speeds(with_overrides(Config(), other))) == ["ok"]
