"""Exported graphs make what the generator makes, at any batch size, for every family."""

import json
import shutil
import subprocess
import sys
from typing import get_args

import numpy as np
import onnxruntime
import pytest
import torch
from zoo import FAMILIES, game_of, spec_of

from ganlib import graph
from ganlib.config import GateConfig
from ganlib.data import table
from ganlib.export import Generator
from ganlib.graph import GraphError, export_graph
from ganlib.noise import seed_of


def generator_of(family, **data):
    spec = spec_of(family, **data)
    game = game_of(family, spec)
    game.generator.eval()
    attributes = torch.tensor([[0.0, 1.0], [0.5, 0.25]], dtype=torch.float64)[:, : len(spec.attributes)]
    return Generator(game, spec, {"kimg": 3}, torch.device("cpu"), attributes if spec.attributes else None)


def run(path, **inputs):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return dict(zip((one.name for one in session.get_outputs()), session.run(None, inputs), strict=True))


def test_nothing_of_the_tracer_is_kept(tmp_path):
    """The table's constants are kept from the first use on, which an export may be."""
    generator = generator_of("ctgan")
    samples, kind, cfg = generator.sample(5, seed=1)["sample"], generator.spec.kind, generator.spec.sample
    expected = kind.quantise(cfg, samples)
    table._recent.clear()
    export_graph(generator, tmp_path)
    torch.testing.assert_close(kind.quantise(cfg, samples), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_seed_the_graph_makes_what_sample_makes(family, tmp_path):
    """Of the seed, the rows and what a user gives, at other sizes than it was exported with."""
    generator = generator_of(family)
    made = export_graph(generator, tmp_path)
    assert made.agrees
    spec = generator.spec
    for rows in (slice(3, 4), slice(0, 7), slice(1, 65)):
        size = rows.stop - rows.start
        rng = np.random.default_rng(size)
        inputs = {"key": np.array(seed_of(9, "sample")), "rows": np.arange(rows.start, rows.stop)}
        given = {}
        for name in spec.given:  # images
            pixels = rng.integers(0, 256, (size, *spec.parts[name].stored), dtype=np.uint8)
            given[name] = spec.kind.decode(spec.sample, name, torch.from_numpy(pixels))
            inputs[name] = spec.kind.present(spec.sample, name, pixels)
        inputs |= {name: x[rows].numpy() for name, x in generator.conditions(rows.stop).items()}
        assert {*inputs} == {*made.inputs}
        expected = generator.sample(rows.stop, seed=9, rows=rows, given=given)["sample"]
        found = run(made.path, **inputs)
        np.testing.assert_allclose(found["sample"], expected, rtol=0, atol=1e-5)
        shown = spec.kind.present_tensor(spec.sample, "sample", spec.kind.quantise(spec.sample, expected)).numpy()
        assert found["presented"].shape == shown.shape
        assert found["presented"].dtype == shown.dtype
        assert np.mean((found["presented"] != shown) & ~(np.isnan(shown) & np.isnan(found["presented"]))) < 0.01


def test_the_setting_allows_the_formats_that_there_are():
    assert get_args(get_args(GateConfig.model_fields["export"].annotation)[0]) == (*graph.FORMATS,)


def test_a_difference_that_is_no_number_at_any_size_is_none_that_agrees(tmp_path, monkeypatch):
    found = iter([(0.0, 0.0), (float("nan"), 0.0), (0.0, 0.0)])
    monkeypatch.setattr(graph, "_difference", lambda *_: next(found))
    assert not export_graph(generator_of("mlp"), tmp_path).agrees


def test_attributes_go_in_in_the_units_of_the_data(tmp_path):
    generator = generator_of("mlp", classes=(), attributes=("age", "smile"))
    made = export_graph(generator, tmp_path)
    asked = torch.tensor([[0.3, 0.6]] * 4, dtype=torch.float64)
    found = run(made.path, key=np.array(seed_of(1, "sample")), rows=np.arange(4), attributes=asked.numpy())
    expected = generator.sample(4, seed=1, attributes=asked)["sample"]
    np.testing.assert_allclose(found["sample"], expected, rtol=0, atol=1e-5)


def test_latents_may_be_inputs(tmp_path):
    """So that they can be interpolated; by their names where there are several."""
    generator = generator_of("mlp")
    made = export_graph(generator, tmp_path, latent=True)
    assert (made.inputs, made.agrees) == (("latent", "condition"), True)
    z, label = torch.linspace(-1, 1, 20).view(5, 4), torch.tensor([2] * 5)
    found = run(made.path, latent=z.numpy(), condition=label.numpy())
    expected = generator.game.generator(z, label).detach()
    np.testing.assert_allclose(found["sample"], expected, rtol=0, atol=1e-5)
    several = export_graph(generator_of("f_anogan"), tmp_path, latent=True)
    assert several.inputs == ("latent",)


def test_what_is_presented_is_what_consumers_get(tmp_path):
    """Images are uint8, channels last; and the graph says what its numbers are."""
    generator = generator_of("mlp")
    path = export_graph(generator, tmp_path).path
    found = run(path, key=np.array(seed_of(0, "sample")), rows=np.arange(3), label=np.arange(3))
    assert (found["presented"].dtype, found["presented"].shape) == (np.uint8, (3, 8, 8, 1))
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["ganlib.classes"]) == ["a", "b", "c"]
    assert json.loads(metadata["ganlib.about"]) == {"kimg": 3}
    assert json.loads(metadata["ganlib.sample"])["resolution"] == [8, 8]
    assert str(tmp_path).encode() not in path.read_bytes()
    assert b"ganlib/models" not in path.read_bytes()  # no stack traces, which name files of this machine


