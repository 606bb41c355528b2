"""Every port that a cluster opens is in the table of docs/operations.md, with one number in all files."""

import itertools
import re
from dataclasses import replace
from typing import Any

import click
import pytest
from cluster_files import RayStart, port_table, ray_starts
from ray._private import parameter
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard.consts import DASHBOARD_METRIC_PORT
from ray.scripts.scripts import start

HEAD_ONLY = {"port", "dashboard-port", "ray-client-server-port"}
STARTS = pytest.mark.parametrize("ray_start", ray_starts(), ids=lambda s: s.place)


def documented() -> dict[str, str]:
    """Option of ``ray start`` to its value, as the table has them."""
    found = {}
    for numbers, setter, *_ in port_table():
        options = re.findall(r"`--([\w-]+)`", setter)
        found |= dict(zip(options, numbers.split("–"), strict=True)) if options else {}
    return found


def is_port(option: str) -> bool:
    return option == "port" or option.endswith("-port")


@STARTS
def test_each_start_of_ray_has_the_ports_of_the_table(ray_start: RayStart) -> None:
    ports = {name: value for name, value in ray_start.options.items() if is_port(name)}
    expected = {k: v for k, v in documented().items() if ray_start.head or k not in HEAD_ONLY}
    assert ports == expected


def test_every_port_that_ray_lets_one_set_is_set() -> None:
    options = {opt.removeprefix("--") for param in start.params for opt in param.opts}
    assert {name for name in options if is_port(name)} - {"redis-shard-ports"} == set(documented())


class AcceptedError(Exception):
    """Ray has checked all that it is started with."""


@pytest.fixture
def _only_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ray start`` goes on until its parameters are checked, and starts nothing."""

    class Checked(parameter.RayParams):
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.update_pre_selected_port()  # refuses ports that two would have
            raise AcceptedError

    monkeypatch.setattr(parameter, "RayParams", Checked)


@STARTS
@pytest.mark.usefixtures("_only_checked")
def test_ray_accepts_each_start(ray_start: RayStart) -> None:
    with pytest.raises(AcceptedError):
        start.main(ray_start.words, standalone_mode=False)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("ray-client-server-port", "0", "must be an integer between 1024 and 65535"),
        ("max-worker-port", "10", "max_worker_port must be"),
        ("metrics-export-port", "8076", "used by other components"),
        ("dashboard-port", "http", "not a valid integer"),
        ("port-of-nothing", "1", "No such option"),
    ],
)
@pytest.mark.usefixtures("_only_checked")
def test_a_start_that_ray_refuses_is_noticed(option: str, value: str, message: str) -> None:
    for head in (s for s in ray_starts() if s.head):
        refused = replace(head, options=head.options | {option: value})
        with pytest.raises((ValueError, click.ClickException), match=message):
            start.main(refused.words, standalone_mode=False)


@STARTS
def test_the_dashboard_is_on_the_private_address(ray_start: RayStart) -> None:
    host = ray_start.options.get("dashboard-host")
    if not ray_start.head:
        assert host is None
    elif ray_start.place.startswith("ray_cluster"):
        assert host != "0.0.0.0"
    else:
        assert host == "0.0.0.0", "of a pod, which has no other address"


def test_ports_that_ray_sets_itself_are_as_the_table_has_them() -> None:
    own = {int(numbers) for numbers, setter, *_ in port_table() if setter == "Ray"}
    assert own == {AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT}


def test_no_port_is_taken_twice() -> None:
    spans = []
    for numbers, setter, *_ in port_table():
        if setter != "Linux":
            first, _, last = numbers.partition("–")
            spans.append((int(first), int(last or first)))
    spans.sort()
    assert len(spans) > 10
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_somebody_may_reach_each_port_and_nobody_the_world() -> None:
    assert all(len(row) == 5 and row[-1] for row in port_table())
    assert not any(re.search("anyone|everyone|internet", row[-1]) for row in port_table())
