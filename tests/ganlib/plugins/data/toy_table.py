"""A table: a row of floats and of one category, of which equal ones are data. For tests of what a kind of data may be.

Stored as float64 `[columns]`, categories by number; networks see numbers standardised and categories one-hot.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from ganlib._config import Config as _Base
from ganlib.data._kind import Part

MODALITY = "toy_table"
DUPLICATES = True


class Config(_Base):
    kind: Literal["toy_table"] = "toy_table"
    columns: tuple[str, ...] = ("weight", "height", "colour")
    """numbers first, the category last; this order is the order of all arrays"""
    categories: tuple[str, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()


def scan(cfg, payloads):
    return cfg.model_copy(update={"categories": tuple(sorted({row[cfg.columns[-1]] for row in payloads}))})


def parts(cfg):
    return {"sample": Part((len(cfg.columns) - 1 + len(cfg.categories),), (len(cfg.columns),), "float64")}


def encode(cfg, row):
    *numbers, category = (row[name] for name in cfg.columns)
    return {"sample": np.array([*map(float, numbers), cfg.categories.index(category)])}


def take(cfg, part, row):
    return encode(cfg, row)[part]


def settle(cfg, rows: Iterable):
    table = np.concatenate([chunk["sample"] for chunk in rows])[:, :-1]
    return cfg.model_copy(update={"means": tuple(table.mean(0).tolist()), "stds": tuple(table.std(0).tolist())})


def decode(cfg, part, stored):
    numbers = (stored[:, :-1] - torch.tensor(cfg.means).to(stored)) / torch.tensor(cfg.stds).to(stored)
    return torch.cat([numbers.float(), F.one_hot(stored[:, -1].long(), len(cfg.categories)).float()], 1)


def quantise(cfg, samples):
    count = len(cfg.columns) - 1
    numbers = samples[:, :count].double() * torch.tensor(cfg.stds).double() + torch.tensor(cfg.means).double()
    return torch.cat([numbers, samples[:, count:].argmax(1, keepdim=True).double()], 1)


def present(cfg, part, stored):
    table = pd.DataFrame(stored[:, :-1], columns=list(cfg.columns[:-1]))
    return table.assign(**{cfg.columns[-1]: [cfg.categories[int(code)] for code in stored[:, -1]]})


def preview(cfg, samples, columns):
    return Image.new("RGB", (8 * columns, 8 * len(samples)))


def describe(cfg, stored):
    return {"columns": dict(zip(cfg.columns, stored["sample"].mean(0).tolist(), strict=True))}


def tiny():
    rng = np.random.default_rng(0)
    rows = [{"weight": rng.normal(), "height": rng.normal() * 3 + 10, "colour": "rgb"[i % 3]} for i in range(60)]
    return Config(), [*rows, *rows[:10]]
