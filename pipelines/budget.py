"""How long to train, and whether to augment, where a data set's file leaves that to the number and size of examples.

The stage `prepare` resolves `budget` of the data set's file once and keeps the result in the data card; all stages that
train read it there. What `params.yaml` and the model's file say themselves has the last word.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ganlib.config import BudgetConfig, Params, override
from ganlib.data._spec import Spec
from pipelines._stage import PREPARED, TUNED, StageError

__all__ = ["BEST", "resolve_budget", "tuned", "with_budget"]

BEST = "best_params.yaml"
"""in the folder TUNED: the changes to parameters that the search found best"""
# Chosen by what tests/bench/budgets.py measured; docs/images.md has the figures.
EPOCHS = 45
"""passes over the training examples"""
LEAST_KIMG, MOST_KIMG = 60.0, 180.0
SIDE = 32
"""pixels; of larger images the budget is less in proportion, as a step takes time in proportion to their area"""
FEW = 10_000
"""training images below which the discriminator is shown augmented ones"""


def resolve_budget(cfg: BudgetConfig, spec: Spec) -> dict[str, Any]:
    """`kimg`, `augment` (settings of a model's file, or None) and `because`, for the data card."""
    examples, picture = spec.counts["train"], spec.kind.is_picture
    size = "x".join(map(str, spec.shape[1:])) if picture else ""
    because = "as the data set's file says"
    if "auto" in (cfg.kimg, cfg.augment):
        because = f"{examples:,} training examples{f' of {size} pixels' if size else ''}"
    kimg = cfg.kimg
    if kimg == "auto":
        side = math.sqrt(math.prod(spec.shape[1:])) if picture else SIDE
        of_examples = min(max(EPOCHS * examples / 1000, LEAST_KIMG), MOST_KIMG)
        kimg = float(max(1, round(of_examples * min(1.0, SIDE / side))))
    few = cfg.augment == "auto" and picture and not spec.given and examples < FEW
    augment = {"kind": "diffaugment"} if few else None
    return {"kimg": kimg, "augment": augment, "because": because}


def tuned(params: Params, *, quiet: bool = False) -> Params:
    """What the stage `train` trains: `params` with the changes that the stage `tune` found best, then `with_budget`."""
    changes = YAML(typ="safe").load((TUNED / BEST).read_text()) or {}
    return with_budget(override(params, changes), PREPARED, quiet=quiet)


def with_budget(params: Params, prepared: Path, *, quiet: bool = False) -> Params:
    """`params` with what the data card says where they leave it open; prints what that was, unless `quiet`.

    Raises StageError for a card without a budget.
    """
    try:
        budget = json.loads((prepared / "card.json").read_text(encoding="utf-8"))["budget"]
    except (OSError, ValueError, KeyError) as error:
        raise StageError(
            f"{prepared / 'card.json'}: no budget ({type(error).__name__}); run the stage prepare"
        ) from error
    said = []
    if params.train.kimg == "auto":
        params = params.model_copy(update={"train": params.train.model_copy(update={"kimg": budget["kimg"]})})
        said.append(f"train.kimg {budget['kimg']:g}")
    if budget["augment"] is not None and params.game.may_be_augmented:
        params = override(params, {"augment": budget["augment"]})
        said.append(f"augment {budget['augment']['kind']}")
    if said and not quiet:
        print(
            f"budget: {', '.join(said)} ({budget['because']}; params/datasets/{params.data}.yaml: budget)", flush=True
        )
    return params
