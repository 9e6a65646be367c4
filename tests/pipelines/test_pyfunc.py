"""The registered model's answers, for generators that are conditioned on attributes and for those that translate."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.types import ParamSpec
from specs import image_spec, pair_spec
from zoo import config, game_of, spec_of

from ganlib import registry
from ganlib.data import image
from ganlib.export import load_generator, save_generator
from pipelines.commands.samples import _class
from pipelines.pyfunc import GeneratorModel, RequestError, logged


def model(folder, family, spec, attributes=None, **network):
    module = registry.load("models", family)
    cfg = module.Config(**network)
    save_generator(folder, module.build(cfg, spec).generator, network=cfg, spec=spec, attributes=attributes)
    made = GeneratorModel()
    made.generator = load_generator(folder)
    return made


@pytest.fixture
def conditional(tmp_path):
    spec = image_spec((1, 8, 8), attributes=("size", "tilt"))
    return model(tmp_path, "mlp", spec, torch.rand(5, 2), width=8, latent_dim=4)


@pytest.fixture
def translator(tmp_path):
    spec = pair_spec(3, 1, (32, 32))
    return model(tmp_path, "pix2pix", spec, width=4, max_width=8, discriminator_width=4)


def test_given_images_are_changed_by_what_is_asked(tmp_path):
    spec, game = spec_of("stargan"), game_of("stargan")
    others, known = game.modules_besides_generator, torch.rand(5, 1)
    network = config("stargan")
    save_generator(tmp_path, game.generator, network=network, spec=spec, attributes=known, others=others)
    changing = GeneratorModel()
    changing.generator = load_generator(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 1), dtype=np.uint8)
    same, older = (changing.predict(None, images, {"attributes": [asked]}) for asked in (0.0, 9.0))
    assert same.shape == older.shape == images.shape
    assert (same != older).any()
    rows = {"given": images, "sample": images}
    asked = [changing.predict(None, rows, {"answer": "attribute_error", "attributes": [x]}) for x in (0.0, 9.0)]
    assert (asked[0] != asked[1]).all()
    assert "attributes" in [param.name for param in logged(tmp_path)["signature"].params]
    with pytest.raises(ValueError, match="attributes: expected each of age"):
        changing.predict(None, images)
    with pytest.raises(ValueError, match=r"attributes: expected 1 \(age\), found 2"):
        changing.predict(None, images, {"attributes": [1.0, 2.0]})


def test_attributes_are_given_by_parameter_and_by_row(conditional, tmp_path):
    asked = conditional.predict(None, None, {"n": 3, "attributes": [0.2, 0.9]})
    assert asked.shape == (3, 8, 8, 1)
    assert (conditional.predict(None, None, {"n": 3}) != asked).any(), "those of real examples"
    rows = pd.DataFrame([{"n": 2}, {"n": 3, "attributes": [0.2, 0.9]}])
    assert (conditional.predict(None, rows)[2:] == asked).all()
    with pytest.raises(ValueError, match=r"attributes: expected 2 \(size, tilt\), found 1"):
        conditional.predict(None, None, {"attributes": [0.2]})
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


def test_a_label_is_the_name_of_a_class_at_every_door(tmp_path):
    """Classes 1 to 10, whose indices are 0 to 9."""
    counted = model(tmp_path, "mlp", image_spec((1, 8, 8), [str(i) for i in range(1, 11)]), width=8, latent_dim=4)

    def of_class(index):
        samples = counted.generator.sample(2, label=index)["sample"]
        return np.moveaxis(image.quantise(None, samples).numpy(), 1, -1)

    for asked, index in ((1, 0), (10, 9), ("3", 2), (3.0, 2), ("3.0", 2), (np.int64(3), 2), ("#3", 3)):
        assert _class(str(asked), counted.generator.spec.classes) == index
        made = counted.predict(None, None, {"n": 2, "label": asked})
        assert (made == of_class(index)).all(), asked
        assert (counted.predict(None, pd.DataFrame({"n": [2], "label": [asked]})) == made).all(), asked
    assert (counted.predict(None, pd.DataFrame([{"n": 2}, {"n": 2, "label": 4}]))[2:] == of_class(3)).all()
    assert (of_class(None)[1] == of_class(1)[1]).all(), "in turn"
    for in_turn in (-1, "", None):
        assert (counted.predict(None, None, {"n": 2, "label": in_turn}) == of_class(None)).all()
    for wrong in (0, 11, "one", 1.5, "#10"):
        with pytest.raises(ValueError, match=r"^label: .* is not a class; known: 1, 2, .*10; or an index, #0 to #9$"):
            counted.predict(None, None, {"label": wrong})
        with pytest.raises(ValueError, match=r"^--label: "):
            _class(str(wrong), counted.generator.spec.classes)


@pytest.mark.parametrize(
    ("classes", "kind", "asked"),
    [
        (("0", "7"), "long", 7),
        (("cat", "dog"), "string", "dog"),
        (("-1", "1"), "string", "-1"),
        (("01", "1"), "string", "01"),
        (("0.5", "1"), "string", "0.5"),
    ],
)
def test_the_parameter_label_is_of_the_type_of_the_names(tmp_path, classes, kind, asked):
    labelled = model(tmp_path, "mlp", image_spec((1, 8, 8), classes), width=8, latent_dim=4)
    schema = logged(tmp_path)["signature"].params
    (param,) = [param for param in schema.params if param.name == "label"]
    assert param.dtype.name == kind
    made = labelled.predict(None, None, {"label": ParamSpec.validate_param_spec(asked, param)})
    expected = labelled.generator.sample(1, label=classes.index(str(asked)))["sample"]
    assert (made[..., 0] == image.quantise(None, expected).numpy()[:, 0]).all()
    assert labelled._label(param.default) is None


def test_one_call_gives_no_more_than_stated(conditional):
    with pytest.raises(ValueError, match=r"^n: 2097153 samples in one call, expected at most 2097152$"):
        conditional.predict(None, pd.DataFrame({"n": [2**21, 1]}))
    with pytest.raises(ValueError, match="expected at most"):
        conditional.predict(None, None, {"n": 10**9})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "^n: expected a whole number from 1 to 9223372036854775807, found 0$"),
        ({"n": -5}, "^n: .* found -5$"),
        ({"n": 2.5}, "^n: .* found 2.5$"),
        ({"seed": -1}, "^seed: expected a whole number from 0 to 9223372036854775807, found -1$"),
        ({"seed": 2**64}, "^seed: .* found 18446744073709551616$"),
        ({"truncation": float("nan")}, "^truncation: expected a number above 0, found nan$"),
        ({"truncation": "half"}, "^truncation: expected a number, found 'half'$"),
        ({"attributes": 0.5}, "^attributes: expected a list of numbers, found 0.5$"),
        ({"attributes": "0.5"}, "^attributes: expected a list of numbers, found '0.5'$"),
        ({"attributes": ["a", "b"]}, r"^attributes: expected a list of numbers, found \['a', 'b'\]$"),
        ({"where": 5}, "^where: expected strings, found 5$"),
    ],
)
def test_what_is_out_of_range_is_refused_in_a_line(conditional, asked, message):
    with pytest.raises(RequestError, match=message) as caught:
        conditional.predict(None, None, asked)
    assert isinstance(caught.value, ValueError)
    # what `mlflow models serve` answers with
    assert (caught.value.get_http_status_code(), caught.value.message) == (400, str(caught.value))


def test_a_mapping_of_values_is_one_row(conditional):
    expected = conditional.predict(None, pd.DataFrame({"n": [2], "seed": [3]}))
    for asked in ({"n": 2, "seed": 3}, {"n": 2, "seed": 3, "truncation": None}, {"n": [2], "seed": [3]}):
        assert (conditional.predict(None, asked) == expected).all()
    numbers = {"n": 2, "seed": 3, "attributes": [0.2, 0.9]}
    assert (conditional.predict(None, numbers) == conditional.predict(None, [numbers])).all()
    with pytest.raises(RequestError, match=r"^unknown column m; known: n, seed"):
        conditional.predict(None, {"m": 2})


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 64)])
def test_examples_are_no_requests(conditional, shape):
    found = re.escape(str([*shape]))
    with pytest.raises(RequestError, match=rf"^this generator makes samples of noise: .* of n, seed.* {found}$"):
        conditional.predict(None, np.zeros(shape, np.uint8))


def test_numbers_may_be_given_as_text(conditional):
    asked = conditional.predict(None, pd.DataFrame([{"truncation": "0.5", "attributes": ["0.2", "0.9"]}]))
    assert (asked == conditional.predict(None, None, {"truncation": 0.5, "attributes": [0.2, 0.9]})).all()


def test_requirements_are_of_versions_that_pypi_has(conditional, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.13.0+cpu" if name == "torch" else "1.0")
    named = logged(tmp_path)["pip_requirements"]
    assert "torch==2.13.0" in named
    assert not any("+" in one for one in named)
