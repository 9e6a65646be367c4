"""A generator as one graph, for runtimes without this code: ONNX, and `torch.export`.

The graph draws its own noise, which is a function of a key and of the numbers of the rows, decodes what is given,
and presents what it makes, as far as tensors can hold what the kind of data presents. So it makes what
`Generator.sample` makes of the same seed. Inputs, N the number of rows:

| input | what |
|---|---|
| `key` | int64 scalar, `seed_of(seed, "sample")` of `ganlib.noise`: 63 bits of a hash of the seed |
| `rows` | int64 `[N]`, the numbers of the samples: 0 to N − 1 for the first N |
| `label` | int64 `[N]`, class indices, of a class-conditional generator |
| `attributes` | float64 `[N, A]`, in the units of the data, of one that is conditioned on attributes |
| each given part | as `present` shows it: images are uint8 `[N, H, W, C]` |

Outputs are `sample`, float32 as networks see it, and `presented`: images uint8 `[N, H, W, C]`, else as stored, which
the configuration of the kind explains (`spec` in the graph's metadata). With `latent`, inputs are what `Game.ask`
gives and the condition as networks see it: for latents that are not drawn but interpolated.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganlib.data._spec import Spec
from ganlib.export import Generator
from ganlib.game import sample_of
from ganlib.noise import Noise, seed_of

__all__ = ["FORMATS", "TOLERANCE", "Exported", "GraphError", "export_graph"]

TOLERANCE = 1e-5
"""of `sample`, absolute, against `Generator.sample`"""
BATCHES = (1, 7, 64)
FORMATS = {"onnx": "generator.onnx", "torch": "generator.pt2"}
"""names of formats, and the file that each is written to"""

Inputs = dict[str, Tensor]


class GraphError(ValueError):
    """A generator that cannot be a graph of the format; the message says why."""


@dataclass(frozen=True)
class Exported:
    """A graph, and how far it is from the generator."""

    path: Path
    """the file, written only if the graph agrees"""
    inputs: tuple[str, ...]
    difference: float
    """of `sample`, the largest absolute one at any of `BATCHES`"""
    rounded: float
    """the largest share of the numbers in `presented` that differ: values at the edge between two levels"""

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE  # not so where it is not a number

    @property
    def fault(self) -> str:
        """How far it is from the generator, in words; empty where it `agrees`."""
        far = f"its samples are up to {self.difference:.3g} from the generator's, at most {TOLERANCE:g} is allowed"
        return "" if self.agrees else far


def export_graph(generator: Generator, folder: str | Path, format: str = "onnx", *, latent: bool = False) -> Exported:
    """Write the generator, which is on the CPU, as its file of `FORMATS` in `folder`, and run that at
    `BATCHES`. A graph that does not agree is not kept, and one that was there before stays.

    The format `onnx` needs the packages onnxscript and onnxruntime. Raises GraphError for a generator that cannot be
    such a graph; then nothing is written.
    """
    path = Path(folder) / FORMATS[format]
    graph = _FromLatent(generator) if latent else _FromKey(generator)
    inputs = graph.inputs(generator, 3)
    rows = torch.export.Dim.DYNAMIC
    sizes = {name: {0: rows} if x.dim() else None for name, x in inputs.items()}
    try:
        with torch.no_grad(), _quiet():
            graph(inputs)  # or what a kind keeps for later would be made of the tracer's tensors, without values
            program = torch.export.export(graph, (inputs,), dynamic_shapes=(sizes,), strict=False)
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # which names files of this machine
            path.parent.mkdir(parents=True, exist_ok=True)
            # torch writes the name of a file into it, so that this is the final one, in a folder of its own
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as partial:
                written = Path(partial, path.name)
                _WRITE[format](program, written, [*inputs], _about(generator, latent=latent))
                run = _RUN[format](written)
                differences = [_difference(graph, run, graph.inputs(generator, n)) for n in BATCHES]
                difference, rounded = torch.tensor(differences, dtype=torch.float64).amax(0).tolist()  # of NaN: NaN
                exported = Exported(path, tuple(inputs), difference, rounded)
                if exported.agrees:
                    written.replace(path)
    except (ImportError, OSError):
        raise
    except Exception as error:  # exporters raise any exception
        raise GraphError(f"{format}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    return exported


class _FromKey(nn.Module):
    """Of a key, the numbers of rows, conditions in the data's units and given parts as a user has them."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.network, self.game, self.spec = generator.game.generator.eval(), generator.game, generator.spec

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        kind, cfg = self.spec.kind, self.spec.sample
        given = {name: kind.decode(cfg, name, kind.take_tensor(cfg, name, inputs[name])) for name in self.spec.given}
        asked = self.game.ask(given, Noise.of_rows(inputs["key"], inputs["rows"]), None)
        cond = inputs.get("label")
        if "attributes" in inputs:
            cond = self.spec.standardise(inputs["attributes"])
        return _outputs(self.spec, sample_of(self.network(asked, cond)))

    def inputs(self, generator: Generator, n: int) -> Inputs:
        """Inputs for `n` samples, which begin at another row for each n."""
        spec, cfg = self.spec, self.spec.sample
        given = {name: spec.kind.present_tensor(cfg, name, _stored(generator, name, n)) for name in spec.given}
        conditions = {name: x.clone() for name, x in generator.conditions(n).items()}
        return {"key": torch.tensor(seed_of(n, "sample")), "rows": torch.arange(n) + n, **conditions, **given}


