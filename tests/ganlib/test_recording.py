"""Recorded steps compute what played ones do, with all that changes from step to step; and no step reads the device."""

import contextlib
import copy
import dataclasses
import gc
import weakref

import pytest
import torch
from tape import HostRead, NoHostReads, record
from zoo import SHALLOW, spec_of
from zoo import batches as examples_of

from ganlib import device as devices
from ganlib import game, registry
from ganlib.config import ModelConfig, load_params, override
from ganlib.game import Batch, Term
from ganlib.noise import Noise
from ganlib.recording import MOST, WARMUP, RecordedSteps
from ganlib.schedules import Schedule
from ganlib.trainer import _Training, plan

FAMILIES = registry.names("models")
COSINE = {"kind": "cosine", "to_kimg": 0.05}
CASES = [
    *[(family, {}) for family in FAMILIES],
    ("dcgan", {"discriminator_norm": "batch", "penalties": {}}),
    ("dcgan", {"discriminator_norm": "spectral", "minibatch_group": 4}),
    ("dcgan", {"conditioning": "auxiliary", "penalties": {"dragan": {"weight": 1.0}, "consistency": {"weight": 1.0}}}),
    ("dcgan", {"conditioning": "reacgan", "penalties": {"lecam": {"weight": 1.0}}}),
    ("mlp", {"conditioning": "concat", "penalties": {"gradient_penalty": {"weight": 1.0}}, "discriminator_steps": 3}),
    ("mlp", {"loss": "hinge", "top_k": {**COSINE, "start": 1.0, "end": 0.3}}),
    ("mlp", {"warmup": {"accuracy": 0.99, "max_kimg": 0.05}}),
    (
        "resnet",
        {"attention": [8], "hierarchical": True, "latent_dim": 9, "generator_spectral": True, "orthogonal": 0.1},
    ),
    ("stylegan2", {"path_length_weight": 2.0, "path_length_every": 3, "noise": True}),
    ("r3gan", {"penalties": {name: {"weight": {**COSINE, "start": 1.0, "end": 0.1}} for name in ("r1", "r2")}}),
    ("dcgan", {"augment": {"kind": "diffaugment"}}),
    ("dcgan", {"augment": {"kind": "ada", "probability": 0.3, "target": 0.1, "adjust_kimg": 0.1, "every": 2}}),
    (
        "dcgan",
        {
            "augment": {"kind": "ada", "probability": {**COSINE, "start": 0.0, "end": 0.5}, "target": None},
            "generator.lr": {**COSINE, "start": 1e-2, "end": 1e-3},
            "generator.betas": [0.5, {**COSINE, "start": 0.9, "end": 0.99}],
            "discriminator.clip_norm": 0.01,
            "ema_halflife_kimg": {**COSINE, "start": 0.0, "end": 1.0},
        },
    ),
]


