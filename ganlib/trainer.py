"""Training, the same for every family, every Ray worker, every Tune trial and a debug run in this process.

`train(params, report)` plays `adversarial_step` until `train.kimg` thousand real samples were seen. Its only
outlet is `report(row, folder)`. Random draws and data order are functions of (seed, step), and ranks share one
global batch, so a resume continues bit for bit, and any number of ranks computes what one would.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganlib import checkpoint, health, ranks, registry, shards
from ganlib.config import ConfigError, Params, PlayerConfig
from ganlib.data._spec import Spec
from ganlib.export import save_generator
from ganlib.game import Batch, Deal, Game, Learner, Noise, Term, adversarial_step, each, leaves, seed_of
from ganlib.loader import Loader
from ganlib.losses import LOSSES
from ganlib.models._layers import BatchNorm
from ganlib.penalties import PENALTIES
from ganlib.reference import Reference

__all__ = ["Plan", "Report", "build_game", "plan", "train"]

Report = Callable[[dict[str, float], Path | None], None]
"""`(row, folder)`, called on every rank. `folder`, now and then and on rank 0 alone, holds `checkpoint.pt`,
`generator/` (the average, exported) and `samples.png`; it is gone after the call."""

PREVIEWS = 64


@dataclass(frozen=True)
class Plan:
    """When things happen, in steps."""

    steps: int
    images_per_step: int
    report_every: int
    checkpoint_every: int


def plan(params: Params, world: int) -> Plan:
    """Raises ConfigError for a batch that does not divide."""
    cfg = params.train
    if cfg.batch % (world * cfg.accumulate):
        raise ConfigError(
            f"train.batch: {cfg.batch} does not divide into {world} workers x {cfg.accumulate} microbatches "
            f"(scale.num_workers, train.accumulate); a multiple of {world * cfg.accumulate} is wanted"
        )
    images = cfg.batch * params.game.discriminator_steps
    report_every = max(1, round(cfg.report_kimg * 1000 / images))
    return Plan(
        steps=max(1, math.ceil(cfg.kimg * 1000 / images)),
        images_per_step=images,
        report_every=report_every,
        checkpoint_every=report_every * max(1, round(cfg.checkpoint_kimg / cfg.report_kimg)),
    )


def build_game(params: Params, spec: Spec) -> Game:
    """The chosen family on these data, with the penalties of `params`. Raises ConfigError if they do not fit."""
    cfg = params.game
    where = f"models.{params.model} on data '{params.data}'"
    family = registry.load("models", cfg.network.family)  # type: ignore[attr-defined]
    if spec.modality != family.MODALITY:
        raise ConfigError(f"{where}: the family is for {family.MODALITY} data, these are {spec.modality}")
    try:
        game: Game = family.build(cfg.network, spec)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if cfg.penalties and any(isinstance(layer, BatchNorm) for layer in game.discriminator.modules()):
        raise ConfigError(
            f"{where}: penalties ({', '.join(cfg.penalties)}) need a discriminator without BatchNorm, "
            "which mixes the examples of a batch; set network.discriminator_norm to none or spectral"
        )
    penalties = tuple(
        Term(name, "discriminator", PENALTIES[name], penalty.weight, penalty.every)
        for name, penalty in cfg.penalties.items()
    )
    return dataclasses.replace(game, terms=game.terms + penalties)


def train(
    params: Params,
    report: Report,
    *,
    prepared: str | Path,
    reference: str | Path | None = None,
    resume: str | Path | None = None,
) -> None:
    """Train on the shards in `prepared`, on every rank of the default process group, or alone without one.

    With `reference`, rows carry the quality of `train.quality_samples` fakes. `resume` is a folder once reported.
    Raises ConfigError before any work if `params` do not fit the data or the ranks, `health.Diverged` when
    numbers stop being numbers.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    cfg, timing, spec = params.train, plan(params, world), shards.read_spec(Path(prepared))

    torch.manual_seed(seed_of(params.seed, "weights"))  # the same first weights on every rank
    game = build_game(params, spec)
    layout = torch.channels_last if cfg.channels_last else torch.preserve_format
    for module in (game.generator, game.discriminator):
        module.to(device, memory_format=layout)  # type: ignore[call-overload]
    average = copy.deepcopy(game.generator).requires_grad_(False)
    generator = _learner(game.generator, params.game.generator, world, cfg.compile)
    discriminator = _learner(game.discriminator, params.game.discriminator, world, cfg.compile)

    loader = Loader(Path(prepared), "train", batch=cfg.batch, seed=params.seed, memory_mb=cfg.memory_mb)
    microbatches = world * cfg.accumulate

    def place(x: Tensor) -> Tensor:
        return x.to(device, memory_format=layout if x.dim() == 4 else torch.preserve_format, non_blocking=True)

    def batch(turn: int, part: int) -> Batch:
        """Part `part` of the global batch of a discriminator's turn."""
        size = cfg.batch // microbatches
        data = {k: place(v) for k, v in loader.batch_at(turn, rank=part, world=microbatches).items()}
        rows = slice(part * size, (part + 1) * size)
        return Batch(data, Noise(params.seed, "turn", turn, size=cfg.batch, rows=rows, device=device))

    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "rows": []}
    parts: dict[str, Any] = {
        "generator": game.generator,
        "discriminator": game.discriminator,
        "average": average,
        "generator_optimizer": generator.optimizer,
        "discriminator_optimizer": discriminator.optimizer,
    }
    if resume is not None:
        saved = checkpoint.load(resume)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        state = {name: saved[name] for name in state}

    autocast: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    if cfg.amp:

        def autocast() -> contextlib.AbstractContextManager[object]:
            return torch.autocast(device.type, dtype=torch.bfloat16)

    watch = _Watch(params, game, average, spec, Path(prepared), reference, place) if rank == 0 else None
    decay = 0.5 ** (timing.images_per_step / max(params.game.ema_halflife_kimg * 1000, 1e-9))
    sums: dict[str, Tensor] = {}
    began, began_at = time.perf_counter(), state["step"]
    for step in range(state["step"], timing.steps):
        torch.manual_seed(seed_of(params.seed, "modules", step, rank))  # dropout and the like
        first = step * params.game.discriminator_steps
        turns = [
            [batch(first + i, rank * cfg.accumulate + part) for part in range(cfg.accumulate)]
            for i in range(params.game.discriminator_steps)
        ]
        stats = adversarial_step(
            game,
            LOSSES[params.game.loss],
            generator,
            discriminator,
            turns,
            step=step,
            kimg=step * timing.images_per_step / 1000,
            autocast=autocast,
        )
        _average_weights(average, game.generator, decay)
        for name, amount in stats.items():
            sums.setdefault(name, torch.zeros(2, device=device)).add_(torch.stack([amount, torch.ones_like(amount)]))
        done = step + 1
        last = done == timing.steps
        if done % timing.report_every and not last:
            continue

        elapsed = time.perf_counter() - began
        state["step"], state["seconds"] = done, state["seconds"] + elapsed
        kimg = done * timing.images_per_step / 1000
        row = {
            "kimg": kimg,
            "seconds": state["seconds"],
            "images_per_second": (done - began_at) * timing.images_per_step / elapsed,
            **_means(sums, world),
        }
        health.check(row, kimg)
        if watch is not None:
            row |= watch.measure()
        state["rows"] = [*state["rows"], row]
        with tempfile.TemporaryDirectory(prefix="ganlib-") as scratch:
            folder = None
            if watch is not None and (last or done % timing.checkpoint_every == 0):
                folder = Path(scratch)
                checkpoint.save(folder, {**{k: v.state_dict() for k, v in parts.items()}, **state})
                about = {"kimg": kimg, "seed": params.seed, "model": params.model, "data": params.data}
                save_generator(folder / "generator", average, network=params.game.network, spec=spec, about=about)
                watch.picture(folder / "samples.png")
            report(row, folder)
        sums = {}
        began, began_at = time.perf_counter(), done


