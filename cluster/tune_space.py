"""The space of a search: distributions over config keys, checked against the config before anything starts.

A choice may be between mappings, whose fields are values or distributions of their own: the settings of a schedule
are drawn only for the schedule that was drawn.  What is drawn is flat: dotted config keys to plain values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

from bts_dist.compose import with_overrides
from bts_dist.config import Config
from shards.errors import InputError

KINDS = ("choice", "uniform", "loguniform", "randint", "quniform")
FIXED = ("train.epochs", "tune", "run", "cluster")
"""Keys and sections that a search sets for its trials itself, or that do not belong to a trial."""
MOST_STEPS = 10_000

Values = dict[str, Any]
"""Dotted config keys to plain values."""
Params = dict[str, int | float]
"""What was drawn, by a name for each place in the space: a number, or the position in a list."""


class Draw(Protocol):
    """Where a search's numbers come from.  ``name`` tells the places of the space apart."""

    def real(self, name: str, low: float, high: float, *, log: bool) -> float:
        """A number from ``low`` to ``high``; by its logarithm when ``log``."""

    def position(self, name: str, count: int, *, ordered: bool) -> int:
        """A position in a list of ``count`` values; whether near ones are alike says ``ordered``."""


@dataclass(frozen=True)
class Fixed:
    value: Any


@dataclass(frozen=True)
class Real:
    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Steps:
    """Numbers at equal distances."""

    values: Sequence[int | float]


@dataclass(frozen=True)
class Branch:
    """Fields of a section that belong together, ``kind`` first."""

    label: str
    fields: "Mapping[str, Node]"


@dataclass(frozen=True)
class Choice:
    options: "Sequence[Node]"


Place = Real | Steps | Choice
Node = Fixed | Branch | Place


@dataclass(frozen=True)
class Space:
    """The distributions by config key."""

    nodes: Mapping[str, Node]

    def draw(self, draw: Draw) -> Values:
        """One point."""
        return {k: v for key, node in self.nodes.items() for k, v in _draw(node, key, key, draw).items()}

    def grid(self) -> Iterator[Values]:
        """Every point, the last key varying fastest.

        Raises:
            InputError: a range is continuous.
        """
        lists = [_grid(node, key, key) for key, node in self.nodes.items()]
        for parts in product(*lists):
            yield {k: v for part in parts for k, v in part.items()}

    def grid_size(self) -> int:
        """How many points the grid has."""
        return math.prod(len(_grid(node, key, key)) for key, node in self.nodes.items())

    def places(self) -> "dict[str, Place]":
        """Where something is drawn, by name."""
        return {k: v for key, node in self.nodes.items() for k, v in _places(node, key).items()}

    def locate(self, values: Mapping[str, Any]) -> Params:
        """The places of a point; those that the space cannot give, such as a value out of range, are left out."""
        return {k: v for key, node in self.nodes.items() for k, v in _locate(node, key, key, values).items()}


def parse_space(config: Config) -> Space:
    """``tune.space``, with every bound and choice checked in its place in ``config``.

    Raises:
        InputError: a key does not exist, a distribution is unknown or malformed, or a value does not fit its key.
    """
    nodes = {}
    for key, entry in config.tune.space.items():
        node = _parse(f"tune.space: {key}", entry)
        for point in _examples(node, key):
            check_free("tune.space", point)
            check_values(config, "tune.space", point)
        nodes[key] = node
    if not nodes:
        raise InputError(
            "tune.space is empty; name a config key and its values, such as optim.lr: {choice: […]}"
        )
    return Space(nodes)


def check_free(where: str, values: Mapping[str, Any]) -> None:
    """Refuse keys that no trial may set.

    Raises:
        InputError: it names the key.
    """
    for key in values:
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise InputError(f"{where}: {key} cannot be searched; every trial has the search's own")


