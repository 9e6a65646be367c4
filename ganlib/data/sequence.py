"""Lines of text as sequences of tokens: characters, words, or what another file of `ganlib/data/tokenisers` finds.

Stored as token numbers `[L]`: 0 ends a line and pads it, 1 is a token outside of the vocabulary. Networks see one-hot
tokens `[L, V]`, consumers get strings. A line of exactly L tokens has no end.

Equal lines are kept once. In a corpus repetitions are headings, formulas and copies of documents, and a model that sees
them often recites them (Lee et al. 2022); where frequencies are data, as of surnames, they are lost.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import AfterValidator, Field
from torch import Tensor

from ganlib import registry
from ganlib._config import Config as _Base
from ganlib.data import tokenisers
from ganlib.data._kind import Part, Stored

__all__ = [
    "END",
    "MODALITY",
    "UNKNOWN",
    "Config",
    "decode",
    "describe",
    "encode",
    "glance",
    "parts",
    "present",
    "preview",
    "quantise",
    "scan",
    "take",
    "tiny",
]

MODALITY = "sequence"

END, UNKNOWN = 0, 1
_RESERVED = 2
_TOKENISERS = tokenisers.__name__.partition(".")[2]  # imported, so that its files count as code of this kind
_QUANTILE = 0.995  # of the lines, that the length found by itself has room for; max_reject_share is 0.01 by default
_LONGEST = 512  # tokens, of a length found by itself
_GLANCE = 32  # numbers a token
_SHOWN = 160  # characters of a line in a picture
_PICTURE_WIDTH = 1600  # pixels


def _known(name: str) -> str:
    registry.load(_TOKENISERS, name)
    return name


class Config(_Base):
    kind: Literal["sequence"] = "sequence"
    tokeniser: Annotated[str, AfterValidator(_known)] = "characters"
    """a file of `ganlib/data/tokenisers`"""
    lowercase: bool = False
    length: Annotated[int, Field(ge=1, le=4096)] | None = None
    """tokens in a line, at most; None: as many as 99.5 % of the lines have, at most 512"""
    longer: Literal["reject", "cut"] = "reject"
    """what becomes of longer lines: rejects, or their beginnings"""
    vocabulary_size: Annotated[int, Field(ge=1, le=32_000)] = 5000
    """the most frequent tokens that are kept, at most; int16 has room for no more"""
    vocabulary: tuple[str, ...] = ()
    """found in the data: all tokens but the two reserved ones, sorted"""


def scan(cfg: Config, payloads: Iterable[Any]) -> Config:
    """The vocabulary and the length, of all lines, as the split of a line follows from its encoded form. So the names
    of tokens that occur in test lines alone are known; how often a token occurs is not kept."""
    room, counts, lengths = cfg.length or _LONGEST, Counter[str](), Counter[int]()
    for payload in payloads:
        tokens = _split(cfg, payload) if isinstance(payload, str) else []
        if tokens:
            lengths[min(len(tokens), _LONGEST)] += 1
        if len(tokens) <= room or cfg.longer == "cut":
            counts.update(tokens[:room])
    del counts[_tokeniser(cfg).UNKNOWN]
    # ties by name, so that the order of the lines changes nothing
    kept = sorted(counts, key=lambda token: (-counts[token], token))[: cfg.vocabulary_size]
    found = {"length": cfg.length or _quantile(lengths), "vocabulary": tuple(sorted(kept))}
    return cfg.model_copy(update=found)


def _quantile(lengths: Mapping[int, int]) -> int:
    wanted, lines = _QUANTILE * sum(lengths.values()), 0
    for length in sorted(lengths):
        lines += lengths[length]
        if lines >= wanted:
            return length
    return 1


def parts(cfg: Config) -> dict[str, Part]:
    assert cfg.length is not None, "the kind has seen no data"
    # unsigned, but torch cannot gather uint16 on every device
    dtype = "uint8" if _tokens(cfg) <= 256 else "int16"
    return {"sample": Part((cfg.length, _tokens(cfg)), (cfg.length,), dtype)}


def encode(cfg: Config, line: Any) -> Stored:
    """Raises ValueError for what is no text, has no token, or more than `length`, unless these are cut off."""
    assert cfg.length is not None
    if not isinstance(line, str):
        raise ValueError(f"expected a line of text, found {type(line).__name__}")
    tokens = _split(cfg, line)
    if not tokens:
        raise ValueError("the line is empty")
    if len(tokens) > cfg.length and cfg.longer == "reject":
        raise ValueError(
            f"{len(tokens)} tokens, sample.length has room for {cfg.length} (sample.longer: cut keeps the first)"
        )
    numbers, stored = _numbers(cfg.vocabulary), np.zeros(cfg.length, parts(cfg)["sample"].dtype)
    kept = tokens[: cfg.length]
    stored[: len(kept)] = [numbers.get(token, UNKNOWN) for token in kept]
    return {"sample": stored}


def take(cfg: Config, part: str, raw: Any) -> NDArray[Any]:
    """A line of text, alone in a file or in a row, or an empty one, which models make. Raises ValueError as `encode`
    does, and for a file of other than one line."""
    if isinstance(raw, Path):
        lines = [line for line in raw.read_bytes().decode("utf-8-sig").split("\n") if line.strip()]
        if len(lines) != 1:
            raise ValueError(f"expected one line of text, found {len(lines)}: each file is one example")
        (raw,) = lines
    if isinstance(raw, Mapping):
        if len(raw) != 1:
            raise ValueError(f"expected one column of text, found {len(raw)}")
        (raw,) = raw.values()
    if raw == "":
        return np.full(parts(cfg)[part].stored, END, parts(cfg)[part].dtype)
    return encode(cfg, raw)[part]


def decode(cfg: Config, part: str, stored: Tensor) -> Tensor:
    """Token numbers `[N, L]` to one-hot float32 `[N, L, V]`; the inverse of `quantise`."""
    return (stored.long()[..., None] == torch.arange(_tokens(cfg), device=stored.device)).float()


def quantise(cfg: Config, samples: Tensor) -> Tensor:
    """The most likely token at each place of `[N, L, V]`; nothing follows an end."""
    tokens = samples.argmax(2)
    tokens = tokens * ((tokens == END).cumsum(1) == 0)
    return tokens.to(torch.uint8 if _tokens(cfg) <= 256 else torch.int16)


def present(cfg: Config, part: str, stored: NDArray[Any]) -> list[str]:
    """Lines of text; what is not in the vocabulary as the tokeniser writes it."""
    tokeniser = _tokeniser(cfg)
    names = ["", tokeniser.UNKNOWN, *cfg.vocabulary]
    return [tokeniser.join([names[token] for token in row if token != END]) for row in stored.tolist()]


def glance(samples: Tensor) -> Tensor:
    """Tokens as at most 32 numbers each: a random projection, which keeps distances to a few per cent of a line's."""
    size = samples.shape[-1]
    if size <= _GLANCE:
        return samples
    projected: Tensor = samples @ _projection(size).to(samples)
    return projected


