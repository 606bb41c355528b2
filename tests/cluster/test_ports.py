"""Every port that a cluster opens is in the table of docs/operations.md, with one number in all files."""

import itertools
import re

import pytest
from cluster_files import RayStart, port_table, ray_starts
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
        values = ["0"] if numbers == "off" else numbers.split("–")
        found |= dict(zip(options, values, strict=True)) if options else {}
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
        if numbers != "off" and setter != "Linux":
            first, _, last = numbers.partition("–")
            spans.append((int(first), int(last or first)))
    spans.sort()
    assert len(spans) > 10
    assert all(a[1] < b[0] for a, b in itertools.pairwise(spans))


def test_somebody_may_reach_each_port_and_nobody_the_world() -> None:
    assert all(len(row) == 5 and row[-1] for row in port_table())
    assert not any(re.search("anyone|everyone|internet", row[-1]) for row in port_table())