def check_values(config: Config, where: str, values: Mapping[str, Any]) -> Config:
    """The config with ``values`` laid over it.

    Raises:
        InputError: they do not fit, with ``where`` they were found.
    """
    try:
        return with_overrides(config, values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def flat(key: str, value: Any) -> Values:
    """A section's fields by dotted key, ``kind`` first since it decides which others there are; or one value."""
    if not isinstance(value, Mapping):
        return {key: value}
    ordered = sorted(value.items(), key=lambda item: item[0] != "kind")
    return {k: v for name, inner in ordered for k, v in flat(f"{key}.{name}", inner).items()}


def own_values(config: Config, space: Space) -> Values:
    """What the config itself says where the space says something else."""
    tree = config.model_dump(mode="json")
    point: Values = {}
    for key in space.nodes:
        value: Any = tree
        for part in key.split("."):
            value = value[part]
        point |= flat(key, value)
    return point


def _parse(where: str, entry: Any) -> Node:
    """One entry of the space: a distribution, a section's fields, or, inside a choice, a plain value."""
    if not isinstance(entry, Mapping) or len(entry) != 1 or next(iter(entry)) not in KINDS:
        found = sorted(entry) if isinstance(entry, Mapping) else entry
        raise InputError(f"{where} must have one of {', '.join(KINDS)}; found {found!r}")
    (kind, values), *_ = entry.items()
    where = f"{where}.{kind}"
    if not isinstance(values, list) or not values:
        raise InputError(f"{where} must be a list of values; found {values!r}")
    if kind == "choice":
        return Choice([_parse_option(where, value, index) for index, value in enumerate(values)])
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError(f"{where} must be a list of numbers; found {values}")
    form = "[low, high, step]" if kind == "quniform" else "[low, high]"
    if len(values) != (3 if kind == "quniform" else 2) or not values[0] < values[1]:
        raise InputError(f"{where} must be {form} with low < high; found {values}")
    match kind:
        case "quniform":
            return Steps(_steps(where, *values))
        case "randint":
            if not all(isinstance(v, int) for v in values):
                raise InputError(f"{where} must be whole numbers; found {values}")
            return Steps(range(values[0], values[1] + 1))
        case "loguniform" if values[0] <= 0:
            raise InputError(f"{where} needs low > 0; found {values[0]}")
    return Real(float(values[0]), float(values[1]), log=kind == "loguniform")


def _parse_option(where: str, value: Any, index: int) -> Node:
    if not isinstance(value, Mapping):
        return Fixed(value)
    fields: dict[str, Node] = {}
    for name, inner in sorted(value.items(), key=lambda item: item[0] != "kind"):
        drawn = isinstance(inner, Mapping)
        fields[name] = _parse(f"{where}[{index}].{name}", inner) if drawn else Fixed(inner)
    return Branch(f"{index}:{value['kind']}" if "kind" in value else str(index), fields)


def _steps(where: str, low: float, high: float, step: float) -> tuple[int | float, ...]:
    """``low``, ``low + step``, … up to ``high``; whole numbers when all three are."""
    if step <= 0 or (high - low) / step >= MOST_STEPS:
        raise InputError(f"{where} needs a step > 0 and fewer than {MOST_STEPS} values; found {step}")
    count = int((high - low) / step + 1e-9) + 1
    # Rounded, so that three steps of 0.1 are 0.3.
    return tuple(round(low + index * step, 12) for index in range(count))


def _examples(node: Node, key: str) -> Iterator[Values]:
    """Points that show whether every value can stand at its key: the ends of ranges, each choice."""
    match node:
        case Fixed(value):
            yield flat(key, value)
        case Real(low, high):
            # One in between is no whole number, which tells a key that takes nothing else.
            yield from ({key: value} for value in (low, high, low + (high - low) * 0.4142))
        case Steps(values):
            shown = values if len(values) <= 64 else (values[0], values[1], values[-1])
            yield from ({key: value} for value in shown)
        case Choice(options):
            for option in options:
                yield from _examples(option, key)
        case Branch(_, fields):
            lists = {name: list(_examples(inner, f"{key}.{name}")) for name, inner in fields.items()}
            first = {k: v for points in lists.values() for k, v in points[0].items()}
            yield first
            for points in lists.values():
                yield from ({**first, **point} for point in points[1:])


def _draw(node: Node, key: str, name: str, draw: Draw) -> Values:
    match node:
        case Fixed(value):
            return flat(key, value)
        case Real(low, high, log):
            return {key: draw.real(name, low, high, log=log)}
        case Steps(values):
            return {key: values[draw.position(name, len(values), ordered=True)]}
        case Choice(options):
            return _draw(options[draw.position(name, len(options), ordered=False)], key, name, draw)
        case Branch(label, fields):
            drawn: Values = {}
            for field, inner in fields.items():
                drawn |= _draw(inner, f"{key}.{field}", f"{name}[{label}].{field}", draw)
            return drawn


def _grid(node: Node, key: str, name: str) -> list[Values]:
    match node:
        case Fixed(value):
            return [flat(key, value)]
        case Real():
            raise InputError(
                f"tune.space: {name} is a continuous range, which has no grid; give its values as choice or "
                "quniform, or set tune.search=random"
            )
        case Steps(values):
            return [{key: value} for value in values]
        case Choice(options):
            return [point for option in options for point in _grid(option, key, name)]
        case Branch(_, fields):
            lists = [_grid(inner, f"{key}.{field}", f"{name}.{field}") for field, inner in fields.items()]
            return [{k: v for part in parts for k, v in part.items()} for parts in product(*lists)]


def _places(node: Node, name: str) -> dict[str, Place]:
    match node:
        case Real() | Steps():
            return {name: node}
        case Choice(options):
            return {name: node} | {k: v for option in options for k, v in _places(option, name).items()}
        case Branch(label, fields):
            inner = (_places(node, f"{name}[{label}].{field}") for field, node in fields.items())
            return {k: v for places in inner for k, v in places.items()}
        case Fixed():
            return {}


def _locate(node: Node, key: str, name: str, values: Mapping[str, Any]) -> Params:
    match node:
        case Real(low, high):
            value = values.get(key)
            if isinstance(value, int | float) and low <= value <= high:
                return {name: float(value)}
            return {}
        case Steps(steps):
            return {name: steps.index(values[key])} if values.get(key) in steps else {}
        case Choice(options):
            fitting = (i for i, option in enumerate(options) if _fits(option, key, values))
            index = next(fitting, None)
            return {} if index is None else {name: index, **_locate(options[index], key, name, values)}
        case Branch(label, fields):
            found: Params = {}
            for field, inner in fields.items():
                found |= _locate(inner, f"{key}.{field}", f"{name}[{label}].{field}", values)
            return found
        case Fixed():
            return {}


def _fits(node: Node, key: str, values: Mapping[str, Any]) -> bool:
    """Whether the fixed parts of ``node`` are as ``values`` say."""
    match node:
        case Fixed(value):
            return all(k in values and values[k] == v for k, v in flat(key, value).items())
        case Branch(_, fields):
            return all(_fits(inner, f"{key}.{field}", values) for field, inner in fields.items())
    return True
