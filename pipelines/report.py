"""The report of the stage `evaluate`: one HTML file that needs no other.

It holds nothing that another run of the same inputs would not: what times or names the machine is with the version.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from ganlib.data._spec import Spec
from ganlib.export import Generator
from ganlib.health import quality_name
from ganlib.metrics._neighbours import nearest
from ganlib.reference import Reference
from pipelines.model_card import Card, Metrics

__all__ = ["Pictures", "interpolations", "least_realistic", "truncated", "write_report"]

TRUNCATION = 0.5
STEPS = 10  # of an interpolation
ROWS = 30  # of a table of neighbours
SHOWN = ("loss/discriminator", "loss/generator", "sign/real", "sign/fake", "diversity")


@dataclass
class Pictures:
    """What is shown, in its order, each with a heading and a sentence."""

    shown: list[dict[str, str]] = field(default_factory=list)

    def add(self, heading: str, about: str, picture: Any) -> None:
        """A picture of Pillow's, or the path of one."""
        content = picture.read_bytes() if isinstance(picture, Path) else _png(picture)
        self.shown.append({"heading": heading, "about": about, "source": _embedded(content)})


def truncated(generator: Generator, n: int, seed: int) -> Tensor | None:
    """`n` samples at a truncation of `TRUNCATION`; None of generators that know none."""
    if generator.translates:
        return None
    try:
        return generator.sample(n, seed=seed, truncation=TRUNCATION)["sample"]
    except ValueError:
        return None


def interpolations(generator: Generator, rows: int, seed: int) -> Tensor | None:
    """`rows` times `STEPS` pictures on the great circle between two latents of one class; None where samples are no
    pictures, or are made of something."""
    if generator.translates or generator.spec.kind.LOOKS != "picture":
        return None
    made = []
    for row in range(rows):
        condition: dict[str, Any] = {name: x[row] for name, x in generator.conditions(rows).items()}
        if "label" in condition:
            condition["label"] = int(condition["label"])
        made.append(generator.interpolate([2 * row, 2 * row + 1], STEPS - 1, seed=seed, **condition))
    return torch.cat(made)


def least_realistic(samples: Any, features: Tensor, reference: Reference, n: int) -> Tensor:
    """The `n` of samples, which may be made when they are asked for, whose `features` are the farthest from those of
    any training example, farthest first."""
    space = next(space for space in reference.spaces.values() if space.column == "features")
    distances, _ = nearest(features, space.train, 1)
    farthest = distances[:, 0].argsort(descending=True, stable=True)[:n].tolist()
    return torch.cat([samples[row : row + 1] for row in farthest])


def write_report(
    path: Path,
    *,
    generator: Generator,
    card: Card,
    metrics: Metrics,
    about: Mapping[str, Any],
    pictures: Pictures,
    neighbours: Path | None,
    trained: Path,
    prepared: Path,
) -> None:
    """Write the report. `neighbours` is a CSV file of data that are read, `trained` and `prepared` are folders of
    stages, of which what is missing is left out."""
    rows = _statistics(trained / "stats.jsonl")
    kept = json.loads(text) if (text := _text(trained / "kept.json")) else {}
    data = json.loads(_text(prepared / "card.json") or "{}")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("report.html").render(
        title=f"{generator.about.get('model', 'generator')} on {generator.about.get('data', 'data')}",
        card=card,
        kept=kept,
        about=about,
        sections=[(name, _figures(named, about["metrics"])) for name, named in metrics.items()],
        pictures=pictures.shown,
        neighbours=_table(neighbours),
        curves=_curves(rows),
        alarms=[(row["kimg"], int(row["health/alarms"])) for row in rows if row.get("health/alarms")],
        reports=len(rows),
        data=_facts(data),
        data_picture=_embedded((prepared / "card.png").read_bytes()) if (prepared / "card.png").is_file() else None,
        notes=data.get("notes", []),
        lineage=_lineage(generator.spec, trained / "generator", about),
    )
    path.write_text(html, encoding="utf-8")


def _figures(named: Mapping[str, Mapping[str, float | None]], meanings: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for name, figures in named.items():
        of_metric = meanings.get(name, {})
        row = {key: _number(figures.get(key)) for key in ("value", "floor", "copy", "before")}
        low, high = figures.get("low"), figures.get("high")
        row["interval"] = "" if low is None or high is None else f"{_number(low)} to {_number(high)}"
        found.append(
            {**row, "name": name, "better": of_metric.get("better", ""), "meaning": of_metric.get("meaning", "")}
        )
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _statistics(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (_text(file) or "").splitlines()]


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _table(file: Path | None) -> list[list[str]]:
    """The head of a CSV file, its names first."""
    if file is None:
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return [row for row, _ in zip(csv.reader(lines), range(ROWS + 1), strict=False)]


def _curves(rows: Sequence[Mapping[str, float]]) -> str | None:
    """Curves of the training, as a picture."""
    from matplotlib.figure import Figure

    quality = next((name for row in rows if (name := quality_name(row))), None)
    groups = [SHOWN[:2], SHOWN[2:4], [quality] if quality else [], SHOWN[4:]]
    groups = [[name for name in group if any(name in row for row in rows)] for group in groups]
    groups = [group for group in groups if group]
    if not groups:
        return None
    figure = Figure(figsize=(10, 2.6 * ((len(groups) + 1) // 2)), layout="constrained")
    for place, group in enumerate(groups, 1):
        axes = figure.add_subplot((len(groups) + 1) // 2, 2, place)
        for name in group:
            points = [(row["kimg"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name)
        axes.set_xlabel("kimg")
        axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    return _embedded(content.getvalue())


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data card's figures, those of a mapping under names with dots."""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{key}", text) for key, text in _facts(value)]
        elif name != "notes":
            found.append((name, "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)))
    return found


def _lineage(spec: Spec, folder: Path, about: Mapping[str, Any]) -> list[tuple[str, str]]:
    weights = folder / "generator.safetensors"
    return [
        ("SHA-256 over all examples", spec.content_hash),
        ("SHA-256 of the code of the kind of data", spec.code or "not recorded"),
        ("SHA-256 of the weights", hashlib.sha256(weights.read_bytes()).hexdigest()),
        *((f"feature space {name}, code", space["code"]) for name, space in about["spaces"].items()),
    ]


def _png(picture: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
