"""Write docs/reference.md: every key of the parameters and every metric, as code and files of `params` have them.

    python docs/make_reference.py

Types, bounds and defaults are those of the pydantic models, meanings the comments where a key first stands, and metrics
what their docstrings say. `tests/test_docs.py` fails while the file is not current.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ganlib import config, registry
from ganlib.augment import AugmentConfig
from ganlib.penalties import PENALTIES
from ganlib.schedules import Schedule

ROOT = Path(__file__).parents[1]
OUT = Path(__file__).with_name("reference.md")
BOUNDS = {
    "gt": "> {}",
    "ge": "≥ {}",
    "lt": "< {}",
    "le": "≤ {}",
    "min_length": "at least {} long",
    "pattern": "like {}",
}

FILES = ("datasets", "models", "presets")  # keys that are folders of files; each folder has a table

Meanings = dict[str, str]
"""what is said of a key, by its dotted path in a file"""

AUGMENT: Meanings = {
    "operations": "each with its share of the probability, or a list of names; may be left out: as in the paper",
    "probability": "of each operation, or a schedule of it; may be left out: as in the paper",
    "target": "what the probability is adapted to; null: it is not; may be left out: as in the paper",
}


def meanings(path: Path) -> Meanings:
    """The comment next to each key of a YAML file, with the lines that go on below it; or a line above it."""
    found: Meanings = {}
    open_keys: list[tuple[int, str]] = []
    current, column, above = None, 0, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        comment = re.search(r"(?:^|\s)# ?(.*)$", line)
        entry = re.match(r"( *)([\w.-]+):(?: |$)", line)
        if entry:
            indent = len(entry[1])
            open_keys = [(i, key) for i, key in open_keys if i < indent] + [(indent, entry[2])]
            current, column = None, 0
            if comment and comment.start(1) > entry.end():
                current, column = ".".join(key for _, key in open_keys), line.index("#", entry.end())
                found[current] = comment[1].strip()
            elif above and above.index("#") == indent > 0:
                found[".".join(key for _, key in open_keys)] = above.strip("# ")
            above = ""
        elif comment and current and line.strip().startswith("#") and line.index("#") == column:
            found[current] += " " + comment[1].strip()
        elif not line.strip():
            current = None
        else:
            above = line if line.lstrip().startswith("#") else ""
    return found


def docstrings(model: type[BaseModel]) -> Meanings:
    """The string below each key in the model's code."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    found: Meanings = {}
    for key, below in pairwise(definition.body):
        match key, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def shown(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type as a person reads it, with its bounds."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shown(arguments[0], (*arguments[1:], *metadata))
    limits = []
    for item in metadata:
        for entry in item.metadata if isinstance(item, FieldInfo) else (item,):
            limits += [
                text.format(limit) for name, text in BOUNDS.items() if (limit := getattr(entry, name, None)) is not None
            ]
    name = _bare(annotation, origin, arguments)
    return f"{name} {', '.join(limits)}" if limits else name


def _bare(annotation: Any, origin: Any, arguments: tuple[Any, ...]) -> str:
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(shown(argument) for argument in arguments))
    if origin is Literal:
        return " \\| ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        inner = [shown(argument) for argument in arguments if argument is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return f"{{{shown(arguments[0])}: {shown(arguments[1])}}}"
    if annotation in (None, type(None)):
        return "null"
    if annotation is Schedule:
        return "schedule"
    plain = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "anything"}
    if annotation in plain:
        return plain[annotation]
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "a section"
    return str(annotation)


def default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return f"`{'null' if value is None else _plain(value)}`"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value


def rows(model: type[BaseModel], said: list[Meanings], prefix: str = "", path: str = "") -> Iterator[str]:
    """A line of a table for each key of a model, those of its sections below it; what is `said` first counts, then what
    the code says."""
    in_code = docstrings(model)
    for name, field in model.model_fields.items():
        dotted = f"{path}{name}"
        section = _section(field.annotation)
        meaning = next((of[key] for of in said for key in _looked_up(dotted) if key in of), in_code.get(name, ""))
        cell = re.sub(r"(?<!\\)\|", r"\\|", meaning)
        yield f"| `{prefix}{name}` | {shown(field.annotation, tuple(field.metadata))} | {default(field)} | {cell} |"
        if section is not None:
            yield from rows(section, said, f"{prefix}{name}.", f"{dotted}.")


def _looked_up(dotted: str) -> tuple[str, ...]:
    """Under what a key may be explained; the players have the same keys, which stand with the generator first."""
    return dotted, dotted.replace("discriminator.", "generator."), dotted.rpartition(".")[2]


def _section(annotation: Any) -> type[BaseModel] | None:
    """The closed section that a key holds, if its keys are always the same."""
    open_ones = (Schedule, config.Config, AugmentConfig, config.PenaltyConfig)
    if get_origin(annotation) is Annotated:
        return _section(get_args(annotation)[0])
    closed = inspect.isclass(annotation) and issubclass(annotation, BaseModel) and annotation not in open_ones
    return annotation if closed else None


