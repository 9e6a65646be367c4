"""Training: exact resume, ranks that equal one process, and refusals before any work."""

import dataclasses
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from runs import Kept, equal, run_ranks, without_clock
from specs import image_spec, pair_spec

from ganlib import checkpoint, registry, shards
from ganlib.build import build_game
from ganlib.config import ConfigError, ModelConfig, parse_params
from ganlib.game import Batch
from ganlib.health import Alarm, Diverged, Monitor, check, diversity
from ganlib.loader import Loader
from ganlib.noise import Noise
from ganlib.shards import read_spec
from ganlib.trainer import _Training, plan, train
from ganlib.watch import Watch

CPU = torch.device("cpu")
FAMILIES = registry.names("models")
CONSISTENCY = {"consistency": {"weight": 10}}


def test_what_a_report_holds(small, prepared, tmp_path):
    kept = Kept(tmp_path)
    train(small(), kept, prepared=prepared)
    assert [row["kimg"] for row in kept.rows] == pytest.approx([0.128, 0.256, 0.384])
    assert {"sign/real", "sign/fake", "logit/gap", "gradient/generator", "gradient/discriminator"} <= set(kept.rows[0])
    assert {"diversity", "examples_per_second", "loss/generator", "loss/discriminator"} <= set(kept.rows[0])
    assert {p.name for p in kept.folders[0].iterdir()} == {"checkpoint.pt", "generator", "samples.png"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bits(family, small, data_of, tmp_path):
    prepared = data_of(family)
    ends = []
    for name in ("a", "b"):
        kept = Kept(tmp_path / name)
        train(small(family), kept, prepared=prepared)
        ends.append(without_clock(checkpoint.load(kept.folders[-1])))
    assert equal(*ends)
    kept = Kept(tmp_path / "c")
    train(small(family).model_copy(update={"seed": 1}), kept, prepared=prepared)
    assert not equal(ends[0], without_clock(checkpoint.load(kept.folders[-1])))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_ends_with_the_same_bits(family, small, data_of, tmp_path):
    prepared = data_of(family)
    whole = Kept(tmp_path / "whole")
    train(small(family), whole, prepared=prepared)
    first = Kept(tmp_path / "first", stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        train(small(family), first, prepared=prepared)
    second = Kept(tmp_path / "second")
    train(small(family), second, prepared=prepared, resume=first.folders[-1])
    assert len(second.rows) == 1
    ends = [without_clock(checkpoint.load(kept.folders[-1])) for kept in (whole, second)]
    assert equal(*ends)
    exported = [(kept.folders[-1] / "generator" / "generator.safetensors").read_bytes() for kept in (whole, second)]
    assert exported[0] == exported[1]


def test_resuming_a_finished_run_changes_nothing(small, prepared, tmp_path):
    kept = Kept(tmp_path)
    train(small(), kept, prepared=prepared)
    train(small(), kept, prepared=prepared, resume=kept.folders[-1])
    assert len(kept.rows) == 3


def _rank(rank, world, params, prepared, out, resume=None):
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    params = parse_params(params)

    def report(row, folder):
        if folder is not None:
            shutil.copytree(folder, Path(out) / f"{row['kimg']:.3f}")

    train(params, report, prepared=prepared, resume=resume)
    dist.destroy_process_group()


OWN = {"cut": {"temperature": 0.5}}  # which divides similarities: at 0.07 their rounding counts 14 times


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *[(family, OWN.get(family, {})) for family in FAMILIES],
        ("dcgan", {"discriminator_norm": "batch", "penalties": {}}),
        ("dcgan", {"conditioning": "reacgan", "minibatch_group": 4}),
        ("resnet", {"minibatch_group": 4}),
        ("dcgan", {"penalties": {"lecam": {"weight": 1.0}, "consistency": {"weight": 10.0}}}),
        ("dcgan", {"augment": {"kind": "diffaugment"}, "top_k": 0.4}),
        (
            "dcgan",
            {
                "minibatch_group": 2,
                "penalties": {"r1_approx": {"weight": 0.1, "batch_shrink": 4}, "r2_approx": {"weight": 0.1}},
                "augment": {"kind": "diffaugment"},
            },
        ),
        (
            "dcgan",
            {
                "loss": "wasserstein",
                "penalties": {"gradient_penalty": {"weight": 10.0}, "dragan": {"weight": 1.0}},
                "discriminator_steps": 2,
            },
        ),
        (
            "dcgan",
            {
                "loss": "least_squares",
                "conditioning": "auxiliary",
                "penalties": {"balanced_consistency": {"weight": 10.0}},
            },
        ),
        ("f_anogan", {"discriminator_steps": 1, "fits": {"encoder": {"kimg": 0.032, "lr": 1e-6}}}),
        (
            "stylegan2",
            {
                "loss": "minimax",
                "path_length_weight": 2.0,
                "noise": True,
                # rank 0's mean sign is below the target, that of both above
                "augment": {"kind": "ada", "probability": 0.5, "target": 0.0, "adjust_kimg": 1, "every": 1},
            },
        ),
    ],
    ids=str,
)
def test_two_ranks_equal_one_process(family, changes, small, data_of, tmp_path):
    """After one step that hardly moves a weight, gradients agree to 1e-5, and so does all that is kept beside them:
    statistics of BatchNorm, running means, how often ADA saw the discriminator be right."""
    prepared = data_of(family)
    overrides = {k if k in ModelConfig.model_fields else f"network.{k}": v for k, v in changes.items()}
    # Adam's first move is as long for a gradient of 1e-9 as for one of 1, either way
    still = {"generator.lr": 1e-6, "discriminator.lr": 1e-6}
    params = small(family, changes=overrides | still, kimg=0.032, report_kimg=0.032)
    alone = Kept(tmp_path / "one")
    train(params, alone, prepared=prepared)
    out = tmp_path / "two"
    out.mkdir()
    run_ranks(_rank, 2, 2, params.model_dump(mode="json"), prepared, str(out))
    *_, folder = sorted(p for p in out.iterdir() if p.is_dir())
    one, two = (without_clock(checkpoint.load(f)) for f in (alone.folders[-1], folder))
    assert one["step"] == 1
    assert two.pop("rows")[0] == pytest.approx(one.pop("rows")[0], rel=1e-4, abs=1e-5)
    for player in ("generator", "discriminator"):
        optimizers = [state.pop(f"{player}_optimizer") for state in (one, two)]
        beta1 = optimizers[0]["param_groups"][0]["betas"][0]
        # after one step from nothing, Adam's first moment is (1 − β1) x gradient
        gradients = [[m["exp_avg"] / (1 - beta1) for m in o["state"].values()] for o in optimizers]
        largest = max(float(g.abs().max()) for g in gradients[0])
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=min(1e-5, 1e-3 * largest))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_of_one_process_goes_on_in_two(small, prepared, tmp_path):
    params = small("dcgan")
    whole = Kept(tmp_path / "whole")
    train(params, whole, prepared=prepared)
    out = tmp_path / "two"
    out.mkdir()
    run_ranks(_rank, 2, 2, params.model_dump(mode="json"), prepared, str(out), str(whole.folders[1]))
    (folder,) = (p for p in out.iterdir() if p.is_dir())
    ends = [checkpoint.load(f)["ema"] for f in (whole.folders[-1], folder)]
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "option"),
    [
        ("dcgan", "amp"),
        ("dcgan", "channels_last"),
        pytest.param("mlp", "compile", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler")),
    ],
)
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning", "ignore::DeprecationWarning:torch")
def test_options_train(family, option, small, prepared, tmp_path):
    kept = Kept(tmp_path)
    train(small(family, **{option: True}), kept, prepared=prepared)
    assert len(kept.rows) == 3


