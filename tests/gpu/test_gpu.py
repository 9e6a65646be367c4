"""What holds on an NVIDIA GPU: the CPU's numbers to rounding, the same bits each time, and a step that never waits.

    pytest tests/gpu

`tests/ganlib` is about the rest: it trains on the GPU too where there is one.
"""

import dataclasses
import gc
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import Kept, equal, without_clock
from test_recording import CASES, learnt, played, training_of
from zoo import CONDITIONED, FAMILIES, batches, game_of, penalty, spec_of

from ganlib import checkpoint
from ganlib import device as devices
from ganlib.augment import OPERATIONS, Augment, AugmentConfig
from ganlib.config import parse_params
from ganlib.game import Batch, Learner, Term, adversarial_step, map_tensors
from ganlib.losses import LOSSES
from ganlib.noise import Noise
from ganlib.penalties import PENALTIES
from ganlib.trainer import train

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def exact():
    with devices.configured(GPU, deterministic=True):
        yield


# -- the CPU's numbers ------------------------------------------------------------------------------------------------


def one_step(device, family, loss="non_saturating", penalties=(), augment=None, **network):
    """Weights and statistics after a step of gradient descent, brought to the CPU.

    In float64 where data are images and no pretrained network looks at them; others have constants of float32.
    """
    spec = spec_of(family)
    dtype = torch.float64 if spec.kind.is_picture and family != "restore" else torch.float32
    game = game_of(family, spec, (), **network)
    if augment is not None:
        view = Augment(AugmentConfig(kind=augment, operations=OPERATIONS[augment], probability=0.8, target=None)).to(
            device
        )
        game = dataclasses.replace(
            game, augmentation=lambda sample, noise: map_tensors(lambda x: view(x, noise, 0.0), sample)
        )
    game = dataclasses.replace(game, terms=tuple(game.terms) + tuple(penalty(name) for name in penalties))
    kept = [term.fn for term in game.terms if isinstance(term.fn, torch.nn.Module)]
    if game.pool is not None:
        game.pool.start(device)
        kept.append(game.pool)
    for module in (*kept, *game.modules.values()):
        module.to(device, dtype)
    players = []
    for module in (game.generator, game.discriminator):
        players.append(Learner(module, torch.optim.SGD(module.parameters(), lr=0.1), lr=0.1))
    (batch,) = batches(spec)
    data = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in batch.data.items()}

    class Cast(Noise):
        def normal(self, *shape):
            return super().normal(*shape).to(dtype)

        def uniform(self, *shape):
            return super().uniform(*shape).to(dtype)

    moved = Batch(data, Cast(0, 0, size=8, device=device))
    stats = adversarial_step(game, LOSSES[loss], *players, [[moved]], step=0, kimg=0.0)
    state = {f"{i}.{k}": v.cpu() for i, p in enumerate(players) for k, v in p.module.state_dict().items()}
    return state, {name: x.cpu().double() for name, x in stats.items()}


def agree(family, **options):
    cpu, gpu = (one_step(device, family, **options) for device in (torch.device("cpu"), GPU))
    # noise is drawn in float32, whose logarithms and sines differ in the last digit
    torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_loss(family, loss):
    agree(family, loss=loss)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("family", CONDITIONED)
def test_every_penalty(family, name):
    agree(family, penalties=(name,))


@pytest.mark.parametrize("conditioning", ["none", "concat", "projection", "auxiliary", "reacgan"])
@pytest.mark.parametrize("family", CONDITIONED)
def test_every_conditioning(family, conditioning):
    agree(family, conditioning=conditioning)


@pytest.mark.parametrize("augment", OPERATIONS)
@pytest.mark.parametrize("family", CONDITIONED)
def test_every_augmentation(family, augment):
    agree(family, augment=augment, penalties=("r1",))


