"""What commands share: errors of one line, arguments, progress bars, groups with a command that need not be named."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ganlib.export import Generator

__all__ = [
    "UNLIMITED",
    "AsJson",
    "ModelURI",
    "Reason",
    "VersionURI",
    "console_for",
    "default_command",
    "load_generator",
    "one_line_errors",
    "progress",
]

T = TypeVar("T")

UNLIMITED = 100_000
"""cells: wider than any table"""

ModelURI = Annotated[
    str,
    typer.Argument(metavar="MODEL_URI", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a generator's folder"),
]
VersionURI = Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME@ALIAS or models:/NAME/VERSION")]
Reason = Annotated[str, typer.Option(help="why; it is kept with the version")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a person can mend is said in a line, with exit status 1. A reader that has gone is no error to tell."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        from ganlib.config import ConfigError
        from pipelines._stage import StageError, printable_error

        try:
            command(*args, **kwargs)
        except BrokenPipeError:
            raise  # such as `| head -1`: click ends without a word
        except (ConfigError, StageError, OSError) as error:
            typer.echo(f"ganlib: {printable_error(error)}", err=True)
            raise typer.Exit(1) from error

    return guarded


def default_command(name: str) -> type[TyperGroup]:
    """A group in which words that name no command are the arguments of the command `name`, options too."""

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            """Options and nothing, which `resolve_command` is not asked about."""
            own = args[0] in self.get_help_option_names(ctx) if args else self.no_args_is_help
            is_options = not args or args[0].startswith("-")
            return super().parse_args(ctx, [name, *args] if is_options and not own else args)

        def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
            return super().resolve_command(ctx, args if args[0] in self.commands else [name, *args])

    return Group


def load_generator(model_uri: str) -> Generator:
    """Raises StageError if the address leads to no generator."""
    import ganlib
    from pipelines._stage import StageError

    try:
        return ganlib.load(model_uri)
    except ValueError as error:
        raise StageError(str(error)) from error


def console_for(table: Table) -> Console:
    """The console of stdout; to a file or a pipe, wide enough that no cell of the table is cut."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        whole = Measurement.get(console, console.options.update_width(UNLIMITED), table)
        console.width = max(console.width, whole.maximum)
    return console


def progress(chunks: Iterable[T], total: int, what: str, size: Callable[[T], int]) -> Iterator[T]:
    """The chunks, with a bar on stderr while they come, where that is a terminal; their sizes sum to `total`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        for chunk in chunks:
            yield chunk
            bar.advance(task, size(chunk))
