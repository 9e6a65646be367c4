"""Stage `reference`: features of the prepared data, and a classifier of them. `python -m pipelines.reference`."""

from __future__ import annotations

import time
from typing import Any

from ganlib import reference, shards
from ganlib.config import Params
from pipelines._stage import PREPARED, REFERENCE, atomic_folder, main

__all__ = ["stage"]


def stage(params: Params) -> None:
    """Write `data/reference`, from which no later stage needs to compute features of real data again."""
    cfg, began = params.reference, time.perf_counter()
    train, test = (shards.stored(PREPARED, split, limit=cfg.max_samples) for split in ("train", "test"))
    with atomic_folder(REFERENCE) as folder:
        about = reference.build(folder, shards.read_spec(PREPARED), train, test, cfg, params.seed)
    _print_summary(about, time.perf_counter() - began)


def _print_summary(about: dict[str, Any], seconds: float) -> None:
    examples = ", ".join(f"{count} {split}" for split, count in about["examples"].items())
    print(f"{REFERENCE}: features of {examples} examples in {seconds:.1f} s")
    for name, space in about["spaces"].items():
        at = f" at {'x'.join(map(str, space['size']))} px" if space["size"] else ""
        print(f"  {name}{at}: {space['features']} {space['column']}")
    if about["classifier"]:
        print(f"  in-domain classifier: {about['classifier']['test_accuracy']:.1%} right on the test split")


if __name__ == "__main__":
    main(stage)