def _learner(module: nn.Module, cfg: PlayerConfig, world: int, compile: bool) -> Learner:
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.optimizer]
    trained = [p for p in module.parameters() if p.requires_grad]
    # the learning rate is set at every step, from `cfg.lr`
    optimizer = kind(trained, lr=0.0, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True)
    return Learner(
        module,
        optimizer,
        cfg.lr,
        cfg.clip_norm,
        average_gradients=ranks.average if world > 1 else None,
        compiled=torch.compile(module) if compile else None,
    )


def _means(sums: dict[str, Tensor], world: int) -> dict[str, float]:
    """Means over ranks and over the steps that had the statistic; `sums` holds (sum, count) of each."""
    flat = torch.stack(list(sums.values()))
    if world > 1:
        flat = ranks.total(flat)
    return dict(zip(sums, (flat[:, 0] / flat[:, 1]).tolist(), strict=True))


@torch.no_grad()
def _average_weights(average: nn.Module, module: nn.Module, decay: float) -> None:
    """average ← decay·average + (1 − decay)·module, running statistics of norms included."""
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for mine, theirs in zip(average.buffers(), module.buffers(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


class _Watch:
    """Looks at the averaged generator now and then: pictures of fixed deals, diversity, quality."""

    def __init__(
        self,
        params: Params,
        game: Game,
        average: nn.Module,
        spec: Spec,
        prepared: Path,
        reference: str | Path | None,
        place: Callable[[Tensor], Tensor],
    ):
        self.game, self.average, self.spec, self.place = game, average, spec, place
        self.reference = Reference.load(reference) if reference and params.train.quality_samples else None
        self.fixed = self._deal(prepared, "test", PREVIEWS, Noise(params.seed, "preview", size=PREVIEWS))
        if self.reference is not None:
            size = params.train.quality_samples
            self.judged = self._deal(prepared, "train", size, Noise(params.seed, "quality", size=size))

    def _deal(self, prepared: Path, split: str, size: int, noise: Noise) -> Deal:
        """A deal of stored examples, as many as `size` if there are, in turns; they are stored in random order."""
        data = shards.read(prepared, split, limit=size)
        rows = torch.arange(size) % len(data["sample"])
        if "label" in data:  # a picture is easier to read class by class
            rows = rows[data["label"][rows].argsort(stable=True)]
        data = {name: column[rows] for name, column in data.items()}
        data["sample"] = registry.load("data", self.spec.kind).decode(data["sample"])
        return self.game.deal(Batch(data, noise))

    @torch.inference_mode()
    def _play(self, deal: Deal) -> Tensor:
        """What the average makes of a deal, on the CPU, in chunks that any device holds."""
        self.average.eval()
        chunks = []
        for start in range(0, len(leaves(deal.inputs)[0]), 100):
            rows = slice(start, start + 100)
            inputs = each(lambda x, rows=rows: self.place(x[rows]), deal.inputs)  # type: ignore[misc]
            cond = None if deal.cond is None else self.place(deal.cond[rows])
            chunks.append(leaves(self.average(inputs, cond))[0].float().cpu())
        return torch.cat(chunks)

    def measure(self) -> dict[str, float]:
        """Diversity of the fixed deal's fakes against its reals, and quality where a reference is at hand."""
        row = {"diversity": health.diversity(self._play(self.fixed), leaves(self.fixed.real)[0])}
        if self.reference is not None:
            samples = {"sample": self._play(self.judged)}
            if self.judged.cond is not None:
                samples["label"] = self.judged.cond
            row |= self.reference.quality(samples)
        return row

    def picture(self, path: Path) -> None:
        """Draw the fixed deal's fakes."""
        preview = registry.load("data", self.spec.kind).preview
        preview(self._play(self.fixed), columns=8).save(path)
