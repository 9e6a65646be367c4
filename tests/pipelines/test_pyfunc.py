"""The registered model's answers, for generators that are told attributes and for those that translate."""

import numpy as np
import pandas as pd
import pytest
import torch
from specs import image_spec, pair_spec

from ganlib import registry
from ganlib.export import load_generator, save_generator
from pipelines.pyfunc import GeneratorModel, logged


def model(folder, family, spec, attributes=None, **network):
    module = registry.load("models", family)
    cfg = module.Config(**network)
    save_generator(folder, module.build(cfg, spec).generator, network=cfg, spec=spec, attributes=attributes)
    made = GeneratorModel()
    made.generator = load_generator(folder)
    return made


@pytest.fixture
def told(tmp_path):
    spec = image_spec((1, 8, 8), attributes=("size", "tilt"))
    return model(tmp_path, "mlp", spec, torch.rand(5, 2), width=8, latent_dim=4)


@pytest.fixture
def translator(tmp_path):
    spec = pair_spec(3, 1, (32, 32))
    return model(tmp_path, "pix2pix", spec, width=4, max_width=8, discriminator_width=4)


def test_attributes_are_told_by_parameter_and_by_row(told, tmp_path):
    asked = told.predict(None, None, {"n": 3, "attributes": [0.2, 0.9]})
    assert asked.shape == (3, 8, 8, 1)
    assert (told.predict(None, None, {"n": 3}) != asked).any(), "those of real examples"
    rows = pd.DataFrame([{"n": 2}, {"n": 3, "attributes": [0.2, 0.9]}])
    assert (told.predict(None, rows)[2:] == asked).all()
    with pytest.raises(ValueError, match=r"attributes: 2 are wanted \(size, tilt\), found 1"):
        told.predict(None, None, {"attributes": [0.2]})
    described = logged(tmp_path)
    assert [param.name for param in described["signature"].params] == ["n", "seed", "label", "truncation", "attributes"]
    assert described["metadata"]["attributes"] == ["size", "tilt"]


def test_images_are_translated_however_few(translator, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    made = translator.predict(None, images, {"seed": 1})
    assert made.shape == (2, 32, 32, 1)
    assert made.dtype == np.uint8
    assert translator.predict(None, images[:0]).shape == (0, 32, 32, 1)
    with pytest.raises(ValueError, match=r"expected images of shape \[32, 32, 3\]"):
        translator.predict(None, images[:, :16])
    with pytest.raises(ValueError, match="makes samples of source: give it some"):
        translator.predict(None, None)
    assert [param.name for param in logged(tmp_path)["signature"].params] == ["seed"]


def test_one_call_gives_no_more_than_stated(told):
    with pytest.raises(ValueError, match=r"^n: 2097153 samples in one call, expected at most 2097152$"):
        told.predict(None, pd.DataFrame({"n": [2**21, 1]}))
    with pytest.raises(ValueError, match="expected at most"):
        told.predict(None, None, {"n": 10**9})


def test_requirements_are_of_versions_that_pypi_has(told, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu" if name == "torch" else "1.0")
    named = logged(tmp_path)["pip_requirements"]
    assert "torch==2.13.0" in named
    assert not any("+" in one for one in named)