def test_a_program_of_torch_runs_without_this_code(tmp_path):
    generator = generator_of("dcgan")
    made = export_graph(generator, tmp_path, "torch")
    assert made.agrees
    torch.save(generator.sample(5, seed=4)["sample"], tmp_path / "expected.pt")
    code = f"""
import torch
program = torch.export.load("generator.pt2").module()
inputs = {{"key": torch.tensor({seed_of(4, "sample")}), "rows": torch.arange(5), "label": torch.arange(5) % 3}}
difference = (program(inputs)["sample"] - torch.load("expected.pt")).abs().max()
assert difference < 1e-5, difference
import sys
assert "ganlib" not in sys.modules
"""
    subprocess.run([sys.executable, "-I", "-W", "ignore", "-c", code], cwd=tmp_path, check=True)


def test_a_graph_that_differs_is_known_and_replaces_none(tmp_path, monkeypatch):
    generator = generator_of("mlp")
    good = export_graph(generator, tmp_path / "good")
    shutil.copy(good.path, tmp_path / "other.onnx")
    before = good.path.read_bytes()
    with torch.no_grad():
        next(generator.game.generator.parameters()).add_(0.1)
    # a runtime that computes something else, as a wrong kernel would
    monkeypatch.setitem(graph._RUN, "onnx", lambda path: graph._run_onnx(tmp_path / "other.onnx"))
    made = export_graph(generator, tmp_path / "good")
    assert not made.agrees
    assert made.difference > 1e-3
    assert good.path.read_bytes() == before
    assert [*good.path.parent.iterdir()] == [good.path]


def test_what_cannot_be_a_graph_is_said_and_leaves_nothing(tmp_path):
    generator = generator_of("mlp")

    class Reads(torch.nn.Module):
        def forward(self, z, cond):
            return z[:, :, None, None] * (2.0 if z.sum().item() > 0 else 1.0)

    game = type(generator.game)(Reads(), generator.game.discriminator, generator.game.deal, generator.game.ask)
    with pytest.raises(GraphError, match=r"^onnx: \w+"):
        export_graph(Generator(game, generator.spec, {}, torch.device("cpu")), tmp_path)
    assert list(tmp_path.iterdir()) == []
