"""What rank 0 measures at each report of a training: pictures, variety and quality of samples, alarms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganlib import device as devices
from ganlib import health, shards
from ganlib.config import Params
from ganlib.data._spec import Spec
from ganlib.game import Batch, Deal, Game, Sample, discriminate, map_tensors, sample_of, tensors_of
from ganlib.losses import LOSSES
from ganlib.noise import Noise
from ganlib.reference import Reference

__all__ = ["Watch"]

PREVIEWS = 64
JUDGED = 256
"""of each split, at most: examples shown to the discriminator at each report"""
_KEPT = 128  # row groups, of 2 MiB, that hold a few examples of each class


class Watch:
    """Measures the EMA generator at each report: pictures of fixed deals, diversity, quality, alarms."""

    def __init__(
        self,
        params: Params,
        game: Game,
        ema: nn.Module,
        spec: Spec,
        prepared: Path,
        reference: str | Path | None,
        place: Callable[[Tensor], Tensor],
        device: torch.device,
    ):
        self.params, self.game, self.ema, self.spec, self.place = params, game, ema, spec, place
        self.device = device
        self.loss = LOSSES[params.game.loss]
        self.reference = Reference.load(reference) if reference and params.train.quality_samples else None
        self.fixed = self._deal(prepared, "test", PREVIEWS, "preview", small=not spec.given)
        self.given = self._given(prepared, "test", PREVIEWS)
        size = min(JUDGED, *(spec.counts[split] for split in shards.SPLITS), max(8, 2**27 // spec.size))
        size = math.ceil(size / game.group) * game.group
        self.known, self.held_out = (
            self._deal(prepared, split, size, split, by_class=False) for split in ("train", "test")
        )
        self.judged: Callable[[], Iterator[Deal]] = lambda: iter([self.fixed])
        if self.reference is not None:
            # of test examples where samples are made of examples: the answers to others have been seen
            split = "test" if spec.given else "train"
            self.judged = lambda: self._deals(prepared, split, params.train.quality_samples, "quality", small=True)
            if not spec.given:  # noise is held, but given images would be too many
                deals = list(self.judged())
                self.judged = lambda: iter(deals)
        reals = torch.cat([spec.kind.glance(sample_of(deal.real)) for deal in self.judged()])
        self.varied = reals[health.evenly_spaced(len(reals))]
        self.monitor, self.last = health.Monitor(params.train.health), dict[str, float]()

    def _deal(self, prepared: Path, split: str, size: int, purpose: str, **how: bool) -> Deal:
        return _joined(list(self._deals(prepared, split, size, purpose, **how)))

    def _deals(
        self, prepared: Path, split: str, size: int, purpose: str, *, small: bool = False, by_class: bool = True
    ) -> Iterator[Deal]:
        """Deals of `size` stored examples in all, repeated if there are fewer; they are stored in random order.

        `small` reduces the reals to what statistics of variety need (`glance`). Pictures are ordered `by_class`; for
        measurements, examples stay as mixed as in training.
        """
        kind = self.spec.kind
        data = shards.stored(prepared, split, limit=size, keep=_KEPT)
        if self.spec.attributes:
            data["attributes"] = self.spec.standardise(data["attributes"])
        rows = _rows(data, size, by_class=by_class)
        for part in self._chunks(size):
            chosen = {name: column[rows[part]] for name, column in data.items()}
            decoded = {name: kind.decode(self.spec.sample, name, chosen[name]) for name in self.spec.parts}
            noise = Noise(self.params.seed, purpose, size=size, rows=part)
            deal = self.game.deal(Batch(chosen | decoded, noise, training=False))
            yield dataclasses.replace(deal, real=map_tensors(kind.glance, deal.real)) if small else deal

    def _given(self, prepared: Path, split: str, size: int) -> dict[str, Tensor]:
        """The given parts of the examples of a deal by class."""
        spec, data = self.spec, shards.stored(prepared, split, limit=size, keep=_KEPT)
        rows = _rows(data, size, by_class=True)
        return {name: spec.kind.decode(spec.sample, name, data[name][rows]) for name in spec.given}

    def _chunks(self, size: int) -> list[slice]:
        """Slices of `size` examples that any device holds, activations included."""
        group, most = self.game.group, devices.examples_at_a_time(self.device, self.spec.size)
        most = max(1, most // group) * group
        return [slice(start, min(start + most, size)) for start in range(0, size, most)]

    @torch.inference_mode()
    def _play(self, deal: Deal) -> Sample:
        """Samples of the moving average for a deal, on the CPU."""
        ema = self.ema.eval()
        made = []
        for rows in self._chunks(len(tensors_of(deal.inputs)[0])):
            inputs = map_tensors(lambda x, rows=rows: self.place(x[rows]), deal.inputs)  # type: ignore[misc]
            cond = None if deal.cond is None else self.place(deal.cond[rows])
            made.append(map_tensors(lambda x: x.float().cpu(), ema(inputs, cond)))
        return _concatenated(made)

    @torch.inference_mode()
    def _logits(self, deal: Deal, sample: Sample, step: int) -> Tensor:
        """The discriminator's logits of a sample under the deal's condition, on the CPU."""
        discriminator, size, logits = self.game.discriminator.eval(), len(tensors_of(sample)[0]), []
        for rows in self._chunks(size):
            part = map_tensors(lambda x, rows=rows: self.place(x[rows]), sample)  # type: ignore[misc]
            cond = None if deal.cond is None else self.place(deal.cond[rows])
            noise = Noise(self.params.seed, "judged", step, size=size, rows=rows, device=self.device)
            logits.append(discriminate(self.game, part, cond, noise).logits)
        discriminator.train()
        return torch.cat(logits).cpu()

    def assess(self, row: dict[str, float], past: list[dict[str, float]], step: int) -> tuple[str, bool]:
        """Add what is measured at this step to the row, which follows those of the `past`.

        Returns what has gone wrong for good, if anything has, and whether something may have.
        """
        cfg = self.params.train.health
        try:
            health.check(row, row["kimg"])
        except health.Diverged as error:
            return str(error), True
        if "fit_kimg" in row:  # there is no game to be judged
            return "", False
        row |= self._measure(step)
        if not past or past[-1] is not self.last:  # at the start, after a resume, or after a rollback
            self.monitor = health.Monitor(cfg)
            for earlier in past:
                self.monitor.update(earlier)
        monitor, self.last = self.monitor, row
        alarms = monitor.update(row)
        row["health/alarms"] = len(alarms)
        return "; ".join(a.message for a in alarms) if cfg.policy != "warn" else "", monitor.suspects or bool(alarms)

    def _measure(self, step: int) -> dict[str, float]:
        """Variety of fakes relative to the reals of their deal, the discriminator's output for reals that it was not
        trained on, and quality where a reference is at hand."""
        small, features, labels = [], [], []
        for deal in self.judged():
            fakes = sample_of(self._play(deal))
            small.append(self.spec.kind.glance(fakes))
            if self.reference is not None:
                features.append(self.reference.space.extract(fakes))
            if self.game.classes and deal.cond is not None:
                labels.append(deal.cond)
        pictures = torch.cat(small)
        varied = pictures[health.evenly_spaced(len(pictures))]
        known, unknown = (self._logits(deal, deal.real, step) for deal in (self.known, self.held_out))
        of_fakes = self._logits(self.held_out, self._play(self.held_out), step)
        copies = {}
        if not self.spec.kind.DUPLICATES:  # else copies are no fault; `quality` knows how common they are
            distinct = self.varied.unique(dim=0)  # of few examples some were taken again
            copies["nearest_neighbour_ratio"] = health.nearest_neighbour_ratio(varied, distinct)
        row = {
            "diversity": health.diversity(varied, self.varied),
            **copies,
            "sign/held_out": float(self.loss.signs(unknown, of_fakes)[0].mean()),
            "overfitting": health.overfitting(known, unknown, of_fakes),
        }
        if self.reference is not None:
            row |= self.reference.quality(torch.cat(features), torch.cat(labels) if labels else None)
        return row

    def picture(self, path: Path) -> None:
        """Draw the fixed deal's fakes; between what was given and what is real, where something was given."""
        shown = {**self.given, "sample": sample_of(self._play(self.fixed))}
        if self.given and self.spec.kind.ALIGNED:
            shown["target"] = sample_of(self.fixed.real)
        self.spec.kind.preview(self.spec.sample, shown, 4 if self.given else 8).save(path)


def _joined(deals: list[Deal]) -> Deal:
    """Deals one after the other."""
    conds = [deal.cond for deal in deals if deal.cond is not None]
    return Deal(
        _concatenated([deal.inputs for deal in deals]),
        _concatenated([deal.real for deal in deals]),
        torch.cat(conds) if conds else None,
    )


def _concatenated(samples: list[Any]) -> Sample:
    """Samples one after the other."""
    if isinstance(samples[0], dict):
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    return torch.cat(samples)


def _rows(data: dict[str, Any], size: int, *, by_class: bool) -> Tensor:
    """`size` rows of the data, repeated if there are fewer; their stored order is random."""
    rows = torch.arange(size) % len(data["sample"])
    return rows[data["label"][rows].argsort(stable=True)] if by_class and "label" in data else rows
