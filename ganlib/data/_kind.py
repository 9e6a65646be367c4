"""What a kind of data is: the functions of one file of `ganlib/data`, with a default for each that it leaves out.

An example is one or more *parts*, arrays under names. The part `"sample"` is what a generator makes; all others are
given to it. Sources deliver payloads; `encode` turns a payload into parts as they are stored, `decode` a batch of a
stored part into what networks see. What a generator made goes back by `quantise` and leaves as `present` shows it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from ganlib import registry
from ganlib._config import Config

__all__ = ["Block", "Kind", "Part", "Stored", "Where", "load"]

Stored = dict[str, NDArray[Any]]
"""parts as they are stored: of one example, or `[N, ...]` each of many"""


@dataclass(frozen=True)
class Part:
    """One array of an example."""

    shape: tuple[int, ...]
    """as networks see it, float or integer"""
    stored: tuple[int, ...]
    """as it lies in shards; at least one axis"""
    dtype: str = "uint8"
    """of the stored numbers, as numpy calls it"""

    @property
    def stored_bytes(self) -> int:
        return math.prod(self.stored) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Block:
    """Neighbouring numbers of a sample that mean one thing: a scalar, or a choice, one-hot."""

    column: int
    """which column of what is stored it tells of"""
    name: str
    """of that column"""
    kind: Literal["scalar", "choice"]
    start: int
    """where it begins in a sample `[N, width]`"""
    size: int
    shares: tuple[float, ...] = ()
    """of each choice in the training examples"""


@dataclass(frozen=True)
class Where:
    """What samples have to be like."""

    known: Tensor
    """what is known of each sample beforehand, as networks see it, `[*shape]`; NaN where nothing is"""
    holds: Callable[[Tensor], Tensor]
    """stored samples `[N, *stored]` → whether each is as it has to be, bool `[N]`"""


def _same(cfg: Any, data: Any) -> Any:
    return cfg


def _all(cfg: Any, samples: Tensor) -> dict[str, Tensor]:
    return {"samples": samples}


def _whole(samples: Tensor) -> Tensor:
    return samples


def _as_stored(cfg: Any, part: str, stored: Tensor) -> Tensor:
    return stored


@dataclass(frozen=True)
class Kind:
    """A kind of data. Every function but `tiny` takes the kind's `Config` first, as `Spec.sample` has it."""

    name: str
    code: str
    """SHA-256 of the file, and of the files of `ganlib/data` that it imports from"""
    MODALITY: str
    """what a family asks for"""
    Config: type[Config]
    """pydantic model whose first field is `kind`; its order lies in tuples, never in mappings"""

    parts: Callable[[Any], dict[str, Part]]
    """`(cfg)`: the parts of an example in the order in which they are hashed"""
    encode: Callable[[Any, Any], Stored]
    """`(cfg, payload)`: one example. Raises ValueError for a payload to be rejected"""
    decode: Callable[[Any, str, Tensor], Tensor]
    """`(cfg, part, stored)`: stored `[N, *stored]` → `[N, *shape]`"""
    quantise: Callable[[Any, Tensor], Tensor]
    """`(cfg, samples)`: samples `[N, *shape]`, of a generator too, → stored `[N, *stored]`"""
    present: Callable[[Any, str, NDArray[Any]], Any]
    """`(cfg, part, stored)`: stored `[N, *stored]` as a consumer gets it: an array, a DataFrame, a list of strings"""
    preview: Callable[[Any, Mapping[str, Tensor], int], Image]
    """`(cfg, {name: samples}, columns)`: a picture of examples next to each other; each name has a part of them"""
    describe: Callable[[Any, Stored], dict[str, Any]]
    """`(cfg, stored)`: figures of training examples for the data card, as plain values; `notes`: sentences"""
    tiny: Callable[[], tuple[Any, list[Any]]]
    """a small `Config` and payloads, at least 40 different ones, which contract tests are made of"""

    scan: Callable[[Any, Iterable[Any]], Any] | None = None
    """`(cfg, payloads)`: the Config completed by names that are needed to encode; None: nothing is needed"""
    settle: Callable[[Any, Iterable[Stored]], Any] = _same
    """`(cfg, rows)`: the Config completed by numbers of the training examples, which come in chunks `[N, *stored]`
    and may be read more than once. It must not change how examples are stored"""
    take: Callable[[Any, str, Any], NDArray[Any]] | None = None
    """`(cfg, part, raw)`: a part from what a user has: a file's path, or a row of what `present` shows. It is a given
    part, or a sample that a model is asked about. Raises ValueError. None: such parts cannot be read"""
    naive: Callable[[Any, Mapping[str, Tensor]], Tensor] | None = None
    """`(cfg, given)`: samples made of the given parts without learning, a baseline; None: there is none"""
    layout: Callable[[Any], tuple[Block, ...]] | None = None
    """`(cfg)`: which numbers of samples `[N, width]` are scalars and which are choices; None: no such blocks"""
    compare: Callable[[Any, NDArray[Any], NDArray[Any]], Image] | None = None
    """`(cfg, made, real)`: a picture of how generated samples and real ones are distributed, both stored
    `[N, *stored]`; None: there is none"""
    where: Callable[[Any, Sequence[str]], Where] | None = None
    """`(cfg, conditions)`: what samples have to be like, as a user writes it. Raises ValueError for what is not
    understood. None: there are no conditions on samples"""
    glance: Callable[[Tensor], Tensor] = _whole
    """samples with what little tells one from another"""
    views: Callable[[Any, Tensor], dict[str, Tensor]] = _all
    """`(cfg, samples)`: what is compared with targets, by the section of the metrics in which it stands"""

    present_tensor: Callable[[Any, str, Tensor], Tensor] = _as_stored
    """`(cfg, part, stored)`: stored `[N, *stored]` as `present` arranges it, in a graph that is exported; by default
    as stored"""
    take_tensor: Callable[[Any, str, Tensor], Tensor] = _as_stored
    """The inverse of `present_tensor`"""

    tiled: Callable[[Any, Mapping[str, Tensor], int, Callable[[dict[str, Tensor]], Tensor]], Tensor] | None = None
    """`(cfg, given, margin, make)`: one sample of given parts `[1, ...]` of any size, by `make` of parts of these,
    which overlap by twice the `margin` on which a game's samples depend (`Game.margin`) and start at multiples of it.
    None: given parts have the size of the spec's"""
    picture: Callable[[Any, Tensor], Image] | None = None
    """`(cfg, sample)`: a sample of `tiled` as the picture that a user keeps; None only where there is no `tiled`"""
    film: Callable[[Any, Mapping[str, Tensor]], list[Image]] | None = None
    """`(cfg, {name: samples})`: what `preview` shows as moving pictures, one after the other; None: it does not move"""
    LOOKS: str = ""
    """whose feature spaces and metrics apply, by their folders; `"picture"`: may be mirrored and moved. By default
    the modality"""
    PAYLOADS: str = ""
    """the kind whose payloads it encodes, which says the sources that suit. By default its own name"""
    DUPLICATES: bool = False
    """whether equal examples are kept, each as an example of its own"""
    ALIGNED: bool = True
    """whether a row's given parts and its sample belong together"""
    BY_LABEL: bool = False
    """whether samples of a label are compared with real samples of that label alone: of what is translated into one
    domain or another, all together would be distributed like what was given"""

    @property
    def is_picture(self) -> bool:
        """Whether samples are pictures: they may be mirrored, moved and shown one each."""
        return self.LOOKS == "picture"

    @property
    def learns(self) -> bool:
        """Whether its `Config` is completed by what it finds in the data."""
        return self.scan is not None or self.settle is not _same


