import dataclasses
import json
import re
import resource

import numpy as np
import pytest
import torch
from zoo import CONDITIONED, FAMILIES, config, game_of, spec_of

from ganlib.export import Generator, _along, load_generator, save_generator
from ganlib.game import tensors_of
from ganlib.noise import Noise


def save(family, folder, **data):
    spec = spec_of(family, **data)
    game = game_of(family, spec)
    for layer in game.generator.modules():
        if hasattr(layer, "running_mean") and layer.running_mean is not None:
            layer.running_mean.normal_()
    attributes = torch.tensor([[0.0, 1.0], [0.5, 0.5]])[:, : len(spec.attributes)] if spec.attributes else None
    about = {"kimg": 3}
    save_generator(folder, game.generator, network=config(family), spec=spec, attributes=attributes, about=about)
    return folder, game, spec


@pytest.fixture(params=CONDITIONED)
def saved(request, tmp_path):
    return save(request.param, tmp_path)


def test_what_was_saved_is_loaded(saved):
    folder, game, spec = saved
    assert sorted(p.name for p in folder.iterdir()) == ["generator.json", "generator.safetensors"]
    generator = load_generator(folder)
    assert (generator.spec, generator.about, generator.conditional) == (spec, {"kimg": 3}, True)
    for (name, mine), theirs in zip(
        generator.game.generator.state_dict().items(), game.generator.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


def test_without_the_modules_of_its_answers_it_has_none(tmp_path):
    """They would be answers of networks that have learned nothing."""
    folder, game, spec = save("f_anogan", tmp_path)
    generator = load_generator(folder)
    assert generator.answer_shapes() == {}
    with pytest.raises(ValueError, match="this model has no answers"):
        generator.answer({"sample": generator.sample(1)["sample"]})
    others = game.modules_besides_generator
    save_generator(folder, game.generator, network=config("f_anogan"), spec=spec, others=others)
    assert "score" in load_generator(folder).answer_shapes()


def test_samples_are_a_function_of_the_seed(saved):
    generator = load_generator(saved[0])
    one, two = generator.sample(7, seed=1), generator.sample(7, seed=1)
    assert torch.equal(one["sample"], two["sample"])
    assert one["label"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    torch.testing.assert_close(generator.sample(7, seed=1, batch=3)["sample"], one["sample"])
    assert not torch.equal(generator.sample(7, seed=2)["sample"], one["sample"])
    assert generator.sample(3, label=2)["label"].tolist() == [2, 2, 2]
    assert generator.sample(3, truncation=0.3)["sample"].shape == (3, *saved[2].shape)


@pytest.fixture(params=FAMILIES)
def of_any(request, tmp_path):
    """A generator of each family, and what makes `rows` of `n` samples of it."""
    folder, _, spec = save(request.param, tmp_path)
    generator = load_generator(folder)
    rng = torch.Generator().manual_seed(0)
    given = {name: torch.rand(600, *spec.parts[name].shape, generator=rng) * 2 - 1 for name in spec.given}

    def sample(n, rows=slice(None), **how):
        here = {name: x[:n][rows] for name, x in given.items()}
        return generator.sample(n, given=here, seed=1, rows=rows, **how)["sample"]

    return generator, sample, given


def test_a_sample_has_the_same_bits_however_many_are_made(of_any):
    generator, sample, _ = of_any
    size = generator.batch_size
    whole = sample(2 * size + 3)
    assert torch.equal(sample(1), whole[:1])
    assert torch.equal(sample(size + 1), whole[: size + 1])
    for rows in (slice(1, 2), slice(size - 2, size + 1), slice(size, None)):
        assert torch.equal(sample(2 * size + 3, rows), whole[rows])
    torch.testing.assert_close(sample(7, batch=3), whole[:7])
    if not generator.translates:
        assert torch.equal(torch.cat(list(generator.stream(size + 5, seed=1, batch=2))), whole[: size + 5])


def test_rows_of_several_seeds_are_made_at_once(of_any):
    generator, sample, given = of_any
    indices = [5, 0, 300, 5]
    made = generator.sample_rows([1, 1, 1, 2], indices, given={name: x[indices] for name, x in given.items()})
    torch.testing.assert_close(made[:3], sample(301)[[5, 0, 300]])
    if not generator.translates:  # some of these make one thing of what they are given
        assert not torch.equal(made[3], made[0])
    nothing = generator.sample_rows([], [], given={name: x[:0] for name, x in given.items()})
    assert nothing.shape == (0, *generator.spec.shape)


def test_rows_may_be_told_what_they_are_of(saved):
    generator = load_generator(saved[0])
    asked = torch.tensor([2, 0])
    made = generator.sample_rows([3, 4], [7, 7], label=asked)
    for row, seed, label in zip(made, (3, 4), asked, strict=True):
        torch.testing.assert_close(row, generator.sample(8, seed=seed, label=label)["sample"][7])
    with pytest.raises(ValueError, match="indices: expected one for each of 1 seeds, found 2"):
        generator.sample_rows([1], [1, 2])


@pytest.mark.parametrize("family", ["restore", "cut"])
@pytest.mark.parametrize("side", [1, 24])
def test_arrays_of_another_size_are_refused(family, side):
    """One of a pixel would be repeated without a word."""
    spec = spec_of(family)
    generator = Generator(game_of(family, spec), spec, {}, torch.device("cpu"))
    (part,) = spec.given
    channels, *size = spec.parts[part].stored
    images = np.zeros((2, side, side, channels), np.uint8)
    expected = f"{part}: expected examples of shape {[*size, channels]}, found {[side, side, channels]}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        generator.take(part, images)


def test_small_samples_are_made_with_one_thread_and_threads_are_as_before(saved):
    generator, before, seen = load_generator(saved[0]), torch.get_num_threads(), []
    generator.game.generator.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        generator.sample(1)
        assert (seen, torch.get_num_threads()) == ([1], 3)
    finally:
        torch.set_num_threads(before)


def test_attributes_are_asked_for_or_those_of_real_examples(tmp_path):
    generator = load_generator(save("dcgan", tmp_path, classes=(), attributes=("age", "smile"))[0])
    assert generator.sample(3)["attributes"].tolist() == [[0.0, 1.0], [0.5, 0.5], [0.0, 1.0]]
    asked = generator.sample(2, attributes=torch.tensor([0.25, 0.75]))
    assert asked["attributes"].tolist() == [[0.25, 0.75]] * 2
    assert not torch.equal(generator.sample(2)["sample"], asked["sample"])
    with pytest.raises(ValueError, match=r"attributes: expected 2 \(age, smile\), found 3"):
        generator.sample(2, attributes=torch.zeros(3))
    with pytest.raises(ValueError, match="label: this generator is not conditional"):
        generator.sample(2, label=1)


@pytest.mark.parametrize("family", [f for f in FAMILIES if spec_of(f).given])
def test_a_translator_wants_images(family, tmp_path):
    folder, _, spec = save(family, tmp_path)
    generator = load_generator(folder)
    given = {name: torch.rand(5, *spec.parts[name].shape) * 2 - 1 for name in spec.given}

    def sample(change=lambda x: x, **how):
        return generator.sample(5, given={name: change(x) for name, x in given.items()}, seed=1, **how)["sample"]

    made = sample()
    assert made.shape == (5, *spec.shape)
    torch.testing.assert_close(sample(batch=2), made)
    torch.testing.assert_close(sample(lambda x: x[2:4], rows=slice(2, 4)), made[2:4])
    condition = {"attributes": generator.attributes[0]} if generator.game.attributes else {}
    again = sample(lambda x: x[:1].expand_as(x), **condition)
    torch.testing.assert_close(again[0], made[0])
    drawn = isinstance(generator.game.ask({n: x[:1] for n, x in given.items()}, Noise(0, size=1), None), dict)
    assert torch.equal(again[1], again[0]) != drawn  # the same, unless there is noise next to what is given
    assert not torch.equal(sample(torch.neg), made)
    with pytest.raises(ValueError, match=f"needs to be given {', '.join(spec.given)}"):
        generator.sample(1)
    with pytest.raises(ValueError, match="given: expected shapes"):
        sample(lambda x: x[..., :4])


def test_a_generator_from_noise_takes_no_images(tmp_path):
    with pytest.raises(ValueError, match="takes no given parts"):
        load_generator(save("mlp", tmp_path)[0]).sample(1, given={"sample": torch.zeros(1, 1, 8, 8)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "^n: expected a whole number from 1 to 9223372036854775807, found 0$"),
        ({"n": 2**63}, "n: expected"),
        ({"n": 1.5}, "n: expected"),
        ({"n": True}, "n: expected"),
        ({"n": 1, "seed": -1}, "^seed: expected a whole number from 0 to 9223372036854775807, found -1$"),
        ({"n": 1, "seed": 2**63}, "seed: expected"),
        ({"n": 1, "seed": "1"}, "seed: expected"),
        ({"n": 1, "label": 3}, "label: expected 0 to 2, found 3"),
        ({"n": 1, "label": -1}, "label: expected 0 to 2, found -1"),
        ({"n": 1, "label": 0.5}, "label: expected 0 to 2, found 0.5"),
        ({"n": 1, "truncation": 0.0}, "truncation"),
        ({"n": 1, "truncation": float("inf")}, "truncation"),
    ],
)
def test_bad_requests(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_generator(saved[0]).sample(**arguments)


def test_what_is_not_a_generator_is_refused_by_name(saved):
    folder, *_ = saved
    weights = folder / "generator.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=f"{folder}: not a generator"):
        load_generator(folder)
    weights.unlink()
    with pytest.raises(ValueError, match=f"{folder}: not a generator"):
        load_generator(folder)
    weights.write_bytes(good)
    described = json.loads((folder / "generator.json").read_text())
    described["network"]["family"] = "os.system"
    (folder / "generator.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"'os\.system' is not one of ganlib/models"):
        load_generator(folder)


def test_attributes_go_in_and_come_out_in_the_units_of_the_data(tmp_path):
    """Networks see them standardised; the scale travels with the generator."""
    spec = spec_of("mlp", classes=(), attributes=("time", "smile"))
    scaled = dataclasses.replace(spec, attribute_means=(1.7e9, 0.5), attribute_stds=(300.0, 0.5))
    game, known = game_of("mlp", spec), torch.tensor([[1.7e9 + 300, 0.0], [1.7e9 - 150, 1.0]], dtype=torch.float64)
    save_generator(
        tmp_path / "own", game.generator, network=config("mlp"), spec=spec, attributes=torch.tensor([[1.0, -1]])
    )
    save_generator(tmp_path / "scaled", game.generator, network=config("mlp"), spec=scaled, attributes=known)
    plain, generator = load_generator(tmp_path / "own"), load_generator(tmp_path / "scaled")
    assert generator.spec == scaled
    made = generator.sample(2)
    assert made["attributes"].tolist() == known.tolist()
    expected = plain.sample(2, attributes=torch.tensor([[1.0, -1.0], [-0.5, 1.0]]))["sample"]
    torch.testing.assert_close(made["sample"], expected)
    asked = generator.sample(2, attributes=known[0])
    assert asked["attributes"].tolist() == [known[0].tolist()] * 2
    torch.testing.assert_close(asked["sample"][0], expected[0])
    with pytest.raises(ValueError, match="attributes: expected finite numbers"):
        generator.sample(1, attributes=torch.tensor([float("nan"), 0.0]))
    with pytest.raises(
        ValueError, match=r"attributes: expected at most 1,000 standard deviations .*, found \[1e\+30, 0.0\]"
    ):
        generator.sample(1, attributes=torch.tensor([1e30, 0.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("family", "network"),
    [
        ("mlp", {"width": 20_000}),
        ("mlp", {"depth": 1000, "width": 1000}),
        ("mlp", {"depth": 10**8}),
        ("mlp", {"latent_dim": 10**12}),
        ("stylegan2", {"mapping_layers": 10**8}),
        ("r3gan", {"blocks": 10**8}),
        ("r3gan", {"width": 10**5, "max_width": 10**6}),
    ],
)
def test_a_few_bytes_cannot_take_the_machine(family, network, tmp_path):
    """It is found before a weight is filled."""
    folder, *_ = save(family, tmp_path)
    described = json.loads((folder / "generator.json").read_text())
    described["network"] |= network
    (folder / "generator.json").write_text(json.dumps(described))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"{folder}: not a generator: [^ ]"):
        load_generator(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 700_000  # KiB


def test_a_label_may_be_a_name(saved):
    generator = load_generator(saved[0])
    assert generator.sample(2, label="c")["label"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="'d' is not a class; known: a, b, c"):
        generator.sample(1, label="d")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_way_between_samples_goes_from_one_to_the_other(family, tmp_path):
    generator = load_generator(save(family, tmp_path)[0])
    if generator.translates:
        with pytest.raises(ValueError, match="needs to be given"):
            generator.interpolate([0, 1], 2)
        return
    inputs = tensors_of(generator.game.ask({}, Noise(0, "sample", size=2), None))
    latents = [x for x in inputs if x.is_floating_point() and x.dim() > 1]
    if not latents:
        with pytest.raises(ValueError, match="has no latent"):
            generator.interpolate([0, 1], 2)
        return
    label = 1 if generator.conditional else None
    made, ends = generator.interpolate([3, 5, 3], 4, label=label), generator.sample(6, label=label)["sample"]
    assert made.shape == (9, *generator.spec.shape)
    torch.testing.assert_close(made[0], ends[3])
    torch.testing.assert_close(made[8], made[0])
    torch.testing.assert_close(made[1:4], made[5:8].flip(0))  # the same way back
    assert not torch.equal(made[2], made[0])
    if len(inputs) == len(latents) == 1:  # nothing else is drawn
        torch.testing.assert_close(made[4], ends[5])
    torch.testing.assert_close(generator.interpolate([3, 5], 4, label=label), made[:5])
    with pytest.raises(ValueError, match="stops: expected at least 2, found 1"):
        generator.interpolate([0], 4)


def test_latents_go_along_great_circles():
    ends = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    found = _along(ends, torch.tensor([0, 0, 0, 1]), torch.tensor([0.0, 0.5, 1.0, 0.5]))
    half = 2**0.5
    torch.testing.assert_close(found, torch.tensor([[2.0, 0.0], [half, half], [0.0, 2.0], [0.0, 2.0]]))
    assert torch.equal(_along(torch.tensor([7, 9]), torch.tensor([0, 1]), torch.zeros(2)), torch.tensor([7, 7]))
