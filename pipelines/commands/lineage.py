"""`ganlib lineage …`: what a version was made from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from pipelines.commands._common import AsJson, VersionURI, console_for, default_command, one_line_errors

if TYPE_CHECKING:
    from pipelines.lineage import Check
    from pipelines.model_registry import Version

__all__ = ["app"]

app = typer.Typer(
    help="What a registered model was made from. `ganlib lineage MODEL_URI` is `ganlib lineage show MODEL_URI`.",
    cls=default_command("show"),
    subcommand_metavar="(MODEL_URI | COMMAND [ARGS]...)",
    no_args_is_help=True,
)


@app.command()
@one_line_errors
def show(model_uri: VersionURI, as_json: AsJson = False) -> None:
    """Compare what a version was made from with what lies in this folder; exit status 1 if they differ."""
    from ganlib.config import load_params
    from pipelines import lineage as lineage_facts
    from pipelines.loading import default_store
    from pipelines.model_registry import version_by_uri

    version = version_by_uri(default_store(), model_uri)
    recorded = lineage_facts.recorded(version.tags)
    checks, notes = lineage_facts.verify(recorded, lineage_facts.facts(load_params())), []
    both_changed = any(check.verdict == "changed" for check in checks)
    if name := recorded.get("dvc_exp_name"):
        commit = lineage_facts.experiment_commit(name) or "not here: `dvc exp pull` brings it"
        notes.append(f"DVC's experiment {name}, which holds what -S changed: {commit}")
    elif recorded.get("git.dirty") == "true":
        notes.append(
            "git.dirty: true: files were changed that no commit holds; the facts that begin with dvc.lock name them"
            + ("; here files are changed, too: Git does not say whether in the same way" if both_changed else "")
        )
    _report(version, checks, notes, "here", as_json)


@app.command()
@one_line_errors
def verify(model_uri: VersionURI, as_json: AsJson = False) -> None:
    """Check the commit and the data out into a scratch folder, compute the hashes anew, and say what differs.

    Exit status 1 where anything does, or where the data could not be hashed.
    """
    from pipelines import verify as verification
    from pipelines.loading import default_store
    from pipelines.model_registry import version_by_uri

    store = default_store()
    version = version_by_uri(store, model_uri)
    checks, notes = verification.verify(store, version)
    _report(version, checks, notes, "checked out", as_json)


def _report(version: Version, checks: list[Check], notes: list[str], found: str, as_json: bool) -> None:
    """Print the checks. Raises typer.Exit with status 1 where one differs."""
    from rich.table import Table
    from rich.text import Text

    differs = any(check.verdict == "differs" for check in checks)
    if as_json:
        rows = [{**check._asdict(), "verdict": check.verdict} for check in checks]
        typer.echo(json.dumps({"version": version.uri, "differs": differs, "facts": rows, "notes": notes}, indent=2))
    else:
        table = Table("fact", "recorded", found, "", title=f"{version.model} version {version.number}")
        styles = {"match": "", "unknown": "yellow", "changed": "yellow", "differs": "red"}
        for check in checks:
            verdict = Text(check.verdict, styles[check.verdict])
            table.add_row(Text(check.fact), Text(check.recorded[:12]), Text(check.here[:12]), verdict)
        console_for(table).print(table)
        for note in notes:
            typer.echo(note)
    if differs:
        raise typer.Exit(1)