class _FromLatent(nn.Module):
    """Of what `Game.ask` gives, by its names or as `latent`, and `condition`, as networks see both."""

    def __init__(self, generator: Generator):
        super().__init__()
        self.network, self.game, self.spec = generator.game.generator.eval(), generator.game, generator.spec
        self.by_name = isinstance(self._asked(generator, 1), dict)

    def forward(self, inputs: Inputs) -> dict[str, Tensor]:
        asked: Any = {name: x for name, x in inputs.items() if name != "condition"}
        if not self.by_name:
            asked = asked["latent"]
        return _outputs(self.spec, sample_of(self.network(asked, inputs.get("condition"))))

    def _asked(self, generator: Generator, n: int) -> Any:
        spec = self.spec
        given = {name: spec.kind.decode(spec.sample, name, _stored(generator, name, n)) for name in spec.given}
        return self.game.ask(given, Noise(n, "sample", size=n), None)

    def inputs(self, generator: Generator, n: int) -> Inputs:
        """Inputs for `n` samples."""
        asked, conditions = self._asked(generator, n), generator.conditions(n)
        if "attributes" in conditions:
            conditions = {"attributes": self.spec.standardise(conditions["attributes"])}
        inputs = asked if self.by_name else {"latent": asked}
        return {
            **inputs,
            **({"condition": x.clone()} if (x := next(iter(conditions.values()), None)) is not None else {}),
        }


def _outputs(spec: Spec, sample: Tensor) -> dict[str, Tensor]:
    """A sample as the graph gives it: as networks see it, and as the kind of data presents it."""
    sample = sample.float()
    shown = spec.kind.present_tensor(spec.sample, "sample", spec.kind.quantise(spec.sample, sample))
    return {"sample": sample, "presented": shown}


def _stored(generator: Generator, part: str, n: int) -> Tensor:
    """A given part of `n` examples, made up: random bytes, or zeros where it is not stored as bytes."""
    about = generator.spec.parts[part]
    if about.dtype == "uint8":
        return (Noise(n, part, size=n).uniform(*about.stored) * 256).to(torch.uint8)
    return torch.zeros(n, *about.stored, dtype=getattr(torch, about.dtype))


def _difference(graph: nn.Module, run: Callable[[Inputs], dict[str, Tensor]], inputs: Inputs) -> tuple[float, float]:
    """The largest difference of `sample`, and the share of `presented` that is another."""
    expected, found = graph(inputs), run(inputs)
    if found["sample"].shape != expected["sample"].shape:
        raise GraphError(f"{list(found['sample'].shape)} samples, expected {list(expected['sample'].shape)}")
    made, shown = expected["presented"], found["presented"]
    other = (made != shown) & ~((made != made) & (shown != shown))  # two that are missing are alike
    return float((found["sample"] - expected["sample"]).abs().max()), float(other.float().mean())


def _about(generator: Generator, *, latent: bool) -> dict[str, str]:
    """What a user of the graph has to know, as texts: JSON."""
    spec = generator.spec
    facts = {
        "kind": spec.kind.name,
        "classes": list(spec.classes),
        "attributes": list(spec.attributes),
        "sample": spec.sample.model_dump(mode="json"),
        "about": generator.about,
        "inputs": "latent" if latent else "key",
    }
    return {name: json.dumps(fact) for name, fact in facts.items()}


def _write_onnx(program: torch.export.ExportedProgram, path: Path, names: list[str], about: dict[str, str]) -> None:
    outputs = ["sample", "presented"]
    exported: Any = torch.onnx.export(program, dynamo=True, verbose=False, input_names=names, output_names=outputs)
    model = exported.model_proto
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        node.ClearField("metadata_props")
    for name, text in about.items():
        model.metadata_props.add(key=f"ganlib.{name}", value=text)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _run_onnx(path: Path) -> Callable[[Inputs], dict[str, Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> dict[str, Tensor]:
        feeds = {entry.name: inputs[entry.name].numpy() for entry in session.get_inputs()}
        return dict(zip(outputs, map(torch.from_numpy, session.run(outputs, feeds)), strict=True))

    return run


def _write_torch(program: torch.export.ExportedProgram, path: Path, names: list[str], about: dict[str, str]) -> None:
    torch.export.save(program, path, extra_files={f"ganlib.{name}": text for name, text in about.items()})


def _run_torch(path: Path) -> Callable[[Inputs], dict[str, Tensor]]:
    module = torch.export.load(path).module()
    return lambda inputs: module(inputs)


_WRITE = {"onnx": _write_onnx, "torch": _write_torch}
_RUN = {"onnx": _run_onnx, "torch": _run_torch}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters write of themselves."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
