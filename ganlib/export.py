"""A trained generator as two files that need no trust: `generator.safetensors` and `generator.json`.

The JSON names a family of `ganlib/models` and its configuration; both are validated and neither holds code.

Sample `i` of a seed is a function of `(seed, i)`, its condition and what it is made of, bit for bit on one machine,
however many samples are asked for: kernels round differently for batches of different sizes, so the network is always
run on `Generator.batch_size` of them, at the same places, with rows to fill the batch that are thrown away.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ganlib import registry
from ganlib._config import Config
from ganlib.data._classes import label_of
from ganlib.data._kind import Where
from ganlib.data._spec import Spec
from ganlib.device import is_accelerator, one_thread
from ganlib.game import Game, Sample, map_tensors, sample_of, tensors_of
from ganlib.interpolation import slerp
from ganlib.noise import Noise, seed_of

__all__ = ["Generator", "load_generator", "save_generator", "whole_number"]

FORMAT = 2
_SMALL = 512  # numbers in one example
_BATCH_NUMBERS = 2**15  # in the samples of one run of a network; on a GPU, which is idle with so few, 16 times as many
_BATCH_LIMITS = 4, 256
_ONE_THREAD = 2**15  # numbers in one sample that a second thread would not make sooner
_CANDIDATES = 50_000  # samples among which some have to be as they are asked for
_FAR = 1_000  # standard deviations of attributes; far beyond, networks give no numbers
# no module's state can have a name with spaces
_ATTRIBUTES = "attributes of real examples"
_OTHER = "module "
_LEAST_COUNTED = 2**13  # weights, of a tensor however small: to make one takes time


def save_generator(
    directory: str | Path,
    module: nn.Module,
    *,
    network: Config,
    spec: Spec,
    attributes: Tensor | None = None,
    others: Mapping[str, nn.Module] | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write `module`, the generator of the family that `network` configures. `about` is kept as it is.

    `attributes`, `[M, A]` in their own units, are those of some test examples: samples have them where a caller asks
    for none. `others` are the further modules, by name, that the game's answers need.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    for name, other in (others or {}).items():
        state = other.state_dict().items()
        tensors |= {f"{_OTHER}{name} {key}": tensor.detach().cpu().contiguous() for key, tensor in state}
    if attributes is not None:
        tensors[_ATTRIBUTES] = attributes.detach().cpu().double().contiguous()
    (directory / "generator.safetensors").write_bytes(save(tensors))  # save_file raises no OSError on a full disk
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
    def conditioned_on(self) -> tuple[str, ...]:
        """What the game is conditioned on: `"label"`, `"attributes"` or nothing."""
        return ("label",) * bool(self.game.classes) + ("attributes",) * bool(self.game.attributes)

    @property
    def translates(self) -> bool:
        """Whether it makes samples of parts that it is given."""
        return bool(self.spec.given)

    @property
    def batch_size(self) -> int:
        """Samples in one run of the network: a power of two that depends on their size and the sort of device."""
        at_once = _BATCH_NUMBERS * (16 if is_accelerator(self.device) else 1) // self.spec.size
        least, most = _BATCH_LIMITS
        return 1 << max(least, min(most, at_once)).bit_length() - 1

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        *,
        given: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        label: int | str | Tensor | None = None,
        attributes: Tensor | None = None,
        truncation: float | None = None,
        batch: int | None = None,
        rows: slice = slice(None),
    ) -> dict[str, Tensor]:
        """`n` samples, or these `rows` of them, under `"sample"`, float, `[n, *spec.shape]`; if conditional, `"label"`
        int64 `[n]` or `"attributes"` float64 `[n, A]`, as asked for.

        `given` are the parts that the rows are made of, each `[rows, *shape]` as networks see it. Sample i is a
        function of (seed, i, given, condition, truncation), for any `n` and `rows` to the bit; with a `batch`, of so
        many at a time, to rounding. Without `label` the classes take turns; a label is an index, or the name of a
        class. Without `attributes`, `[A]` or `[n, A]` in the units of the data, those of real examples take turns.
        Raises ValueError for a count or seed out of range, a condition that the data do not have, a truncation that
        is not positive, or given parts that are not as the spec says.
        """
        n, seed = whole_number("n", n, least=1), whole_number("seed", seed)
        _check_truncation(truncation)
        start, stop, _ = rows.indices(n)
        given = self._checked(given or {}, stop - start)
        conditions = self.conditions(n, label, attributes, rows)

        def run(first: int, last: int) -> Tensor:
            here = torch.arange(first, last).clamp(start, stop - 1) - start
            noise = Noise(seed, "sample", size=last, rows=slice(first, last))
            return self._run(
                lambda: self.game.ask(_rows_of(given, here), noise, truncation), _rows_of(conditions, here)
            )

        if batch is not None:
            made = [run(first, min(first + batch, stop)) for first in range(start, stop, batch)]
            return {"sample": torch.cat(made), **conditions}
        size, made = self.batch_size, []
        for first in range(start - start % size, stop, size):
            made.append(run(first, first + size)[max(0, start - first) : stop - first])
        return {"sample": torch.cat(made), **conditions}

    @torch.inference_mode()
    def sample_rows(
        self,
        seeds: Sequence[int],
        indices: Sequence[int],
        *,
        given: Mapping[str, Tensor] | None = None,
        label: Tensor | None = None,
        attributes: Tensor | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """Sample `indices[i]` of seed `seeds[i]` for each i, float `[N, *spec.shape]`: what a service answers several
        requests with at once. Conditions, `label` `[N]` and `attributes` `[N, A]`, are each row's own; without them
        they are those that `sample` gives this index.

        Equal to `sample` to rounding: to the bit where kernels round alike at any place of a batch. Raises ValueError
        as `sample` does.
        """
        if len(seeds) != len(indices):
            raise ValueError(f"indices: expected one for each of {len(seeds)} seeds, found {len(indices)}")
        keys = [seed_of(whole_number("seed", seed), "sample") for seed in seeds]
        row, n = torch.tensor([whole_number("indices", i) for i in indices], dtype=torch.int64), len(keys)
        _check_truncation(truncation)
        given = self._checked(given or {}, n)
        if self.game.classes and label is None:
            label = row % self.game.classes
        if self.game.attributes and attributes is None:
            assert self.attributes is not None
            attributes = self.attributes[row % len(self.attributes)]
        conditions, made = self.conditions(n, label, attributes), []
        for first in range(0, n, self.batch_size):
            here = torch.arange(first, first + self.batch_size).clamp(max=n - 1)
            noise, of_part = Noise.of_rows(torch.tensor(keys)[here], row[here]), _rows_of(given, here)
            asked = functools.partial(self.game.ask, of_part, noise, truncation)
            made.append(self._run(asked, _rows_of(conditions, here))[: n - first])
        return torch.cat(made) if made else torch.empty(0, *self.spec.shape)

    def _run(self, inputs: Callable[[], Sample], conditions: Mapping[str, Tensor]) -> Tensor:
        """The network, once. A CPU makes small samples with one thread: several would wait for one another at each
        layer, for minutes where other threads want the cores, too."""
        cond = self._condition(conditions)
        alone = not is_accelerator(self.device) and math.prod(self.spec.shape) <= _ONE_THREAD
        with one_thread() if alone else contextlib.nullcontext():
            made = self.game.generator(
                map_tensors(lambda x: x.to(self.device), inputs()), None if cond is None else cond.to(self.device)
            )
            return sample_of(made).float().cpu()

    @torch.inference_mode()
    def interpolate(
        self,
        stops: Sequence[int],
        steps: int,
        *,
        seed: int = 0,
        label: int | str | None = None,
        attributes: Tensor | None = None,
        truncation: float | None = None,
    ) -> Tensor:
        """The way from sample to sample, by their indices `stops`: `steps` samples from each to the next, and the last
        one; float `[(len(stops) - 1) * steps + 1, *spec.shape]`.

        Latents go along great circles (White 2016); all else that is drawn stays as it is for the first stop, and so
        does the condition, by default that of sample 0. Raises ValueError as `sample` does, and for a generator whose
        noise is no latent.
        """
        if len(stops) < 2:
            raise ValueError(f"stops: expected at least 2, found {len(stops)}")
        seed, steps = whole_number("seed", seed), whole_number("steps", steps, least=1)
        _check_truncation(truncation)
        self._checked({}, 1)
        n, rows = (len(stops) - 1) * steps + 1, torch.tensor([whole_number("stops", i) for i in stops])
        noise = Noise.of_rows(torch.full((len(rows),), seed_of(seed, "sample")), rows)
        ends = self.game.ask({}, noise, truncation)
        if not any(_is_latent(x) for x in tensors_of(ends)):
            raise ValueError("cannot interpolate: this generator has no latent input")
        conditions, made = self.conditions(n, 0 if self.conditional and label is None else label, attributes), []
        if self.game.attributes and attributes is None:
            conditions["attributes"] = conditions["attributes"][:1].expand(n, -1)
        for first in range(0, n, self.batch_size):
            at = torch.arange(first, first + self.batch_size).clamp(max=n - 1)
            ways = functools.partial(_along, from_=at // steps, share=at % steps / steps)
            made.append(self._run(functools.partial(map_tensors, ways, ends), _rows_of(conditions, at))[: n - first])
        return torch.cat(made)

    def _condition(self, conditions: Mapping[str, Tensor]) -> Tensor | None:
        """What the network gets of them: labels `[N]`, or attributes `[N, A]`, standardised."""
        if "attributes" in conditions:
            return self.spec.standardise(conditions["attributes"])
        return conditions.get("label")

    @property
    def takes_any_size(self) -> bool:
        """Whether given parts may have another size than the spec says."""
        return self.spec.kind.tiled is not None and self.game.margin is not None

    @torch.inference_mode()
    def sample_any_size(
        self,
        given: Mapping[str, Tensor],
        *,
        seed: int = 0,
        label: int | str | None = None,
        attributes: Tensor | None = None,
    ) -> Tensor:
        """One sample, float, of given parts `[1, ...]` of any size, as networks see them, tile by tile.

        A conditional generator needs the `label` to be made, or the `attributes`, `[A]` in the units of the data.
        Raises ValueError where the family or the kind of data asks for the sizes of the spec, for a seed out of range,
        or for a condition that the data do not have.
        """
        seed = whole_number("seed", seed)
        tiled, margin = self.spec.kind.tiled, self.game.margin
        if tiled is None or margin is None:
            raise ValueError("this generator takes given parts of one size only")
        if self.conditional and label is None:
            raise ValueError(f"label: expected the one that is to be made: {', '.join(self.spec.classes)}")
        if self.game.attributes and attributes is None:
            raise ValueError(f"attributes: expected each of {', '.join(self.spec.attributes)}")
        cond = self._condition(self.conditions(1, label, attributes))

        def make(tile: Mapping[str, Tensor]) -> Tensor:
            inputs = self.game.ask(tile, Noise(seed, "sample", size=1), None)
            inputs = map_tensors(lambda x: x.to(self.device), inputs)
            return sample_of(self.game.generator(inputs, None if cond is None else cond.to(self.device))).float().cpu()

        return tiled(self.spec.sample, given, margin, make)

    @torch.inference_mode()
    def stream(
        self, n: int, *, where: Where | None = None, seed: int = 0, batch: int | None = None, **conditions: Any
    ) -> Iterator[Tensor]:
        """`n` samples, as `sample` makes them, in chunks: about `batch` at a time, by default 100, or 4,096 where they
        are small; their `conditions` are those of `sample`.

        With `where`, samples are drawn one after the other and those that meet it are kept, in their order: each is
        drawn from the conditional distribution. Raises ValueError for further `conditions`, and if fewer than one in a
        thousand meet it.
        """
        n, seed, size = whole_number("n", n, least=1), whole_number("seed", seed), self.batch_size
        batch = -(-(batch or (4096 if self.spec.size <= _SMALL else 100)) // size) * size
        if where is None:
            for start in range(0, n, batch):
                yield self.sample(n, seed=seed, rows=slice(start, start + batch), **conditions)["sample"]
            return
        if others := [name for name, asked in conditions.items() if asked is not None]:
            raise ValueError(f"where: cannot be combined with {', '.join(others)}")
        if self.spec.given or self.conditioned_on:
            raise ValueError("where: cannot be combined with given parts or other conditions")
        kind, ask = self.spec.kind, self.game.ask_known
        known, drawn, found = where.known, 0, 0
        while found < n:
            noise = Noise(seed, "sample", size=drawn + size, rows=slice(drawn, drawn + size))
            asked = (
                functools.partial(self.game.ask, {}, noise, None)
                if ask is None
                else functools.partial(ask, known, noise)
            )
            made = self._run(asked, {})
            made = made[where.holds(kind.quantise(self.spec.sample, made))][: n - found]
            drawn, found = drawn + size, found + len(made)
            if drawn >= _CANDIDATES and found * 1000 < drawn and found < n:
                raise ValueError(f"where: {found} of {drawn} samples are so; expected at least one in a thousand")
            if len(made):
                yield made

    def conditions(
        self,
        n: int,
        label: int | str | Tensor | None = None,
        attributes: Tensor | None = None,
        rows: slice = slice(None),
    ) -> dict[str, Tensor]:
        """The conditions of `n` samples, or of these `rows` of them. Raises ValueError as `sample` does."""
        index = torch.arange(*rows.indices(n))
        conditions = {"label": self._labels(n, index, label), "attributes": self._attributes(n, index, attributes)}
        return {name: cond for name, cond in conditions.items() if cond is not None}

    def where(self, conditions: Sequence[str]) -> Where:
        """What samples have to be like, for `stream`, of conditions as a user writes them, such as `age<12`.

        Raises ValueError for those that are not understood, and for data that have no columns.
        """
        kind = self.spec.kind
        if kind.where is None:
            raise ValueError(f"where: {self.spec.modality} data have no columns to set conditions on")
        return kind.where(self.spec.sample, conditions)

    @torch.inference_mode()
    def answer(self, parts: Mapping[str, Tensor], *, batch: int = 100) -> dict[str, Tensor]:
        """What the game says of examples, whose parts are `[N, *shape]` each as networks see them: `[N]`, `[N, K]`, or
        `[N, *shape]` as a sample. `parts` may also hold the condition of a conditional game: `label` `[N]` or
        `attributes` `[N, A]`.

        Raises ValueError where it has no answers.
        """
        if self.game.answers is None:
            raise ValueError("this model has no answers: it only makes samples")
        if not len(parts["sample"]):
            return {name: torch.empty(0, *shape) for name, shape in self.answer_shapes().items()}
        found = []
        for start in range(0, len(parts["sample"]), batch):
            part = {name: x[start : start + batch] for name, x in parts.items()}
            if "attributes" in part:
                part["attributes"] = self.spec.standardise(part["attributes"])
            part = {name: x.to(self.device) for name, x in part.items()}
            found.append({name: answer.float().cpu() for name, answer in self.game.answers(part).items()})
        return {name: torch.cat([answers[name] for answers in found]) for name in found[0]}

    def present(self, samples: Tensor) -> Any:
        """Samples `[N, *spec.shape]` as a consumer gets them: an array, a DataFrame, a list of strings."""
        kind = self.spec.kind
        return kind.present(self.spec.sample, "sample", kind.quantise(self.spec.sample, samples).numpy())

    def take(self, part: str, rows: Any) -> Tensor:
        """Rows of a part as a user has them (what `present` gives: an array, a DataFrame, a list; or a Series) as
        networks see them.

        Raises ValueError for rows that are not like those it was trained on, and for a single example.
        """
        kind, cfg, about = self.spec.kind, self.spec.sample, self.spec.parts[part]
        if kind.take is None:
            raise ValueError(f"{part}: {self.spec.modality} data cannot be given to a model")
        if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__len__"):
            raise ValueError(
                f"{part}: expected a list of examples, found {type(rows).__name__}; put a single one in a list"
            )
        stored = np.empty((len(rows), *about.stored), about.dtype)
        for i, row in enumerate(rows.to_dict("records") if hasattr(rows, "iterrows") else rows):
            try:
                taken = kind.take(cfg, part, row)
            except ValueError as error:
                raise ValueError(f"example {i}: {error}" if len(rows) > 1 else str(error)) from error
            if taken.shape != about.stored:  # of a kind whose given parts may have any size
                expected, found = (list(np.shape(kind.present(cfg, part, one[None]))[1:]) for one in (stored[i], taken))
                raise ValueError(f"{part}: expected examples of shape {expected}, found {found}")
            stored[i] = taken
        return kind.decode(cfg, part, torch.from_numpy(stored))

    def answer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The names of the answers, each with its shape for one example; empty where there are none."""
        if self.game.answers is None:
            return {}
        spec = self.spec
        nothing = {name: torch.from_numpy(np.zeros((2, *part.stored), part.dtype)) for name, part in spec.parts.items()}
        parts = {name: spec.kind.decode(spec.sample, name, stored) for name, stored in nothing.items()}
        conditions = {"label": torch.zeros(2, dtype=torch.int64), "attributes": torch.zeros(2, self.game.attributes)}
        found = self.answer({**parts, **{name: conditions[name] for name in self.conditioned_on}})
        return {name: tuple(answer.shape[1:]) for name, answer in found.items()}

    def _checked(self, given: Mapping[str, Tensor], n: int) -> Mapping[str, Tensor]:
        """What is given. Raises ValueError where it is not as the spec says, for `n` samples."""
        expected = {name: [n, *self.spec.parts[name].shape] for name in self.spec.given}
        found = {name: list(x.shape) for name, x in given.items()}
        if found and not expected:
            raise ValueError("this generator makes samples of noise and takes no given parts")
        if expected and not found:
            raise ValueError(f"this generator needs to be given {', '.join(expected)}")
        if found != expected:
            raise ValueError(f"given: expected shapes {expected}, found {found}")
        return given

    def _attributes(self, n: int, index: Tensor, asked: Tensor | None) -> Tensor | None:
        size = self.game.attributes
        if not size:
            if asked is not None:
                raise ValueError("attributes: this generator is not conditioned on attributes")
            return None
        if asked is None:
            assert self.attributes is not None
            return self.attributes[index % len(self.attributes)]
        if asked.shape[-1] != size:
            raise ValueError(
                f"attributes: expected {size} ({', '.join(self.spec.attributes)}), found {asked.shape[-1]}"
            )
        if not asked.isfinite().all():
            raise ValueError(f"attributes: expected finite numbers, found {asked.tolist()}")
        far = self.spec.standardise(asked.reshape(-1, size)).abs() > _FAR
        if self.spec.attribute_means and far.any():
            raise ValueError(
                f"attributes: expected at most {_FAR:,} standard deviations from what the generator was trained on, "
                f"found {asked.tolist()}"
            )
        return asked.double().expand(n, size)[index]

    def _labels(self, n: int, index: Tensor, label: int | str | Tensor | None) -> Tensor | None:
        classes = self.game.classes
        if not classes:
            if label is not None:
                raise ValueError("label: this generator is not conditional")
            return None
        if label is None:
            return index % classes
        if isinstance(label, str):
            label = label_of(self.spec.classes, label)
        asked = torch.as_tensor(label)
        if asked.is_floating_point() or asked.dtype == torch.bool or ((asked < 0) | (asked >= classes)).any():
            raise ValueError(f"label: expected 0 to {classes - 1}, found {label}")
        return asked.long().expand(n)[index]


