"""A trained generator as two files that need no trust: `generator.safetensors` and `generator.json`.

The JSON names a family of `ganlib/models` and its configuration; both are validated and neither holds code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ganlib import registry
from ganlib._config import Config
from ganlib.data._spec import Spec
from ganlib.game import Batch, Game, Sample, map_tensors, sample_of, tensors_of
from ganlib.noise import Noise

__all__ = ["Generator", "load_generator", "save_generator"]

FORMAT = 2
_ATTRIBUTES = "attributes of real examples"  # no module's state can have a name with spaces


def save_generator(
    directory: str | Path,
    module: nn.Module,
    *,
    network: Config,
    spec: Spec,
    attributes: Tensor | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write `module`, the generator of the family that `network` configures. `about` is kept as it is.

    `attributes`, `[M, A]`, are some that real examples have, for samples of which none are asked.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    if attributes is not None:
        tensors[_ATTRIBUTES] = attributes.float().contiguous()
    save_file(tensors, directory / "generator.safetensors")
    described = {
        "format": FORMAT,
        "network": network.model_dump(mode="json"),
        "spec": json.loads(spec.to_json()),
        "about": about or {},
    }
    # in the order in which it is: a configuration may depend on it
    (directory / "generator.json").write_text(json.dumps(described, indent=2) + "\n")


@dataclass(frozen=True)
class Generator:
    """A generator ready to sample from."""

    game: Game
    spec: Spec
    about: dict[str, Any]
    device: torch.device
    attributes: Tensor | None = None
    """`[M, A]`, of real examples"""

    @property
    def conditional(self) -> bool:
        return self.game.classes > 0

    @property
    def translates(self) -> bool:
        """Whether it makes samples of parts that it is given."""
        return bool(self.spec.given)

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: int | Tensor | None = None,
        attributes: Tensor | None = None,
        truncation: float | None = None,
        batch: int = 100,
        rows: slice = slice(None),
    ) -> dict[str, Tensor]:
        """`n` samples, or these `rows` of them, under `"sample"`, float, `[n, *spec.shape]`; if
        conditional, `"label"` int64 `[n]` or `"attributes"` `[n, A]`.

        Sample i is a function of (seed, i, condition, truncation), to rounding for any `n` and `batch`. Without `label`
        the classes take turns; without `attributes`, `[A]` or `[n, A]`, those of real examples do. Raises ValueError
        for a condition that the data do not have, a truncation that is not positive, or a generator that translates.
        """
        if n < 1:
            raise ValueError(f"n: at least 1 is wanted, found {n}")
        if truncation is not None and not truncation > 0:
            raise ValueError(f"truncation: a number above 0 is wanted, found {truncation}")
        if self.game.latent is None:
            raise ValueError(f"this generator needs to be given {', '.join(self.spec.given)}")
        told = {name: cond[rows] for name, cond in self.conditions(n, label, attributes).items()}
        inputs = self.game.latent(Noise(seed, "sample", size=n, rows=rows), truncation)
        return {"sample": self._play(inputs, next(iter(told.values()), None), batch), **told}

    def conditions(
        self, n: int, label: int | Tensor | None = None, attributes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What `n` samples are told, as `sample` has it. Raises ValueError as it does."""
        told = {"label": self._labels(n, label), "attributes": self._attributes(n, attributes)}
        return {name: cond for name, cond in told.items() if cond is not None}

    def translate(self, given: Mapping[str, Tensor], *, seed: int = 0, batch: int = 100, first: int = 0) -> Tensor:
        """What the generator makes of given parts, each `[N, *shape]` as networks see it: samples `[N, *spec.shape]`.

        The noise of an example depends on the seed and its place alone, which is `first` for the first. Raises
        ValueError for parts that are not like those it was trained on, or a generator that needs none.
        """
        if not self.translates:
            raise ValueError("this generator makes samples of noise: it is given nothing")
        n = self._check_given(given)
        if not n:
            return torch.zeros(0, *self.spec.shape)
        parts = []
        for start in range(0, n, batch):
            part = {name: x[start : start + batch] for name, x in given.items()}
            rows = slice(first + start, first + min(start + batch, n))
            noise = Noise(seed, "sample", size=rows.stop, rows=rows)
            unknown = torch.zeros(rows.stop - rows.start, *self.spec.shape)
            deal = self.game.deal(Batch({**part, "sample": unknown}, noise, training=False))
            parts.append(self._play(deal.inputs, deal.cond, batch))
        return torch.cat(parts)

    def _check_given(self, given: Mapping[str, Tensor]) -> int:
        """How many examples are given. Raises ValueError where they are not as the spec says."""
        if given.keys() != set(self.spec.given):
            raise ValueError(
                f"expected {', '.join(self.spec.given)} to be given, found {', '.join(given) or 'nothing'}"
            )
        for name, x in given.items():
            shape = self.spec.parts[name].shape
            if tuple(x.shape[1:]) != shape:
                raise ValueError(f"{name}: expected shape {list(shape)}, found {list(x.shape[1:])}")
        if len({len(x) for x in given.values()}) != 1:
            raise ValueError(f"as many of each are expected to be given, found {[len(x) for x in given.values()]}")
        return len(next(iter(given.values())))

    @torch.inference_mode()
    def _play(self, inputs: Sample, cond: Tensor | None, batch: int) -> Tensor:
        made = []
        for start in range(0, len(tensors_of(inputs)[0]), batch):
            rows = slice(start, start + batch)
            part = map_tensors(lambda x, rows=rows: x[rows].to(self.device), inputs)  # type: ignore[misc]
            told = None if cond is None else cond[rows].to(self.device)
            made.append(sample_of(self.game.generator(part, told)).float().cpu())
        return torch.cat(made)

    def _attributes(self, n: int, asked: Tensor | None) -> Tensor | None:
        size = self.game.attributes
        if not size:
            if asked is not None:
                raise ValueError("attributes: this generator is not told any")
            return None
        if asked is None:
            assert self.attributes is not None
            return self.attributes[torch.arange(n) % len(self.attributes)]
        if asked.shape[-1] != size:
            raise ValueError(
                f"attributes: {size} are wanted ({', '.join(self.spec.attributes)}), found {asked.shape[-1]}"
            )
        return asked.float().expand(n, size)

    def _labels(self, n: int, label: int | Tensor | None) -> Tensor | None:
        classes = self.game.classes
        if not classes:
            if label is not None:
                raise ValueError("label: this generator is not conditional")
            return None
        labels = torch.arange(n) % classes if label is None else torch.as_tensor(label).expand(n).long()
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            raise ValueError(f"label: 0 to {classes - 1} is wanted, found {label}")
        return labels


def load_generator(directory: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Load what `save_generator` wrote. Raises ValueError, naming the file, for what is not that."""
    directory = Path(directory)
    try:
        described = json.loads((directory / "generator.json").read_text())
        spec = _spec_of(described)
        family = registry.load("models", described["network"]["family"])
        game: Game = family.build(family.Config.model_validate(described["network"]), spec)
        tensors = load_file(directory / "generator.safetensors")
        attributes = tensors.pop(_ATTRIBUTES, None)
        game.generator.load_state_dict(tensors)
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: not a generator: {error.filename or error} is missing") from error
    except Exception as error:
        raise ValueError(f"{directory}: not a generator: {' '.join(str(error).split())}") from error
    game.generator.to(device).eval()
    return Generator(game, spec, described["about"], torch.device(device), attributes)


def _spec_of(described: dict[str, Any]) -> Spec:
    """Raises ValueError for a format that is not known here."""
    match described["format"]:
        case 1:
            return Spec.from_format_1(described["spec"])
        case 2:
            return Spec.from_json(json.dumps(described["spec"]))
        case other:
            raise ValueError(f"expected format 1 or {FORMAT}, found {other}")
