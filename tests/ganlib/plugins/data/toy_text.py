"""Strings over an alphabet, one of which is given and continued by the other. For tests of what a kind may be.

Stored as uint8 `[length]`, tokens by number and 0 for none; networks see one-hot tokens `[length, alphabet]`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch.nn.functional as F
from PIL import Image

from ganlib._config import Config as _Base
from ganlib.data._kind import Part

MODALITY = "toy_text"
LENGTHS = {"prompt": 3, "sample": 5}


class Config(_Base):
    kind: Literal["toy_text"] = "toy_text"
    alphabet: str = ""


def scan(cfg, payloads):
    return cfg.model_copy(
        update={"alphabet": "".join(sorted({letter for pair in payloads for letter in "".join(pair)}))}
    )


def parts(cfg):
    return {name: Part((length, len(cfg.alphabet) + 1), (length,)) for name, length in LENGTHS.items()}


def encode(cfg, pair):
    return {name: take(cfg, name, text) for name, text in zip(LENGTHS, pair, strict=True)}


def take(cfg, part, raw):
    if len(raw) > LENGTHS[part] or not set(raw) <= set(cfg.alphabet):
        raise ValueError(f"{raw!r} is too long or has unknown letters")
    return np.array([cfg.alphabet.index(letter) + 1 for letter in raw] + [0] * (LENGTHS[part] - len(raw)), "u1")


def decode(cfg, part, stored):
    return F.one_hot(stored.long(), len(cfg.alphabet) + 1).float()


def quantise(cfg, samples):
    return samples.argmax(2).byte()


def present(cfg, part, stored):
    return ["".join(cfg.alphabet[token - 1] for token in row if token) for row in stored]


def naive(cfg, given):
    return F.pad(given["prompt"], (0, 0, 0, LENGTHS["sample"] - LENGTHS["prompt"]))


def preview(cfg, samples, columns):
    return Image.new("RGB", (8 * columns, 8 * len(samples)))


def describe(cfg, stored):
    return {"letters": len(cfg.alphabet)}


def tiny():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), 8)) for _ in range(90)]
    return Config(), [(text[:3], text[3:]) for text in dict.fromkeys(texts)]
