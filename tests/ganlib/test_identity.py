"""Eight image trainings end with the same bits as when `identity.json` was written.

A refactor of anything from `prepare` to the registered model has to leave every hash as it is. What is learned rounds
differently on other machines: there these hashes are skipped, while those of content (stored bytes, names, signatures)
are compared everywhere. Write the file anew after a change that means to change numbers; to compare two commits on
another machine, write it there on the first of them:

    PYTHONPATH=. python tests/ganlib/test_identity.py
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

FILE = Path(__file__).with_name("identity.json")

LEARNER = {"lr": 1e-3, "betas": [0.5, 0.9]}
DIGITS = {"source": {"name": "digits"}, "sample": {"kind": "image", "resolution": [8, 8], "channels": 1}}
THREE_PENALTIES = {"r1": {"weight": 1.0, "every": 2}, "gradient_penalty": {"weight": 1.0}, "lecam": {"weight": 0.1}}


def pairs(side: int, channels: list[int]) -> dict[str, object]:
    sample = {"kind": "pair", "resolution": [side, side], "channels": channels}
    return {"source": {"name": "paired_folder"}, "sample": sample, "test_share": 0.4}


PIX2PIX = {"width": 4, "max_width": 8, "discriminator_width": 4, "patch_levels": 1}
CONFIGURATIONS = {
    "mlp_ada_mirror": (
        DIGITS,
        "mlp",
        {"width": 16},
        {"augment": {"kind": "ada", "target": None, "probability": 0.6}, "mirror": True},
    ),
    "dcgan": (DIGITS, "dcgan", {"width": 8}, {"penalties": {"r1": {"weight": 0.1, "every": 2}}}),
    "resnet": (DIGITS, "resnet", {"width": 8}, {"loss": "hinge"}),
    "stylegan2": (DIGITS, "stylegan2", {"width": 8, "max_width": 16, "latent_dim": 16, "path_length_weight": 2}, {}),
    "r3gan": (DIGITS, "r3gan", {}, {"loss": "relativistic", "penalties": {"r1": {"weight": 0.1}, "r2": {"weight": 1}}}),
    "mlp_three_penalties": (DIGITS, "mlp", {"width": 16}, {"penalties": THREE_PENALTIES}),
    "pix2pix_16": (pairs(16, [3, 1]), "pix2pix", PIX2PIX, {"mirror": True}),
    "pix2pix_96_png": (pairs(96, [3, 3]), "pix2pix", PIX2PIX, {}),
}


def digest(content: bytes | str) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]


def of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    return digest(b"".join(name.encode() + x.contiguous().numpy().tobytes() for name, x in sorted(tensors.items())))


def machine() -> str:
    """A hash of this torch and of how this machine rounds."""
    x = torch.arange(96 * 96, dtype=torch.float32).view(1, 4, 48, 48).sin()
    weights = torch.arange(8 * 4 * 9, dtype=torch.float32).view(8, 4, 3, 3).cos()
    found = [torch.nn.functional.conv2d(x, weights, padding=1), x[0, 0] @ x[0, 1], x.exp(), x.view(96, 96).svd().S]
    return digest(torch.__version__.encode() + b"".join(part.numpy().tobytes() for part in found))


def parameters(dataset: dict[str, object], model: str, network: dict[str, object], play: dict[str, object]):
    from ganlib.config import parse_params

    section = {"network": network, "batch": 8, "generator": LEARNER, "discriminator": LEARNER, **play}
    return parse_params(
        {
            "data": "small",
            "model": model,
            "datasets": {"small": dataset},
            "models": {model: section},
            "reference": {"max_samples": 40, "classifier": {"width": 4, "epochs": 1}},
            "tune": {"num_samples": 0, "kimg": 1, "report_kimg": 1, "grace_kimg": 1},
            "train": {
                "kimg": 0.048,
                "report_kimg": 0.024,
                "checkpoint_kimg": 0.024,
                "quality_samples": 16,
                "amp": False,
            },
            "evaluate": {"num_samples": 20, "resamples": 2},
            "gate": {"metric": "efficientnet_lite0.kid"},
        }
    )


def save_pairs(folder: Path, side: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(40):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 16, 3), dtype=np.uint8))
        coarse.resize((2 * side, side), Image.Resampling.NEAREST).save(folder / f"{i}.png")


def hashes(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """`(of content, of what is learned)` after one small run of a configuration in the working directory."""
    from ganlib import shards
    from ganlib.trainer import train
    from pipelines import evaluate, reference
    from pipelines._stage import EVALUATED, PREPARED, REFERENCE, TRAINED
    from pipelines.prepare import prepare
    from pipelines.pyfunc import GeneratorModel, logged

    params = parameters(*CONFIGURATIONS[name])
    raw = Path("data/raw/small")
    side, *_ = params.dataset.sample.resolution
    if params.model == "pix2pix":
        save_pairs(raw, side)
    rows: list[dict[str, float]] = []

    def report(row: dict[str, float], folder: Path | None) -> None:
        rows.append(row)
        if folder is not None:
            shutil.copytree(folder, TRAINED, dirs_exist_ok=True)

    with contextlib.redirect_stdout(io.StringIO()):
        prepare(params.dataset, raw, PREPARED)
        reference.stage(params)
        train(params, report, prepared=PREPARED, reference=REFERENCE)
        evaluate.stage(params)

    spec, card = shards.read_spec(PREPARED), json.loads((PREPARED / "card.json").read_text())
    described, model = logged(TRAINED / "generator"), GeneratorModel()
    model.load_context(type("Context", (), {"artifacts": {"generator": TRAINED / "generator"}}))
    if params.model == "pix2pix":
        asked = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    else:
        asked = pd.DataFrame({"n": [2, 3], "seed": [1, 2], "label": [3, 4]})
    content = {
        "content": spec.content_hash[:16],
        "names": digest(json.dumps([spec.modality, spec.classes, spec.attributes, spec.counts], sort_keys=True)),
        "levels": digest(json.dumps(card["levels"])),
        "card": digest(Image.open(PREPARED / "card.png").tobytes()),
        "signature": digest(json.dumps(described["signature"].to_dict())),
    }
    learned = {"weights": of_tensors(load_file(TRAINED / "generator" / "generator.safetensors"))}
    for file in sorted((REFERENCE / "features").iterdir()):
        learned[f"features/{file.stem}"] = of_tensors(load_file(file))
    for statistic in dict.fromkeys(key for row in rows for key in row):
        if "seconds" not in statistic and "per_second" not in statistic:
            learned[f"statistics/{statistic}"] = digest(repr([row.get(statistic) for row in rows]))
    for section, named in json.loads((EVALUATED / "metrics.json").read_text()).items():
        for metric, figures in named.items():
            learned[f"metrics/{section}.{metric}"] = digest(json.dumps(figures))
    for picture in (TRAINED / "samples.png", EVALUATED / "samples.png", EVALUATED / "neighbours.png"):
        learned[f"pictures/{picture.parent.name}/{picture.name}"] = digest(Image.open(picture).tobytes())
    learned["pyfunc"] = digest(model.predict(None, asked, {"seed": 1}).tobytes())
    return content, learned


def in_a_folder(name: str) -> tuple[dict[str, str], dict[str, str]]:
    torch.set_num_threads(1)
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return hashes(name)
        finally:
            os.chdir(before)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_same_bits_as_before(name):
    recorded, threads = json.loads(FILE.read_text()), torch.get_num_threads()
    try:
        content, learned = in_a_folder(name)
    finally:
        torch.set_num_threads(threads)
    expected = recorded["configurations"][name]
    assert content == expected["content"]
    if machine() != recorded["machine"]:
        pytest.skip("this machine or torch rounds differently: write identity.json anew on the commit before")
    # a new metric or statistic may come, none may go or change
    assert {key: learned.get(key) for key in expected["learned"]} == expected["learned"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for configuration in sys.argv[1:] or CONFIGURATIONS:
        content, learned = in_a_folder(configuration)
        found[configuration] = {"content": content, "learned": learned}
        print(configuration, digest(json.dumps(found[configuration])), flush=True)
    if not sys.argv[1:]:
        FILE.write_text(json.dumps({"machine": machine(), "configurations": found}, indent=1) + "\n")