def preview(cfg: Config, samples: Mapping[str, Tensor], columns: int) -> Image.Image:
    """A page of lines `[N, L, V]` in Pillow's own font, in as many columns as there is room for; those of several names
    one after the other. The font knows Latin letters: others are empty boxes, in the picture alone."""
    shown = {name: present(cfg, name, quantise(cfg, x.detach().cpu()).numpy()) for name, x in samples.items()}
    lines = [_shortened("  |  ".join(texts)) for texts in zip(*shown.values(), strict=True)]
    font = ImageFont.load_default()
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType has a bitmap font of Latin-1
        lines = [line.encode("latin-1", "replace").decode("latin-1") for line in lines]
    width = 16 + max((int(font.getlength(line)) for line in lines), default=0)
    columns = max(1, min(columns, _PICTURE_WIDTH // width, len(lines)))
    rows = -(-len(lines) // columns)
    page = Image.new("RGB", (columns * width, 8 + rows * 16), "white")
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((8 + i % columns * width, 4 + i // columns * 16), line, fill="black", font=font)
    return page


def describe(cfg: Config, stored: Stored) -> dict[str, Any]:
    """Of the training lines: how long they are, in tokens, and which share of their tokens the vocabulary lacks."""
    tokens = stored["sample"]
    lengths = (tokens != END).sum(1)
    low, middle, high = np.quantile(lengths, [0.05, 0.5, 0.95]).tolist()
    return {
        "text": {
            "of_training_examples": len(tokens),
            "vocabulary": len(cfg.vocabulary),
            "unknown_share": round(float((tokens == UNKNOWN).sum() / max(1, lengths.sum())), 5),
            "tokens_in_a_line": {"mean": round(float(lengths.mean()), 2), "5%": low, "50%": middle, "95%": high},
            "lines_of_full_length_share": round(float((lengths == cfg.length).mean()), 5),
        }
    }


def tiny() -> tuple[Config, list[str]]:
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(list("abcd"), rng.integers(2, 7))) for _ in range(150)]
    return Config(), list(dict.fromkeys(lines))


def _tokens(cfg: Config) -> int:
    return len(cfg.vocabulary) + _RESERVED


def _tokeniser(cfg: Config) -> ModuleType:
    return _load(cfg.tokeniser)


@functools.cache
def _load(tokeniser: str) -> ModuleType:
    return registry.load(_TOKENISERS, tokeniser)


def _split(cfg: Config, line: str) -> list[str]:
    line = unicodedata.normalize("NFC", line.lower() if cfg.lowercase else line).strip()
    tokens: list[str] = _tokeniser(cfg).split(line)
    return tokens


_last: tuple[tuple[str, ...], dict[str, int]] = ((), {})


def _numbers(vocabulary: tuple[str, ...]) -> dict[str, int]:
    """By token. The last vocabulary's is kept, known by identity: to hash thousands of names for each line is slow."""
    global _last
    if _last[0] is not vocabulary:
        _last = vocabulary, {token: number for number, token in enumerate(vocabulary, _RESERVED)}
    return _last[1]


@functools.lru_cache
def _projection(size: int) -> Tensor:
    """`[size, 32]`; the expected squared length of a row is 1."""
    rng = torch.Generator().manual_seed(size)
    return torch.randn(size, _GLANCE, generator=rng) / math.sqrt(_GLANCE)


def _shortened(line: str) -> str:
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
