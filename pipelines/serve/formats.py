"""Samples as PNG, NumPy's array file, JSON or CSV, by what their kind of data presents."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ganlib.data._spec import Spec
from pipelines.serve.schemas import Format

__all__ = ["MEDIA_TYPES", "asked_by", "encode", "formats", "numbers", "shown_as"]

MEDIA_TYPES: dict[Format, str] = {
    "png": "image/png",
    "npy": "application/x-npy",
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
}


def shown_as(spec: Spec) -> str:
    """How samples are best shown: `pictures` uint8 `[N, H, W, C]`, `rows`, `texts`, or another `array`."""
    match _presented(spec, _empty(spec)):
        case pd.DataFrame():
            return "rows"
        case list():
            return "texts"
        case _:
            return "pictures" if spec.kind.is_picture else "array"


def asked_by(spec: Spec) -> str:
    """How a person best gives an example that the model is asked about: a `file`, `lines` of text, or `json`."""
    shown = shown_as(spec)
    return "lines" if shown == "texts" else "file" if shown == "pictures" and len(spec.parts) == 1 else "json"


def formats(spec: Spec) -> tuple[Format, ...]:
    """The formats of samples, the most natural one of the kind first. Every kind of data has a picture."""
    match shown_as(spec):
        case "rows" | "texts":
            return ("json", "csv", "png")
        case _:
            return ("png", "npy", "json")


def encode(
    spec: Spec, stored: NDArray[Any], wanted: Format, about: dict[str, Any], columns: int | None = None
) -> bytes:
    """Stored samples `[N, *stored]` in one of their `formats`; `about` goes into JSON next to them.

    A PNG is one picture of all, in as many `columns`, or about square.
    """
    if wanted == "png":
        return _picture(spec, stored, columns)
    shown = _presented(spec, stored)
    if wanted == "npy":
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(shown), allow_pickle=False)
        return file.getvalue()
    if wanted == "csv":
        return _csv(shown)
    if isinstance(shown, pd.DataFrame):
        shown = shown.astype(object).where(shown.notna(), None).to_dict("records")
    elif isinstance(shown, np.ndarray):
        shown = shown.tolist()
    return json.dumps({**about, "samples": shown}, ensure_ascii=False, default=pd.Timestamp.isoformat).encode()


def numbers(found: NDArray[Any]) -> list[Any]:
    """For JSON, which has no NaN and nothing infinite: None."""
    listed = found.astype(object)
    listed[~np.isfinite(found)] = None
    numbers: list[Any] = listed.tolist()
    return numbers


def _picture(spec: Spec, stored: NDArray[Any], columns: int | None) -> bytes:
    decoded = spec.kind.decode(spec.sample, "sample", torch.from_numpy(stored))
    file = io.BytesIO()
    if stored.shape[1:] != spec.parts["sample"].stored and spec.kind.picture is not None:  # of a size of its own
        picture = spec.kind.picture(spec.sample, decoded)
    else:
        picture = spec.kind.preview(spec.sample, {"sample": decoded}, columns or math.ceil(math.sqrt(len(stored))))
    picture.save(file, "PNG")
    return file.getvalue()


def _csv(shown: pd.DataFrame | list[str]) -> bytes:
    if isinstance(shown, pd.DataFrame):
        return str(shown.to_csv(index=False)).encode()
    file = io.StringIO()
    csv.writer(file).writerows([["sample"], *([line] for line in shown)])
    return file.getvalue().encode()


def _presented(spec: Spec, stored: NDArray[Any]) -> Any:
    return spec.kind.present(spec.sample, "sample", stored)


def _empty(spec: Spec) -> NDArray[Any]:
    part = spec.parts["sample"]
    return np.zeros((1, *part.stored), part.dtype)
