"""Write kuberay-VERSION.json.gz from a clone of github.com/ray-project/kuberay: `vendor_kuberay.py CLONE`.

The file has the schemas (openAPIV3Schema of v1) of RayCluster, RayJob and RayService, without descriptions. KubeRay's
licence is Apache-2.0, like this project's.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

VERSION = "1.7.0"
COMMIT = "59d663aeec13760646da3db9c1cf8cfe883e30b7"
FILE = Path(__file__).with_name(f"kuberay-{VERSION}.json.gz")


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: without_descriptions(value)
            for key, value in schema.items()
            if not (key == "description" and isinstance(value, str))
        }
    return [without_descriptions(item) for item in schema] if isinstance(schema, list) else schema


def main(clone: str) -> None:
    schemas = {}
    for kind in ("RayCluster", "RayJob", "RayService"):
        path = f"ray-operator/config/crd/bases/ray.io_{kind.lower()}s.yaml"
        shown = subprocess.run(["git", "-C", clone, "show", f"{COMMIT}:{path}"], check=True, capture_output=True)
        crd = YAML(typ="safe").load(shown.stdout)
        [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        schemas[kind] = without_descriptions(version["schema"]["openAPIV3Schema"])
    content = json.dumps(schemas, sort_keys=True, separators=(",", ":")).encode()
    FILE.write_bytes(gzip.compress(content, mtime=0))


if __name__ == "__main__":
    main(*sys.argv[1:])
