"""One config out of defaults, YAML files and ``key=value`` overrides, checked as a whole.

Later layers win.  A layer that changes a section's ``kind`` replaces that section: the fields of another
variant mean nothing to the new one.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from bts_dist.config import Config
from shards.config import StoreConfig
from shards.errors import InputError
from shards.store import LocalStore, MissingObject, StoreError, open_store

Tree = dict[str, Any]

_IMPATIENT = StoreConfig(deadline_s=60, timeout_s=10)
"""For a config on a store: it is small, somebody waits for it, and what it says of patience is not known yet."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with one mend: 3e-4 is a number, which the standard reads as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(
    paths: Sequence[Path | str] = (), sets: Sequence[str] = (), base: Config | None = None
) -> Config:
    """Lay YAML files, left to right, and then ``section.field=value`` strings over ``base`` or the defaults.

    A file is a path or a location that the stores know, such as the ``s3://…/tune/best.yaml`` of a search.

    Raises:
        InputError: a file or key does not exist, its store does not answer, a value has the wrong type, or a
            combination is refused.
    """
    tree: Tree = (base or Config()).model_dump(mode="json")
    for path in paths:
        tree = _merge(tree, _read_yaml(str(path)))
    for text in sets:
        key, found, value = text.partition("=")
        if not found or not key:
            raise InputError(f"--set {text}: expected section.field=value, for example --set optim.lr=3e-4")
        tree = _merge(tree, _nest(key.strip(), _parse(value)))
    return _validate(tree)


def with_overrides(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of ``config`` with dotted keys replaced, validated again as a whole.

    Raises:
        InputError: as ``load_config``.
    """
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        tree = _merge(tree, _nest(key, value))
    return _validate(tree)


def config_hash(config: BaseModel | Mapping[str, Any], length: int = 8) -> str:
    """Hex digest of a config's canonical JSON: equal exactly when every value is equal."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else config
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def dump_yaml(config: Config) -> str:
    """The whole config as YAML that ``--config`` takes back."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def _read_yaml(place: str) -> Tree:
    data = _fetch(place) if ":/" in place else _read(Path(place))
    try:
        tree = yaml.load(data.decode(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{place} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(
            f"{place}: expected sections such as `optim:` at the top, found {type(tree).__name__}"
        )
    return tree


def _read(path: Path) -> bytes:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"--config {path}: no such file{hint}")
    return path.read_bytes()


def _fetch(uri: str) -> bytes:
    """A file by its URI."""
    file = open_store(uri)
    if isinstance(file, LocalStore):
        return _read(file.root)
    folder, _, name = uri.rpartition("/")
    if not name or folder.endswith("/"):
        raise InputError(f"--config {uri}: names no file; write s3://bucket/folder/name.yaml")
    try:
        return open_store(folder, _IMPATIENT).get(name)
    except MissingObject as error:
        raise InputError(f"--config {error}; check its name, and whether what writes it has ended") from error
    except StoreError as error:
        raise InputError(f"--config {error}") from error


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise InputError(f"--set: {text!r} is not a YAML value: {error}") from error


def _nest(key: str, value: Any) -> Tree:
    for part in reversed(key.split(".")):
        value = {part: value}
    tree: Tree = value
    return tree


def _merge(base: Tree, layer: Tree) -> Tree:
    """Lay the fields of ``layer``'s sections over ``base``'s.  A field is replaced whole, also one that is a dict."""
    merged = dict(base)
    for name, section in layer.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(section, dict) and not _changes_kind(old, section):
            merged[name] = {**old, **section}
        else:
            merged[name] = section
    return merged


def _changes_kind(old: Tree, new: Tree) -> bool:
    return "kind" in old and "kind" in new and old["kind"] != new["kind"]


def _validate(tree: Tree) -> Config:
    # JSON mode: "5" is not a number, and 3 is not a path.  What only YAML knows, such as a date, becomes a string.
    try:
        return Config.model_validate_json(json.dumps(tree, default=str), strict=True)
    except ValidationError as error:
        raise InputError("\n".join(_explain(e) for e in error.errors())) from error


def _explain(error: Any) -> str:
    """One line for one of pydantic's errors: the key, what was found, what is allowed."""
    loc = [str(part) for part in error["loc"]]
    key = ".".join(part for part in loc if part not in _VARIANTS)
    found = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            valid = _fields(loc[:-1])
            near = difflib.get_close_matches(loc[-1], valid, n=1, cutoff=0.5)
            hint = f"did you mean {'.'.join([*key.split('.')[:-1], near[0]])}?" if near else ""
            return f"{key}: unknown key; {hint or 'valid here: ' + ', '.join(valid)}"
        case "value_error":
            return str(error["ctx"]["error"])
        case "union_tag_invalid":
            return f"{key}.kind: {error['ctx']['tag']!r} is not one of {error['ctx']['expected_tags']}"
        case "union_tag_not_found":
            return f"{key}.kind is missing: say which variant the section's fields belong to"
    message = error["msg"].removeprefix("Input should be ")
    return f"{key}: {found!r} should be {message}"


def _fields(loc: list[str]) -> list[str]:
    """The valid field names of the section at ``loc`` (variant tags included, as pydantic reports them)."""
    kinds: list[Any] = [Config]
    for part in loc:
        step: list[Any] = []
        for kind in kinds:
            if part in kind.model_fields:
                step += _models(kind.model_fields[part].annotation)
            elif kind.model_fields.get("kind") and kind.model_fields["kind"].default == part:
                step.append(kind)
        kinds = step
    return sorted({name for kind in kinds for name in kind.model_fields})


def _models(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for arg in get_args(annotation) for model in _models(arg)]


def _variant_tags() -> frozenset[str]:
    tags: set[str] = set()
    for field in Config.model_fields.values():
        models = _models(field.annotation)
        if len(models) > 1:
            tags |= {model.model_fields["kind"].default for model in models}
    return frozenset(tags)


_VARIANTS = _variant_tags()