def whole_number(name: str, value: Any, *, least: int = 0) -> int:
    """The value as an int. Raises ValueError, naming it, for what is no whole number from `least` to 2⁶³ - 1."""
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)  # a column of a table holds floats where a row says nothing
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number < 2**63:
        raise ValueError(f"{name}: expected a whole number from {least} to {2**63 - 1}, found {value!r}")
    return number


def _check_truncation(truncation: float | None) -> None:
    if truncation is not None and not (truncation > 0 and math.isfinite(truncation)):
        raise ValueError(f"truncation: expected a number above 0, found {truncation}")


def _is_latent(x: Tensor) -> bool:
    """Whether these rows of inputs can be interpolated: different floats, neither keys nor choices."""
    return x.is_floating_point() and x.dim() > 1 and bool((x != x[:1]).any())


def _along(ends: Tensor, from_: Tensor, share: Tensor) -> Tensor:
    """Latents `[N, ..., D]`, each at its `share` of the great circle from one of `ends` `[S, ..., D]` to the next."""
    if not _is_latent(ends):
        return ends[:1].expand(len(from_), *ends.shape[1:])
    one, other = ends[from_], ends[(from_ + 1).clamp(max=len(ends) - 1)]
    return slerp(one, other, share.view(-1, *[1] * (one.dim() - 1)))


