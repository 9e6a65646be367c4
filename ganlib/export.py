"""A trained generator as two files that need no trust: `generator.safetensors` and `generator.json`.

The JSON names a family of `ganlib/models` and its configuration; both are validated and neither holds code.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ganlib import registry
from ganlib._config import Config
from ganlib.data._spec import Spec
from ganlib.game import Game, Noise

__all__ = ["Generator", "load_generator", "save_generator"]

FORMAT = 1


def save_generator(
    directory: str | Path,
    module: nn.Module,
    *,
    network: Config,
    spec: Spec,
    about: dict[str, Any] | None = None,
) -> None:
    """Write `module`, the generator of the family that `network` configures. `about` is kept as it is."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, directory / "generator.safetensors")
    described = {
        "format": FORMAT,
        "network": network.model_dump(mode="json"),
        "spec": dataclasses.asdict(spec),
        "about": about or {},
    }
    (directory / "generator.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Generator:
    """A generator ready to sample from."""

    game: Game
    spec: Spec
    about: dict[str, Any]
    device: torch.device

    @property
    def conditional(self) -> bool:
        return self.game.classes > 0

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        label: int | Tensor | None = None,
        truncation: float | None = None,
        batch: int = 100,
    ) -> dict[str, Tensor]:
        """`n` samples under `"sample"`, float in [−1, 1], `[n, *spec.shape]`; if conditional, `"label"` int64 `[n]`.

        A function of (seed, n, label, truncation), to rounding whatever `batch` is. Without `label` the classes
        take turns. Raises ValueError for a label that the data do not have or a truncation that is not positive.
        """
        if n < 1:
            raise ValueError(f"n: at least 1 is wanted, found {n}")
        if truncation is not None and not truncation > 0:
            raise ValueError(f"truncation: a number above 0 is wanted, found {truncation}")
        labels = self._labels(n, label)
        inputs = self.game.latent(Noise(seed, "sample", size=n), truncation)
        if isinstance(inputs, dict):
            raise ValueError("this family's generator needs inputs, not noise alone")
        made = []
        for start in range(0, n, batch):
            rows = slice(start, start + batch)
            cond = None if labels is None else labels[rows].to(self.device)
            made.append(self.game.generator(inputs[rows].to(self.device), cond).float().cpu())
        samples = {"sample": torch.cat(made)}
        return samples if labels is None else {**samples, "label": labels}

    def _labels(self, n: int, label: int | Tensor | None) -> Tensor | None:
        classes = self.game.classes
        if not self.conditional:
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
        if described["format"] != FORMAT:
            raise ValueError(f"format {FORMAT} is wanted, found {described['format']}")
        spec = Spec.from_json(json.dumps(described["spec"]))
        family = registry.load("models", described["network"]["family"])
        game: Game = family.build(family.Config.model_validate(described["network"]), spec)
        game.generator.load_state_dict(load_file(directory / "generator.safetensors"))
    except FileNotFoundError as error:
        raise ValueError(f"{directory}: not a generator: {error.filename or error} is missing") from error
    except Exception as error:
        raise ValueError(f"{directory}: not a generator: {' '.join(str(error).split())}") from error
    game.generator.to(device).eval()
    return Generator(game, spec, described["about"], torch.device(device))
