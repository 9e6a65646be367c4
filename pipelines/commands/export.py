"""`ganlib export`: a generator as one graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands._common import ModelURI, one_line_errors

__all__ = ["export"]


@one_line_errors
def export(
    model_uri: ModelURI,
    format: Annotated[str, typer.Option("-f", "--format", help="onnx, or torch for torch.export")] = "onnx",
    latent: Annotated[
        bool, typer.Option("--latent", help="the graph's inputs are latent vectors, not the key of a seed")
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="the folder to write to")] = Path("export"),
) -> None:
    """Write a generator as one graph, for runtimes without this code, and check that it makes the same samples."""
    import ganlib
    from ganlib.graph import FORMATS, GraphError, export_graph
    from ganlib.registry import nearest
    from pipelines._stage import StageError

    if format not in FORMATS:
        raise StageError(f"--format: {format!r} is not one{nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    try:
        made = export_graph(ganlib.load(model_uri, "cpu"), output, format, latent=latent)
    except GraphError as error:
        raise StageError(f"{model_uri}: {error}") from error
    except ValueError as error:  # which names the folder
        raise StageError(str(error)) from error
    if made.fault:
        raise StageError(f"{model_uri}: {format}: {made.fault}")
    typer.echo(f"{made.path}: of {', '.join(made.inputs)}; within {made.difference:.1e} of the generator")
