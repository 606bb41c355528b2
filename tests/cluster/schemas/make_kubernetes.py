"""Cuts what a pod template needs out of Kubernetes' own JSON schema, for ``kubernetes.json``.

    pip download --no-deps kubernetes-validate==1.37.0
    python tests/cluster/schemas/make_kubernetes.py kubernetes_validate-1.37.0-py3-none-any.whl

The package (Apache-2.0) repeats the OpenAPI description that Kubernetes publishes (Apache-2.0).  Kept are the
definitions that are reached from the roots below, without their descriptions; unknown fields are refused in all.
"""

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

RELEASE = "v1.34.0"
ROOTS = [
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.PodTemplateSpec",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.networking.v1.NetworkPolicy",
]
REFERENCE = re.compile(r'"\$ref": "[^"]*?#/(?:\$defs|definitions)/([^"]+)"')


def bare(node: Any) -> Any:
    """A schema without its descriptions and Kubernetes' own remarks."""
    if isinstance(node, dict):
        return {
            key: {name: bare(field) for name, field in value.items()} if key == "properties" else bare(value)
            for key, value in node.items()
            if key != "description" and not key.startswith("x-kubernetes-")
        }
    return [bare(item) for item in node] if isinstance(node, list) else node


def reached(definitions: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    open_ = list(ROOTS)
    while open_:
        name = open_.pop()
        if name not in found:
            text = json.dumps(bare(definitions[name]))
            open_ += REFERENCE.findall(text)
            found[name] = json.loads(REFERENCE.sub(r'"$ref": "#/$defs/\1"', text))
    return dict(sorted(found.items()))


def main(wheel: str) -> None:
    path = f"kubernetes_validate/kubernetes-json-schema/{RELEASE}-local-strict/_definitions.json"
    with zipfile.ZipFile(wheel) as archive:
        content = json.loads(archive.read(path))
    definitions = reached(content.get("$defs") or content["definitions"])
    output = Path(__file__).with_name("kubernetes.json")
    remark = f"Kubernetes {RELEASE}, Apache-2.0, cut by make_kubernetes.py"
    schema = {"$comment": remark, "$defs": definitions}
    output.write_text(json.dumps(schema, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
