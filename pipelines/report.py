"""The report of the stage `evaluate`: one HTML file that needs no other.

It holds nothing that another run of the same inputs would not: what times or names the machine is with the version.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ganlib.data._spec import Spec
from ganlib.export import Generator
from ganlib.health import Alarm, HealthConfig, Monitor, quality_name
from pipelines._stage import read_json, read_jsonl
from pipelines.model_card import Card, Metrics

__all__ = ["Exhibits", "figure_rows", "formatted", "template", "write_report"]

SHOWN = ("loss/discriminator", "loss/generator", "sign/real", "sign/fake", "diversity")


@dataclass
class Exhibits:
    """Pictures and tables, in their order, each with a heading and a sentence."""

    shown: list[dict[str, Any]] = field(default_factory=list)

    def add_picture(self, heading: str, about: str, picture: Any) -> None:
        """A picture of Pillow's, or the path of one."""
        content = picture.read_bytes() if isinstance(picture, Path) else _png(picture)
        self.shown.append({"heading": heading, "about": about, "source": _embedded(content)})

    def add_table(self, heading: str, about: str, table: pd.DataFrame) -> None:
        rows = [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]
        self.shown.append({"heading": heading, "about": about, "columns": [*table.columns], "rows": rows})


def write_report(
    path: Path,
    *,
    generator: Generator,
    card: Card,
    metrics: Metrics,
    about: Mapping[str, Any],
    exhibits: Exhibits,
    health: HealthConfig,
    trained: Path,
    prepared: Path,
) -> None:
    """Write the report. `health` has the settings of the training's alarms; `trained` and `prepared` are folders of
    stages. What is missing there is left out."""
    rows = read_jsonl(trained / "stats.jsonl")
    kept, data = read_json(trained / "kept.json", {}), read_json(prepared / "card.json", {})
    html = template("report.html").render(
        title=f"{generator.about.get('model', 'generator')} on {generator.about.get('data', 'data')}",
        card=card,
        kept=kept,
        about=about,
        sections=[(name, figure_rows(named, about["metrics"])) for name, named in metrics.items()],
        exhibits=exhibits.shown,
        curves=_curves(rows),
        alarms=_alarms(rows, health),
        rollbacks=int(rows[-1].get("health/rollbacks", 0)) if rows else 0,
        reports=len(rows),
        data=_facts(data),
        data_picture=_embedded((prepared / "card.png").read_bytes()) if (prepared / "card.png").is_file() else None,
        notes=data.get("notes", []),
        lineage=_lineage(generator.spec, trained / "generator", about),
    )
    path.write_text(html, encoding="utf-8")


def template(name: str) -> Template:
    """A template of this folder, which escapes HTML in its variables."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def figure_rows(named: Mapping[str, Mapping[str, float | None]], meanings: Mapping[str, Any]) -> list[dict[str, str]]:
    """A section of the metrics, as rows of text."""
    found = []
    for name, figures in named.items():
        of_metric = meanings.get(name, {})
        row = {key: formatted(figures.get(key)) for key in ("value", "floor", "copy", "before")}
        low, high = figures.get("low"), figures.get("high")
        row["interval"] = "" if low is None or high is None else f"{formatted(low)} to {formatted(high)}"
        found.append(
            {**row, "name": name, "better": of_metric.get("better", ""), "meaning": of_metric.get("meaning", "")}
        )
    return found


def formatted(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _alarms(rows: Sequence[Mapping[str, float]], health: HealthConfig) -> list[Alarm]:
    """The alarms of the training, each in its last state; the log of the training has the same lines."""
    monitor, found = Monitor(health), dict[tuple[str, float], Alarm]()
    for row in rows:
        found |= {(alarm.kind, alarm.since_kimg): alarm for alarm in monitor.update(row)}
    return [*found.values()]


def _curves(rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Pictures of what belongs together in the training, with its names."""
    from matplotlib.figure import Figure

    quality = next((name for row in rows if (name := quality_name(row))), None)
    of_fits = dict.fromkeys(name for row in rows if "fit_kimg" in row for name in row if name.startswith("loss/"))
    groups = [*([name] for name in of_fits), SHOWN[:2], SHOWN[2:4], [quality] if quality else [], SHOWN[4:]]
    found = []
    for group in groups:
        names = [name for name in group if any(name in row for row in rows)]
        if not names:
            continue
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for name in names:
            points = [(row["kimg"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 10 else "")  # one has no line
        axes.set_xlabel("kimg")
        axes.legend()
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
        found.append({"names": names, "source": _embedded(content.getvalue())})
    return found


def _facts(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The data card's figures, those of a mapping under names with dots; one of plain figures alone in a line."""
    found: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, Mapping) and any(isinstance(one, Mapping | list) for one in value.values()):
            found += [(f"{name}.{key}", text) for key, text in _facts(value)]
        elif isinstance(value, Mapping):
            found.append((name, ", ".join(f"{key}: {_cell(one)}" for key, one in value.items())))
        elif name != "notes":
            found.append((name, json.dumps(value) if isinstance(value, list) else _cell(value)))
    return found


def _cell(value: Any) -> str:
    """A value as a table shows it; nothing for one that is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


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