def _rows_of(tensors: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: x[index] for name, x in tensors.items()}


def load_generator(directory: str | Path, device: str | torch.device = "cpu", *, name: str = "") -> Generator:
    """Load what `save_generator` wrote; without the `others` of a game it has no answers.

    Raises ValueError for anything else. The message names the directory, or `name` where that is a temporary copy.
    """
    directory = Path(directory)
    name = name or str(directory)
    try:
        described = json.loads((directory / "generator.json").read_text())
        spec = _spec_of(described)
        family = registry.load("models", described["network"]["family"])
        size = (directory / "generator.safetensors").stat().st_size
        with _at_most(16 * size + 2**26):  # of the weights, and the discriminator, which is not kept, may be larger
            game: Game = family.build(family.Config.model_validate(described["network"]), spec)
        tensors = load_file(directory / "generator.safetensors")
        attributes = tensors.pop(_ATTRIBUTES, None)
        for role, module in game.modules.items():
            prefix = f"{_OTHER}{role} "
            state = {key.removeprefix(prefix): tensors.pop(key) for key in [*tensors] if key.startswith(prefix)}
            if state:
                module.load_state_dict(state)
                module.to(device).eval()
            elif role != "generator" and module.state_dict():  # as built, it would answer at random
                game = replace(game, answers=None)
        game.generator.load_state_dict(tensors)
    except FileNotFoundError as error:
        missing = Path(error.filename).name if error.filename else error
        raise ValueError(f"{name}: not a generator: {missing} is missing") from error
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: not a generator: {why}") from error
    game.generator.to(device).eval()
    return Generator(game, spec, described["about"], torch.device(device), attributes)


@contextlib.contextmanager
def _at_most(numbers: int) -> Iterator[None]:
    """Inside, this thread builds no modules of more weights than `numbers`: a few bytes may describe networks
    that exhaust the memory. Raises ValueError at the first weight too many, before it is filled."""
    thread, left = threading.get_ident(), numbers

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        if tensor is not None and threading.get_ident() == thread:
            left -= max(_LEAST_COUNTED, tensor.numel())
            if left < 0:
                raise ValueError("the networks described are larger than the weights that the file holds")

    hooks = [
        nn.modules.module.register_module_parameter_registration_hook(count),
        nn.modules.module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _spec_of(described: dict[str, Any]) -> Spec:
    """Raises ValueError for a format that is not known here."""
    match described["format"]:
        case 1:
            return Spec.from_format_1(described["spec"])
        case 2:
            return Spec.from_json(json.dumps(described["spec"]))
        case other:
            raise ValueError(f"expected format 1 or {FORMAT}, found {other}")
