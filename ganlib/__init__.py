"""ganlib: generative adversarial networks as games, on plain PyTorch.

This package imports neither Ray, DVC nor MLflow; the package `pipelines` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ganlib.export import Generator

__version__ = "0.1.0"
__all__ = ["load"]


def load(source: str | Path, device: str | torch.device | None = None) -> Generator:
    """The generator at `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or in a folder that `save_generator` wrote.

        generator = ganlib.load("models:/ganlib-mnist@champion")
        samples = generator.sample(16, seed=1, label="3")["sample"]  # float [16, *spec.shape], as networks see it
        generator.present(samples)                                   # uint8 [16, 28, 28, 1], as `predict` gives it
        generator.game.generator                                     # the `torch.nn.Module`
        generator.spec, generator.spec.kind                          # what the data are; the functions of their kind

    Sample i of a seed is a function of (seed, i), independent of all others: `generator.sample(n, rows=slice(…))`
    gives some of a long row, `generator.sample_rows(seeds, indices)` any, of several seeds at once. `ganlib sample` and
    the registered model's `predict` give the same ones.

    Without a `device` it is this process's GPU, or the CPU. Versions are looked for in the store of
    `MLFLOW_TRACKING_URI`, or of `params.yaml` in the working folder. Raises ValueError for what is no generator, and
    StageError, a RuntimeError, where the store does not have it; each names what was asked for.
    """
    from ganlib.device import default_device
    from ganlib.export import load_generator

    if not str(source).startswith("models:/"):
        return load_generator(source, device or default_device())
    try:
        from pipelines.loading import default_store, load_version
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{source}: {error.name} is not installed, so no registry can be read; expected a generator's folder"
        ) from error
    return load_version(default_store(), str(source), device or default_device())