def test_noise():
    for draw in ("normal", "uniform"):
        cpu, gpu = (getattr(Noise(1, "turn", 5, size=16, device=where), draw)(999) for where in ("cpu", GPU))
        torch.testing.assert_close(gpu.cpu(), cpu, rtol=1e-5, atol=1e-6)


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amp", [False, "auto"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_and_a_resume_give_the_same_bits(family, amp, small, data_of, tmp_path):
    often = {f"penalties.{name}.every": 2 for name in small(family).game.penalties}  # so that steps are recorded early
    params, prepared = small(family, amp=amp, changes=often), data_of(family)
    first, again, cut = Kept(tmp_path / "first"), Kept(tmp_path / "again"), Kept(tmp_path / "cut", stop_after=2)
    train(params, first, prepared=prepared)
    train(params, again, prepared=prepared)
    with pytest.raises(KeyboardInterrupt):
        train(params, cut, prepared=prepared)
    rest = Kept(tmp_path / "rest")
    train(params, rest, prepared=prepared, resume=cut.folders[-1])
    ends = [without_clock(checkpoint.load(kept.folders[-1])) for kept in (first, again, rest)]
    assert equal(ends[0], ends[1])
    assert equal(ends[0], ends[2])
    assert first.rows[-1]["recorded_steps"] == 1.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_a_replayed_step_has_the_bits_of_a_played_one(family, changes):
    eager, dealt = training_of(family, changes, device=GPU)
    recorded, _ = training_of(family, changes, device=GPU)
    assert recorded.recorded is not None
    eager.recorded = None
    assert played(recorded, dealt, 14) == played(eager, dealt, 14)
    torch.testing.assert_close(learnt(recorded), learnt(eager), rtol=0, atol=0)
    assert recorded.recorded.share() > 0.3


def test_an_earlier_training_can_end_while_steps_are_recorded():
    """Its recordings are garbage that only the collector frees, which must not run inside of a recording."""
    earlier, dealt = training_of("mlp", {}, device=GPU)
    played(earlier, dealt, 14)
    earlier.itself, earlier = earlier, None
    training, dealt = training_of("mlp", {}, device=GPU)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        played(training, dealt, 14)
    finally:
        gc.set_threshold(*before)
    assert training.recorded.share() > 0


# -- two ranks on one GPU, by Gloo ------------------------------------------------------------------------------------


def _rank(rank, world, params, prepared, out):
    dist.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=world)
    train(parse_params(params), lambda row, folder: folder and shutil.copytree(folder, f"{out}/end"), prepared=prepared)
    dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_equal_one_process(family, small, data_of, tmp_path):
    """After one step that hardly moves a weight: gradients, as Adam keeps them, and statistics of norms."""
    still = {"generator.lr": 1e-6, "discriminator.lr": 1e-6}
    params, prepared = small(family, changes=still, kimg=0.032, report_kimg=0.032), data_of(family)
    alone = Kept(tmp_path / "one")
    train(params, alone, prepared=prepared)
    (tmp_path / "two").mkdir()
    mp.spawn(_rank, (2, params.model_dump(mode="json"), prepared, str(tmp_path / "two")), nprocs=2)
    one, two = (checkpoint.load(folder) for folder in (alone.folders[-1], Path(tmp_path / "two" / "end")))
    for state in (one, two):
        for name in ("rows", "seconds"):
            state.pop(name)
    torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


# -- a step that never waits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "changes"), [case for case in CASES if "warmup" not in case[1]], ids=str)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_device(family, changes):
    training, dealt = training_of(family, changes, device=GPU)
    training.recorded = None
    training.step(dealt(0))  # libraries start
    later = [dealt(step) for step in range(1, 4)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        for batch in later:
            training.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_that_reads_the_device_is_played_and_said():
    """After a capture that failed, as after none."""
    ends = []
    for recorded in (False, True):
        training, dealt = training_of("mlp", {}, device=GPU)
        reading = Term("reading", "generator", lambda round: round.fake_logits * float(round.fake_logits[0].detach()))
        training.game = dataclasses.replace(training.game, terms=(reading,))
        if not recorded:
            training.recorded = None
            rows = played(training, dealt, 8)
        else:
            with pytest.warns(RuntimeWarning, match="not recorded as CUDA graphs"):
                assert played(training, dealt, 8) == rows
        ends.append(learnt(training))
    torch.testing.assert_close(*ends, rtol=0, atol=0)
