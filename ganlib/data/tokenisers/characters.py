"""Each character (code point) is a token."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["UNKNOWN", "join", "split"]

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def split(line: str) -> list[str]:
    return list(line)


def join(tokens: Sequence[str]) -> str:
    return "".join(tokens)
