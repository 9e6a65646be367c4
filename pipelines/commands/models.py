"""`ganlib models …` and `ganlib approve`: versions of registered models, compared, promoted and rolled back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands._common import (
    UNLIMITED,
    AsJson,
    Reason,
    VersionURI,
    console_for,
    default_command,
    load_generator,
    one_line_errors,
)

if TYPE_CHECKING:
    from pipelines.promotion import Move
    from pipelines.tracking import Store

__all__ = ["app", "approve"]

LEAST_REASON = 30
"""cells of a terminal; narrower columns of reasons are not readable"""

app = typer.Typer(
    help="Versions of registered models. `ganlib models` lists all of them, `ganlib models NAME` those of one model.",
    cls=default_command("list"),
    subcommand_metavar="(NAME | COMMAND [ARGS]...)",
    no_args_is_help=False,
)


@app.command("list")
@one_line_errors
def list_versions(
    model: Annotated[str | None, typer.Argument(metavar="[NAME]", help="of a registered model; without, all")] = None,
    as_json: AsJson = False,
) -> None:
    """List versions: aliases, what the gate decided and why, and the figure by which it did."""
    from datetime import UTC, datetime

    from pipelines import model_registry
    from pipelines._stage import json_text
    from pipelines.loading import default_store

    store = default_store() if model is None else _store_with(model)
    found = [
        {
            "model": version.model,
            "version": version.number,
            "aliases": sorted(alias for alias, number in of.items() if number == version.number),
            "decision": version.tags.get("gate.decision", "none"),
            "metric": version.tags.get("gate.metric"),
            "value": json.loads(version.tags.get("gate.challenger", "null")),
            "registered": datetime.fromtimestamp(version.created_ms / 1000, UTC).isoformat(timespec="seconds"),
            "reason": version.tags.get("gate.reason", ""),
        }
        for name, of in model_registry.aliases(store).items()
        if model in (None, name)
        for version in model_registry.versions(store, name)
    ]
    if as_json:
        typer.echo(json_text(found))
        return
    for one in found:
        one["aliases"] = ", ".join(one["aliases"])
        one["registered"] = one["registered"][:16].replace("T", " ")
    _print_table(found)


@app.command()
@one_line_errors
def compare(
    one: VersionURI,
    other: VersionURI,
    metric: Annotated[
        list[str] | None, typer.Option(help="SECTION.METRIC, of outputs/evaluate/metrics.json; may be repeated")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score two versions anew on the test data in this folder, with the seeds of `evaluate`.

    The interval is of the difference, the first less the second. Without a metric it is that of the gate.
    """
    from ganlib.config import load_params
    from pipelines._stage import json_text
    from pipelines.gate import compare_generators

    params = load_params()
    typer.echo(f"loading {one} and {other}", err=True)
    generators = load_generator(one), load_generator(other)
    figures = compare_generators(*generators, params, metric or (), say=lambda line: typer.echo(line, err=True))
    rows = []
    for found in figures:
        rows.append(
            {
                "metric": found.metric,
                one: found.challenger,
                other: found.champion,
                "difference": found.difference,
                "low": found.low,
                "high": found.high,
                "better is": found.direction,
                "clearly better": _clearly_better(found, one, other),
            }
        )
    if as_json:
        typer.echo(json_text(figures))
        return
    _print_table(rows)


@app.command()
@one_line_errors
def promote(model_uri: VersionURI, reason: Reason) -> None:
    """Make a version the champion, regardless of the gate."""
    from pipelines import model_registry, promotion
    from pipelines.loading import default_store

    store = default_store()
    version = model_registry.version_by_uri(store, model_uri)
    typer.echo(_sentence(version.model, promotion.promote(store, version, reason)))


@app.command()
@one_line_errors
def rollback(
    model: Annotated[str, typer.Argument(metavar="NAME", help="of the registered model")], reason: Reason
) -> None:
    """Make the previous champion the champion again. A second one takes the first back."""
    from pipelines import promotion

    typer.echo(_sentence(model, promotion.rollback(_store_with(model), model, reason)))


@app.command()
@one_line_errors
def history(
    model: Annotated[str, typer.Argument(metavar="NAME", help="of the registered model")], as_json: AsJson = False
) -> None:
    """List what people moved: when, who and why. What the gate decided is in `ganlib models list`."""
    from pipelines import promotion

    found = [move._asdict() for move in promotion.moves(_store_with(model), model)]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _print_table(found)


@one_line_errors
def approve(model_uri: VersionURI, reason: Reason) -> None:
    """Make a version the champion that the gate holds for a person's approval (`gate.approval: human`)."""
    from pipelines import model_registry, promotion
    from pipelines.loading import default_store

    store = default_store()
    version = model_registry.version_by_uri(store, model_uri)
    typer.echo(_sentence(version.model, promotion.approve(store, version, reason)))


def _store_with(model: str) -> Store:
    """The tracking store. Raises StageError if it has no such model."""
    from pipelines import model_registry
    from pipelines._stage import StageError
    from pipelines.loading import default_store

    store = default_store()
    known = model_registry.aliases(store)
    if model not in known:
        raise StageError(f"{model}: no such model; known: {', '.join(known) or 'none'}")
    return store


def _sentence(model: str, move: Move) -> str:
    before = "the first" if move.over is None else f"in place of version {move.over}"
    return f"{model} version {move.version} is the champion, {before}: {move.reason}"


def _clearly_better(found: Any, one: str, other: str) -> str:
    if found.low <= 0 <= found.high:
        return "neither"
    return one if (found.low > 0) == (found.direction == "higher") else other


def _figure(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows without cutting a value: to a file or a pipe in lines as long as they need be, to a terminal that
    is too narrow a value to a line."""
    from rich.cells import cell_len
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo("none")
        return
    table, records = Table(), Table(show_header=False)
    records.add_column(no_wrap=True)
    records.add_column(overflow="fold")
    for name in rows[0]:
        widest = max(cell_len(_figure(row[name])) for row in rows)
        # a reason may be folded; all else stands in a line
        least = min(widest, LEAST_REASON) if name == "reason" else max(widest, cell_len(name))
        table.add_column(name, no_wrap=name != "reason", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*(Text(_figure(value)) for value in row.values()))
        for name, value in row.items():
            records.add_row(name, Text(_figure(value)), end_section=name == [*row][-1])
    console = console_for(table)
    whole = Measurement.get(console, console.options.update_width(UNLIMITED), table)
    console.print(table if whole.minimum <= console.width else records)