@functools.cache
def _of_module(module: ModuleType) -> Kind:
    has = {name: getattr(module, name) for name in Kind.__dataclass_fields__ if hasattr(module, name)}
    name = module.__name__.rpartition(".")[2]
    has.setdefault("LOOKS", module.MODALITY)
    has.setdefault("PAYLOADS", name)
    return Kind(**{**has, "name": name, "code": _code(module)})


def load(name: str) -> Kind:
    """The kind `ganlib/data/NAME.py`. Raises ValueError naming the nearest one if there is none."""
    return _of_module(registry.load("data", name))


def _code(module: ModuleType) -> str:
    """SHA-256 of the module's file, and of the other files of this folder that it takes things from: all files of a
    package. What every stage depends on, this file and that of `Spec`, is left out."""
    package = __name__.rpartition(".")[0]
    wanted, found = [module], dict[str, bytes]()
    while wanted:
        one = wanted.pop()
        if one.__name__ in (*found, __name__, f"{package}._spec"):
            continue
        assert one.__file__ is not None
        if hasattr(one, "__path__"):  # what it holds depends on what was imported so far, its files do not
            files = sorted(Path(one.__file__).parent.glob("*.py"))
            found[one.__name__] = b"".join(file.read_bytes() for file in files)
            continue
        found[one.__name__] = Path(one.__file__).read_bytes()
        near = {inspect.getmodule(thing) for thing in vars(one).values() if inspect.ismodule(thing) or callable(thing)}
        wanted += [other for other in near if other is not None and other.__name__.startswith(f"{package}.")]
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()