def test_attributes_condition_a_training(small, tmp_path):
    """From a folder of images with attributes to a generator that is conditioned on attributes."""
    import numpy as np
    from PIL import Image

    from ganlib.config import DatasetConfig
    from ganlib.export import load_generator
    from pipelines.prepare import prepare

    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    lines = ["image,left,top"]
    for i, (x, y) in enumerate(rng.integers(0, 12, (150, 2))):
        pixels = np.zeros((16, 16), np.uint8)
        pixels[y : y + 4, x : x + 4] = 255 - i % 50
        Image.fromarray(pixels).save(raw / f"{i}.png")
        lines.append(f"{i}.png,{x / 12},{y / 12}")
    (raw / "where.csv").write_text("\n".join(lines))
    sample = {"kind": "image", "resolution": [16, 16], "channels": 1}
    source = {"name": "image_folder", "attributes": "where.csv"}
    cfg = DatasetConfig.model_validate({"source": source, "sample": sample, "test_share": 0.3})
    prepare(cfg, raw, tmp_path / "prepared")
    kept = Kept(tmp_path / "kept")
    train(small("dcgan"), kept, prepared=tmp_path / "prepared")
    generator = load_generator(kept.folders[-1] / "generator")
    assert generator.spec.attributes == ("left", "top")
    assert generator.sample(4)["attributes"].shape == (4, 2)
    one, other = (generator.sample(4, attributes=torch.tensor(where))["sample"] for where in ([0.0, 0.0], [1.0, 1.0]))
    assert not torch.equal(one, other)