def table(model: type[BaseModel], said: list[Meanings], without: Collection[str] = (), path: str = "") -> Iterator[str]:
    lines = [line for line in rows(model, said, path=path) if line.split("`")[1] not in without]
    if not lines:
        yield "No keys."
        return
    yield from ("| key | what it may be | left out | meaning |", "|---|---|---|---|", *lines)


INTRODUCTION = """\
# Reference

Made by `python docs/make_reference.py` of the code and of the comments in `params`; do not edit it. A key in a section
is written with a dot, as `-S` takes it. *Left out* is what an absent key means; shipped files may say otherwise. An
empty field: the key has to be there, or is a section.
"""


def sections() -> Iterator[str]:
    """The page, line by line."""
    datasets = {path: meanings(path) for path in sorted((ROOT / "params/datasets").glob("*.yaml"))}
    explained = [datasets[ROOT / f"params/datasets/{name}.yaml"] for name in ("mnist", "photos", "mnist_one_class")]

    def of_data(key: str, name: str) -> list[Meanings]:
        """Files that name it come first: keys are explained where they first stand."""
        own = [found for path, found in datasets.items() if f"{key}: {name}" in path.read_text(encoding="utf-8")]
        return [*own, *explained, *datasets.values()]

    yield from INTRODUCTION.splitlines()
    yield from ("", "## params.yaml", "", *table(config.Params, [meanings(ROOT / "params.yaml")], FILES))
    yield from ("", "## params/datasets/NAME.yaml", "", *table(config.DatasetConfig, explained))
    for name in registry.names("sources"):
        module = registry.load("sources", name)
        yield from ("", f"### source: {name}", "", _first_paragraph(module), "")
        yield from table(module.Config, of_data("name", name), path="source.")
    for name in registry.names("data"):
        module = registry.load("data", name)
        yield from ("", f"### sample: {name}", "", _first_paragraph(module), "")
        yield from table(module.Config, of_data("kind", name), path="sample.")
    models = {name: meanings(ROOT / f"params/models/{name}.yaml") for name in registry.names("models")}
    yield from ("", "## params/models/NAME.yaml", "", *table(config.ModelConfig, [models["dcgan"]]))
    for name, said in models.items():
        module = registry.load("models", name)
        yield from ("", f"### network: {name}", "", _first_paragraph(module), "")
        yield from table(module.Config, [said, models["dcgan"], *models.values()], without=["family"], path="network.")
    yield from (
        "",
        "### augment",
        "",
        models["dcgan"]["augment"].replace("|", "or"),
        "",
        *table(AugmentConfig, [AUGMENT]),
    )
    yield from ("", "### penalties", "", "| penalty | options besides `weight` and `every` | what |", "|---|---|---|")
    for name, penalty in PENALTIES.items():
        arguments = inspect.signature(penalty, eval_str=True).parameters.values() if inspect.isclass(penalty) else ()
        options = ", ".join(f"`{a.name}` {shown(a.annotation)} (`{a.default}`)" for a in arguments)
        yield f"| `{name}` | {options} | {_first_line(penalty)} |"
    yield from ("", "### a schedule, where that may stand in place of a number", "", *table(Schedule, []))
    yield from ("", "### a dimension of search, exactly one of", "", *table(config.Search, []))
    yield from (
        "",
        "## Feature spaces",
        "",
        "Sections of `outputs/evaluate/metrics.json`; options: in `reference.spaces`.",
    )
    yield from ("", "| space | data | options | what |", "|---|---|---|---|")
    for folder, name, module in _in_folders("spaces"):
        options = ", ".join(f"`{key}`" for key in module.Config.model_fields)
        yield f"| `{name}` | {folder} | {options} | {_first_line(module)} |"
    yield from (
        "",
        "## Metrics",
        "",
        "Each section has those whose columns it has; `about.json` lists what no section has.",
    )
    yield from ("", "| metric | data | better | from, to | needs | what |", "|---|---|---|---|---|---|")
    for folder, name, module in _in_folders("metrics"):
        span = "{:g}, {:g}".format(*getattr(module, "BOUNDS", (-math.inf, math.inf))).replace("inf", "∞")
        needs = ", ".join(f"`{need}`" for need in module.NEEDS)
        yield f"| `{name}` | {folder} | {module.DIRECTION} | {span} | {needs} | {_first_paragraph(module)} |"


def _in_folders(kind: str) -> Iterator[tuple[str, str, Any]]:
    """What is registered for any data, and for data that look like the name of a folder."""
    for_any = registry.names(kind, None)
    for name in for_any:
        yield "any", name, registry.load(kind, name, None)
    for folder in registry.folders(kind):
        for name in registry.names(kind, folder):
            if name not in for_any:
                yield folder, name, registry.load(kind, name, folder)


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].replace("|", "\\|")


def _first_paragraph(module: Any) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split()).replace("|", "\\|")


def page() -> str:
    return "\n".join(sections()) + "\n"


if __name__ == "__main__":
    OUT.write_text(page(), encoding="utf-8")
