"""params.yaml has the form that DVC writes, so that `-S` changes the lines of what it names and no other."""

from __future__ import annotations

import json
import subprocess
import sys
from difflib import ndiff
from pathlib import Path

ROOT = Path(__file__).parents[2]

# DVC's overrides are Hydra's, read in a process of their own: Hydra keeps global state
APPLY = """
import json, sys
from pathlib import Path
from dvc.utils.hydra import apply_overrides
shipped = Path(sys.argv[1]).read_text(encoding="utf-8")
written = {}
for override in sys.argv[2:]:
    Path("params.yaml").write_text(shipped, encoding="utf-8")
    apply_overrides("params.yaml", [override])
    written[override] = Path("params.yaml").read_text(encoding="utf-8")
print(json.dumps(written))
"""
CHANGES = [
    "seed=1",
    "data=digits",
    "model=mlp",
    "preset=wgan_gp",
    "datasets.photos.sample.resolution=[32,32]",
    "models.dcgan.loss=hinge",
    "models.mlp.generator.lr=0.1",
    "presets.r3gan_imagenet64.batch=8",
    "reference.max_samples=100",
    "tune.num_samples=0",
    "train.kimg=400",
    "gate.margin=0.1",
    "tracking.registered_model=mine",
    "scale.num_workers=1",
    "scale.storage=/shared",
]


def test_one_flag_changes_one_line_and_no_comment(tmp_path):
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8")
    command = [sys.executable, "-c", APPLY, str(ROOT / "params.yaml"), "seed=0", *CHANGES]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    written = json.loads(done.stdout)
    assert written.pop("seed=0") == shipped  # what it is already
    for override, text in written.items():
        lines = [line for line in ndiff(shipped.splitlines(), text.splitlines()) if line[0] in "+-"]
        assert len(lines) == 2, f"{override} changed {lines}"
        key, _, value = override.partition("=")
        before, after = lines
        assert key.split(".")[-2 if "resolution" in key else -1] in after
        assert value.replace(",", ", ") in after
        assert before.partition("#")[2] == after.partition("#")[2]
