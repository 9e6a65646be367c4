"""The bodies of requests, checked before any work."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from ganlib._config import Config

__all__ = ["Answers", "Format", "Interpolation", "Neighbours", "Point", "Role", "Samples", "Walk"]

Format = Literal["png", "npy", "json", "csv"]
Role = Literal["served", "challenger"]

Seed = Annotated[int, Field(ge=0, lt=2**63, description="the same seed gives the same samples")]
Label = Annotated[
    Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=-(10**9), le=10**9)] | None,
    Field(description="a class by its name, or #3 for that of index 3; without it classes take turns"),
]
Attributes = Annotated[
    dict[str, float] | None,
    Field(max_length=1000, description="each of the data's by its name, in its unit; without, those of real examples"),
]
Truncation = Annotated[
    float | None, Field(gt=0, le=10, description="below 1: more typical, less varied; where the family has it")
]
OutputFormat = Annotated[Format | None, Field(description="one of the model's `formats`; by default the first")]
Index = Annotated[int, Field(ge=0, le=1_000_000)]


class Samples(Config):
    """Samples `first` to `first + n` of the endless row that a seed gives."""

    n: Annotated[int, Field(ge=1, description="how many; `limits.samples` of the model at most")] = 1
    seed: Seed = 0
    first: Index = 0
    label: Label = None
    attributes: Attributes = None
    truncation: Truncation = None
    where: Annotated[
        tuple[Annotated[str, Field(max_length=200)], ...],
        Field(max_length=16, description="of rows: COLUMN=VALUE, also with <, <=, >, >=, !=; all have to hold"),
    ] = ()
    format: OutputFormat = None
    model: Role = "served"


class Point(Config):
    """One sample: number `index` of a seed's row."""

    seed: Seed = 0
    index: Index = 0
    label: Label = None
    attributes: Attributes = None


class Interpolation(Config):
    """A path between two samples, both ends included."""

    start: Point
    end: Point
    steps: Annotated[int, Field(ge=2, le=64)] = 8
    truncation: Truncation = None
    format: OutputFormat = None
    model: Role = "served"


class Walk(Config):
    """A straight path through a sample, along a principal direction of the model."""

    point: Point
    direction: Annotated[int, Field(ge=0, le=100, description="0: that along which samples differ the most")] = 0
    reach: Annotated[float, Field(gt=0, le=10, description="to both sides, in standard deviations of the inputs")] = 3.0
    steps: Annotated[int, Field(ge=2, le=64)] = 9
    format: OutputFormat = None
    model: Role = "served"


class Neighbours(Config):
    """The training examples that a sample is nearest to."""

    point: Point
    truncation: Truncation = None
    n: Annotated[int, Field(ge=1, le=50)] = 9
    format: OutputFormat = None
    model: Role = "served"


class Answers(Config):
    """What a model says of examples that there are."""

    examples: Annotated[
        tuple[Any, ...],
        Field(
            min_length=1,
            description="as samples come in JSON: arrays [H, W, C], rows, or lines of text; of several parts, each an "
            "object with all of them",
        ),
    ]
    answer: Annotated[
        str | None, Field(max_length=200, description="one of the model's `answers`; without, all that are numbers")
    ] = None
    label: Label = None
    format: OutputFormat = None
    model: Role = "served"
