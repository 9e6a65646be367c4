"""The base of every configuration: frozen, closed, and with errors a person can act on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from ganlib.registry import nearest

__all__ = ["Config", "refuse_moved"]


class Config(BaseModel):
    """A frozen model that refuses unknown keys, naming the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for key in data:
                if key not in cls.model_fields:
                    raise PydanticCustomError(
                        "unknown_key",
                        "unknown key '{key}'{hint}; known: {known}",
                        {
                            "key": str(key),
                            "hint": nearest(str(key), cls.model_fields),
                            "known": ", ".join(cls.model_fields),
                        },
                    )
        return data


def refuse_moved(section: Any, moved: Mapping[str, str]) -> Any:
    """`section` as it is. Raises ValueError for a key that has another name, `moved[key]`, since the last version."""
    for old, new in moved.items():
        if isinstance(section, Mapping) and old in section:
            raise ValueError(f"{old} is now {new}")
    return section