def test_accumulation_equals_one_batch(small, prepared, tmp_path):
    ends = []
    for accumulate in (1, 4):
        kept = Kept(tmp_path / str(accumulate))
        train(small(accumulate=accumulate), kept, prepared=prepared)
        ends.append(checkpoint.load(kept.folders[-1])["generator"])
    torch.testing.assert_close(*ends, rtol=1e-3, atol=1e-5)


def test_a_batch_that_does_not_divide(params):
    with pytest.raises(
        ConfigError, match=r"params/models/dcgan\.yaml: batch: 32 does not divide into 3 workers.*multiple of 3"
    ):
        plan(params, 3)


def test_what_does_not_fit_is_refused_before_work(small, prepared):
    spec = read_spec(prepared)
    with pytest.raises(ConfigError, match=r"penalties \(r1\).*BatchNorm"):
        build_game(small("dcgan", changes={"network.discriminator_norm": "batch"}), spec)
    approximate = {"penalties": {"r1_approx": {"weight": 1}}}
    with pytest.raises(ConfigError, match=r"penalties \(r1_approx\).*BatchNorm"):
        build_game(small("dcgan", changes={"network.discriminator_norm": "batch", **approximate}), spec)
    shared = {"penalties": {"r2_approx": {"weight": 1, "batch_shrink": 16}}, "network.minibatch_group": 4}
    with pytest.raises(ConfigError, match=r"r2_approx\.batch_shrink: 16 x 4 .* the batch of 32; choose a divisor of 8"):
        build_game(small("dcgan", changes=shared), spec)
    shared["penalties"]["r2_approx"]["batch_shrink"] = 8
    assert build_game(small("dcgan", changes=shared), spec).group == 32
    with pytest.raises(ConfigError, match="for image data, these are text"):
        build_game(small(), dataclasses.replace(spec, modality="text"))
    with pytest.raises(ConfigError, match="8 to 128 pixels"):
        build_game(small("dcgan"), image_spec((1, 6, 6), spec.classes))


def test_divergence_stops_the_run(small, prepared, tmp_path):
    kept = Kept(tmp_path)
    wild = small(changes={"generator.lr": 1e30, "discriminator.lr": 1e30, "loss": "wasserstein", "penalties": {}})
    with pytest.raises(Diverged, match="not finite"):
        train(wild, kept, prepared=prepared)


def test_health():
    check({"a": 1.0}, 0.1)
    with pytest.raises(Diverged, match=r"before 0\.1 kimg: b not finite"):
        check({"a": 1.0, "b": float("nan")}, 0.1)
    points = torch.randn(64, 1, 4, 4)
    assert diversity(points, points) == pytest.approx(1.0)
    assert diversity(points[:1].expand(64, -1, -1, -1), points) == 0.0