def training_of(family, changes, accumulate=1, device=torch.device("cpu")):  # noqa: B008
    """A small training, and what deals its steps."""
    modality = registry.modalities(registry.load("models", family))[0]
    spec = spec_of(family, (1, 16, 16))
    params = load_params().model_copy(
        update={"model": family, "data": "pairs" if modality == "image_pair" else "mnist"}
    )
    known = params.game.network.model_dump()
    tiny = {
        "width": 4,
        "discriminator_width": 4,
        "max_width": 8,
        "latent_dim": 8,
        "patch_levels": 1,
        "mapping_layers": 1,
        "group": 2,
        **SHALLOW.get(family, {}),
    }
    often = {f"penalties.{name}.every": 3 for name in params.game.penalties if "penalties" not in changes}
    overrides = {f"network.{k}": v for k, v in tiny.items() if k in known} | {"batch": 8} | often
    overrides |= {f"fits.{name}.kimg": 0 for name in params.game.fits}
    overrides |= {k if k.split(".")[0] in ModelConfig.model_fields else f"network.{k}": v for k, v in changes.items()}
    params = override(params, overrides)
    cfg = params.train.model_copy(update={"accumulate": accumulate, "kimg": 180.0})
    params = params.model_copy(update={"train": cfg})
    training = _Training(params, spec, plan(params, 1), 1, device)

    def batches(step):
        rows = [slice(i * 8 // accumulate, (i + 1) * 8 // accumulate) for i in range(accumulate)]

        def batch(turn, rows):
            (whole,) = examples_of(spec, 8, key=turn)
            data = {name: column[rows].to(device) for name, column in whole.data.items()}
            return Batch(data, Noise(0, "turn", turn, size=8, rows=rows, device=device))

        steps = params.game.discriminator_steps
        return [[batch(step * steps + i, part) for part in rows] for i in range(steps)]

    return training, batches


def played(training, batches, steps):
    return [{k: float(v) for k, v in training.step(batches(training.state["step"])).items()} for _ in range(steps)]


def learnt(training):
    return {name: part.state_dict() for name, part in training.parts.items()}


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_fakes_that_a_gpu_makes_again_change_no_bit(family, changes, monkeypatch):
    """In the turns of penalties, where the generator's graph is not kept."""
    kept, batches = training_of(family, changes)
    again, _ = training_of(family, changes)
    rows = played(kept, batches, 6)
    monkeypatch.setattr(game, "is_accelerator", lambda device: True)
    assert played(again, batches, 6) == rows
    torch.testing.assert_close(learnt(again), learnt(kept), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "changes", "accumulate"),
    [*((*case, 1) for case in CASES), ("dcgan", {}, 2), ("stylegan2", {"path_length_weight": 2.0}, 2)],
    ids=str,
)
def test_a_replayed_step_has_the_bits_of_a_played_one(family, changes, accumulate):
    eager, batches = training_of(family, changes, accumulate)
    recorded, _ = training_of(family, changes, accumulate)
    recorded.recorded = RecordedSteps(record)
    rows = played(eager, batches, 14)
    assert played(recorded, batches, 14) == rows
    torch.testing.assert_close(learnt(recorded), learnt(eager), rtol=0, atol=0)
    assert recorded.recorded.share() > 0.3


def test_going_back_and_resuming_reach_the_same_bits():
    """A rollback finds its weights again under what was recorded; a resumed run, which records anew, ends alike."""
    case = "dcgan", {"augment": {"kind": "ada", "probability": 0.3, "target": 0.1, "adjust_kimg": 0.1, "every": 2}}
    one, batches = training_of(*case)
    one.recorded = RecordedSteps(record)
    played(one, batches, 7)
    snapshot = copy.deepcopy(one.snapshot())
    rows = played(one, batches, 9)
    end = copy.deepcopy(learnt(one))
    one.restore(snapshot)
    assert played(one, batches, 9) == rows
    torch.testing.assert_close(learnt(one), end, rtol=0, atol=0)
    other, _ = training_of(*case)
    other.recorded = RecordedSteps(record)
    other.restore(snapshot)
    assert played(other, batches, 9) == rows
    torch.testing.assert_close(learnt(other), end, rtol=0, atol=0)


@pytest.mark.parametrize(("family", "changes"), [case for case in CASES if "warmup" not in case[1]], ids=str)
def test_no_step_reads_the_device(family, changes):
    training, batches = training_of(family, changes)
    for _ in range(4):
        dealt = batches(training.state["step"])
        with NoHostReads():
            training.step(dealt)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_turns_run_on_a_device_of_their_own(family, changes, monkeypatch):
    """On the device `meta` tensors have no values to read, and those of the CPU do not mix with them."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # which meta does not know
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    training, batches = training_of(family, changes, device=torch.device("meta"))
    for step in (0, 1):
        for turn in training._turns(batches(step), step, 0.0):
            turn.play()
            assert {p.grad.device.type for p in turn.learner.parameters if p.grad is not None} == {"meta"}
            turn.learner.optimizer.zero_grad()


def test_what_cannot_be_recorded_is_said_and_played():
    training, batches = training_of("mlp", {})
    same, _ = training_of("mlp", {})
    reading = dataclasses.replace(
        training.game.terms[0], fn=lambda round: round.real_logits * float(round.real_logits[0].detach())
    )
    for each in (training, same):
        each.game = dataclasses.replace(each.game, terms=(dataclasses.replace(reading, every=1),))
    training.recorded = RecordedSteps(record)
    with pytest.warns(RuntimeWarning, match="not recorded as CUDA graphs: aten::_local_scalar_dense reads"):
        rows = played(training, batches, 6)
    assert rows == played(same, batches, 6)
    torch.testing.assert_close(learnt(training), learnt(same), rtol=0, atol=0)
    assert training.recorded.share() == 0.0


def test_a_generators_turn_that_cannot_be_recorded_leaves_no_trace():
    """Neither a frozen discriminator, nor gradients, nor a graph that would tie its stream to the parameters."""
    ends, read = [], []

    def fn(round):
        read.append(weakref.ref(round.fake_logits))
        return round.fake_logits * float(round.fake_logits[0].detach())

    for record_ in (None, record):
        training, batches = training_of("mlp", {})
        reading = Term("reading", "generator", fn)
        training.game = dataclasses.replace(training.game, terms=(reading,))
        if record_ is None:
            rows = played(training, batches, 6)
        else:
            training.recorded = RecordedSteps(record_)
            gc.disable()
            try:
                with pytest.warns(RuntimeWarning, match="not recorded as CUDA graphs"):
                    assert played(training, batches, 6) == rows
                assert all(logits() is None for logits in read)
            finally:
                gc.enable()
        ends.append(learnt(training))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


def test_steps_are_recorded_once_they_have_come_a_few_times_and_only_so_many():
    training, batches = training_of("mlp", {"penalties": {}})
    training.recorded = RecordedSteps(record)
    made = []

    def make(dealt):
        made.append(dealt)
        return []

    for kind in range(MOST + 2):
        for _ in range(WARMUP + 3):
            training.recorded.turns(kind, batches(0), make)
    recorded, played_ = WARMUP + 1, WARMUP + 3
    assert len(made) == MOST * recorded + 2 * played_
    assert training.recorded.share() == pytest.approx(MOST * 3 / ((MOST + 2) * (WARMUP + 3)))


def test_nothing_is_played_once_something_is_recorded(monkeypatch):
    """Or a GPU's memory would hold what recordings need and what played steps need, at one time."""
    monkeypatch.setattr(devices, "recorder", lambda device: record)
    changes = {"path_length_weight": 2.0, "path_length_every": 2, "penalties": {"r1": {"weight": 1.0, "every": 3}}}
    training, batches = training_of("stylegan2", changes)
    shares = []
    for _ in range(20):
        played(training, batches, 1)
        shares.append(training.recorded.share())
    assert shares == [0.0] * 12 + [1.0] * 8


def test_the_tape_forbids_what_a_capture_would():
    with pytest.raises(HostRead), NoHostReads():
        float(torch.zeros(()))
    value = torch.zeros(2)
    replay, result = record(lambda: value.add_(1) * 2)
    assert value.tolist() == [0, 0]
    replay()
    assert value.tolist() == [1, 1]
    assert result.tolist() == [2, 2]


def test_schedules_are_the_same_on_the_device():
    from ganlib.schedules import value

    for kind in ("cosine", "linear"):
        schedule = Schedule(kind=kind, start=2.0, end=-1.0, from_kimg=1.0, to_kimg=4.0)
        for kimg in (0.0, 1.0, 1.7, 3.9, 4.0, 9.0):
            assert float(value(schedule, torch.tensor(kimg, dtype=torch.float64))) == pytest.approx(
                value(schedule, kimg)
            )