def test_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint"):
        checkpoint.load(tmp_path)
    checkpoint.save(tmp_path, {"step": 1, "w": torch.ones(1000)})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: damaged"):
        checkpoint.load(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


# -- what params say of a step --------------------------------------------------------------------------------------


def stepping(params, prepared):
    """All that learns, and what plays its next step and returns the statistics."""
    spec = read_spec(prepared)
    training = _Training(params, spec, plan(params, 1), 1, torch.device("cpu"))
    loader = Loader(prepared, "train", batch=params.game.batch, seed=0, memory_mb=64)

    def step():
        first = training.state["step"] * params.game.discriminator_steps
        turns = range(first, first + params.game.discriminator_steps)
        dealt = [[Batch(loader.batch_at(turn, rank=0, world=1), Noise(turn, size=params.game.batch))] for turn in turns]
        return training.step(dealt)

    return training, step


def numbers(module):
    """What a module has learnt or counted, as it is now."""
    return {name: x.clone() for name, x in module.state_dict().items()}


@pytest.mark.parametrize("player", ["generator", "discriminator"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_player_moves_by_the_optimiser_of_params(optimizer, player, small, prepared):
    """The first step by hand: Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2, lines 6 and 12."""
    lr, beta1, beta2, decay, most = 0.02, 0.3, 0.7, 0.1, 1e-2
    said = {"optimizer": optimizer, "lr": lr, "betas": [beta1, beta2], "weight_decay": decay, "clip_norm": most}
    training, step = stepping(small(changes={f"{player}.{key}": x for key, x in said.items()}), prepared)
    learner = getattr(training, player)
    before = [p.detach().clone() for p in learner.parameters]
    assert step()[f"gradient/{player}"] > 2 * most
    clipped = []
    for start, p in zip(before, learner.parameters, strict=True):
        g, square = (learner.optimizer.state[p][name] for name in ("exp_avg", "exp_avg_sq"))
        g = g / (1 - beta1)
        torch.testing.assert_close(square, (1 - beta2) * g.square(), rtol=1e-5, atol=1e-12)
        shrunk = start * (1 - lr * decay) if optimizer == "adamw" else start
        torch.testing.assert_close(p.detach(), shrunk - lr * g / (g.abs() + 1e-8), rtol=1e-5, atol=1e-6)
        clipped.append(g if optimizer == "adamw" else g - decay * start)
    assert float(torch.nn.utils.get_total_norm(clipped)) == pytest.approx(most, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "halflives"),
    [
        ({"ema_halflife_kimg": 0.1}, [0.1, 0.1, 0.1, 0.1]),
        ({"ema_halflife_kimg": 0}, [0, 0, 0, 0]),
        (
            {"ema_halflife_kimg": {"kind": "linear", "start": 0.02, "end": 0.12, "to_kimg": 0.064}},
            [0.02, 0.07, 0.12, 0.12],
        ),
        ({"ema_halflife_kimg": 0.04, "ema_rampup": 0.5}, [0, 0.016, 0.032, 0.04]),
        (
            {"ema_halflife_kimg": 0.05, "ema_rampup": 0.5, "discriminator_steps": 2},
            [0, 0.032, 0.05, 0.05],
        ),
    ],
    ids=str,
)
def test_what_is_exported_is_the_average_of_known_half_lives(changes, halflives, small, prepared):
    """Σ sₖ wₖ over the generators after k steps, running statistics included, with sₖ = (1 − dₖ) Π dⱼ over j > k and
    d = 2^(−images of a step / half-life); `halflives` are in kimg, one a step."""
    training, step = stepping(small("dcgan", changes={"ema_rampup": None} | changes), prepared)
    kimg = 0.032 * changes.get("discriminator_steps", 1)
    decays = [0.5 ** (kimg / h) if h else 0.0 for h in halflives]
    shares = [math.prod(decays), *[(1 - d) * math.prod(decays[k + 1 :]) for k, d in enumerate(decays)]]
    generators = [numbers(training.game.generator)]
    for _ in halflives:
        step()
        generators.append(numbers(training.game.generator))
    for name, found in training.ema.state_dict().items():
        wanted = sum(share * g[name].double() for share, g in zip(shares, generators, strict=True))
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


# -- phases, augmentation and health -------------------------------------------------------------------------------


def test_the_generator_waits_until_the_discriminator_is_ahead(small, prepared, tmp_path):
    kept = Kept(tmp_path)
    train(small(changes={"warmup": {"accuracy": 0.99, "max_kimg": 0.2}}), kept, prepared=prepared)
    assert "loss/generator" not in kept.rows[0]
    assert "loss/generator" in kept.rows[2]  # at the latest from 0.2 kimg on


def test_the_generator_starts_as_soon_as_the_discriminator_is_accurate(small, prepared):
    """Digits against what an untrained network makes, with nothing to hold the discriminator back: soon won."""
    wanted, eager = 0.7, {"discriminator.lr": 1e-2, "penalties": {}}
    training, step = stepping(small(changes=eager | {"warmup": {"accuracy": wanted, "max_kimg": 100}}), prepared)
    players = training.game.generator, training.ema
    first, accuracy = numbers(training.game.generator), 0.0
    while accuracy < wanted:
        stats = step()
        assert "loss/generator" not in stats
        assert all(equal(numbers(player), first) for player in players)
        accuracy += ((2 + float(stats["sign/real"] - stats["sign/fake"])) / 4 - accuracy) / 10
        assert training.state["accuracy"] == pytest.approx(accuracy)
        assert training.kimg < 1
    for _ in range(4):  # from then on, though it should take all for real
        assert "loss/generator" in step()
        torch.nn.init.constant_(training.game.discriminator.head.logit.bias, 1e3)
    assert not any(equal(numbers(player), first) for player in players)


FADE = {"network.progressive": True, "network.stage_kimg": 0.1, "network.fade_kimg": 0.3}


def test_a_resume_in_the_middle_of_a_fade_is_exact(small, prepared, tmp_path):
    params = small("stylegan2", changes=FADE)
    whole, first, second = (Kept(tmp_path / name) for name in ("whole", "first", "second"))
    train(params, whole, prepared=prepared)
    first.stop_after = 2  # at 0.256 kimg: half faded in
    with pytest.raises(KeyboardInterrupt):
        train(params, first, prepared=prepared)
    train(params, second, prepared=prepared, resume=first.folders[1])
    assert equal(*[without_clock(checkpoint.load(kept.folders[-1])) for kept in (whole, second)])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("dcgan", {"warmup": {"accuracy": 0.9, "max_kimg": 0.3}}),
        ("dcgan", {"augment": {"kind": "ada", "probability": 0.5, "adjust_kimg": 1, "every": 1}}),
        ("dcgan", {"penalties": {"lecam": {"weight": 0.3}}}),
        ("dcgan", {"top_k": 0.5, "ema_rampup": 0.05}),
        ("dcgan", {"discriminator_steps": 2, "penalties": {"gradient_penalty": {"weight": 1.0, "every": 3}}}),
        ("stylegan2", {"network.path_length_weight": 2.0, "network.noise": True}),
    ],
    ids=str,
)
def test_what_keeps_a_state_resumes_exactly(family, changes, small, prepared, tmp_path):
    params = small(family, changes=changes)
    whole, first, second = (Kept(tmp_path / name) for name in ("whole", "first", "second"))
    train(params, whole, prepared=prepared)
    first.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        train(params, first, prepared=prepared)
    train(params, second, prepared=prepared, resume=first.folders[0])
    assert equal(*[without_clock(checkpoint.load(kept.folders[-1])) for kept in (whole, second)])


def test_ada_answers_a_discriminator_that_is_ahead(small, prepared, tmp_path):
    kept = Kept(tmp_path)
    augment = {"kind": "ada", "target": 0.0, "adjust_kimg": 1.0, "every": 1}
    changes = {"augment": augment, "generator.lr": 1e-8, "discriminator.lr": 1e-2}
    train(small("mlp", changes=changes), kept, prepared=prepared)
    assert kept.rows[-1]["sign/real"] > 0.5
    assert 0.0 <= kept.rows[0]["augment/probability"] < kept.rows[-1]["augment/probability"] <= 0.384


class Alarmed(Monitor):
    """Finds fault with the second report of learning rates above 1e-4."""

    def update(self, row):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 2 and row.get("health/rollbacks", 0) < 2:
            return [Alarm("collapse", row["kimg"], row["kimg"], "all alike")]
        return []

    suspects = False


def of_health(params, **changes):
    health = params.train.health.model_copy(update=changes)
    return params.model_copy(update={"train": params.train.model_copy(update={"health": health})})


def test_an_alarm_warns_or_stops(small, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("ganlib.health.Monitor", Alarmed)
    kept = Kept(tmp_path / "warn")
    train(small(), kept, prepared=prepared)
    assert [row["health/alarms"] for row in kept.rows] == [0, 1, 0]
    with pytest.raises(Diverged, match="all alike"):
        train(of_health(small(), policy="stop"), Kept(tmp_path / "stop"), prepared=prepared)


def test_an_alarm_leads_back_to_what_was_healthy(small, prepared, tmp_path, monkeypatch):
    """Twice, each time at half the learning rate; what is kept has no trace of the time lost."""
    monkeypatch.setattr("ganlib.health.Monitor", Alarmed)
    kept = Kept(tmp_path)
    train(of_health(small(), policy="rollback"), kept, prepared=prepared)
    kimg = [0.128, 0.256, 0.256, 0.256, 0.384]
    assert [row["kimg"] for row in kept.rows] == pytest.approx(kimg)
    assert [row.get("health/rollbacks", 0) for row in kept.rows] == [0, 0, 1, 2, 2]
    end = checkpoint.load(kept.folders[-1])
    assert [row["kimg"] for row in end["rows"]] == pytest.approx([0.128, 0.256, 0.384])
    rates = [end[f"{player}_optimizer"]["param_groups"][0]["lr"] for player in ("generator", "discriminator")]
    assert rates == pytest.approx([small().game.generator.lr / 4, small().game.discriminator.lr / 4])
    with pytest.raises(Diverged, match="given up after 1 rollbacks"):
        train(of_health(small(), policy="rollback", max_rollbacks=1), Kept(tmp_path / "x"), prepared=prepared)


def test_numbers_that_are_none_lead_back_too(small, prepared, tmp_path):
    wild = small(changes={"generator.lr": 1e30, "discriminator.lr": 1e30, "loss": "wasserstein", "penalties": {}})
    with pytest.raises(Diverged, match=r"not finite.*given up after 2 rollbacks"):
        train(of_health(wild, policy="rollback", max_rollbacks=2), Kept(tmp_path), prepared=prepared)


def test_groups_are_not_torn_apart(small, prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"models/stylegan2\.yaml: batch: 24 leaves 6 examples.*multiple of 16"):
        train(small("stylegan2", changes={"batch": 24}, accumulate=4), Kept(tmp_path), prepared=prepared)


def test_those_who_judge_see_examples_as_mixed_as_in_training(small, prepared):
    params = small("stylegan2")
    spec = read_spec(prepared)
    wide = image_spec((1, 2**10, 2**10))  # few of them are in memory at a time
    watch = Watch(params, build_game(params, spec), torch.nn.Identity(), spec, prepared, None, lambda x: x, CPU)
    labels = watch.known.cond
    assert not torch.equal(labels, labels.sort().values)
    assert torch.equal(watch.fixed.cond, watch.fixed.cond.sort().values)
    watch.spec = wide
    assert {part.stop - part.start for part in watch._chunks(64)} == {4}


def test_copies_are_seen_where_examples_are_few(small, prepared, monkeypatch):
    """Those few are taken again and again, and that is no property of the data."""
    stored = shards.stored
    monkeypatch.setattr(shards, "stored", lambda *a, limit, **more: stored(*a, limit=min(limit, 20), **more))
    params, spec = small(), read_spec(prepared)
    watch = Watch(params, build_game(params, spec), torch.nn.Identity(), spec, prepared, None, lambda x: x, CPU)
    assert len(watch.varied.unique(dim=0)) == 20 < len(watch.varied) / 2
    monkeypatch.setattr(watch, "_play", lambda deal: deal.real[torch.arange(len(deal.real)) % 2])
    assert watch._measure(1)["nearest_neighbour_ratio"] == pytest.approx(0.0, abs=1e-6)


def test_what_suits_no_pairs_or_no_microbatches_is_refused(small, prepared):
    spec = read_spec(prepared)
    pairs = pair_spec(1, 1, (32, 32))
    with pytest.raises(ConfigError, match="consistency, augment breaks the alignment"):
        build_game(small("pix2pix", changes={"augment": {"kind": "diffaugment"}, "penalties": CONSISTENCY}), pairs)
    with pytest.raises(ConfigError, match=r"consistency compare an image with the same image moved.*choose one"):
        build_game(small("dcgan", changes={"augment": {"kind": "ada"}, "penalties": CONSISTENCY}), spec)
    with pytest.raises(ConfigError, match=r"top_k.*train\.accumulate"):
        build_game(small(changes={"top_k": 0.5}, accumulate=2), spec)


def test_mirrored_data_train_other_weights(small, prepared, tmp_path):
    ends = []
    for mirror in (False, True):
        kept = Kept(tmp_path / str(mirror))
        train(small("dcgan", changes={"mirror": mirror}), kept, prepared=prepared)
        ends.append(checkpoint.load(kept.folders[-1])["generator"])
    assert not equal(*ends)
