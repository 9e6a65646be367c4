"""Words, with their apostrophes and hyphens, and each other symbol that is no white space.

White space itself is not kept: it is put back by the rules of English punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["UNKNOWN", "join", "split"]

UNKNOWN = "<unk>"

_TOKEN = re.compile(rf"{UNKNOWN}|\w+(?:['’-]\w+)*|[^\w\s]")
_NO_SPACE_BEFORE, _NO_SPACE_AFTER = frozenset(".,;:!?)]}"), frozenset("([{")


def split(line: str) -> list[str]:
    return _TOKEN.findall(line)


def join(tokens: Sequence[str]) -> str:
    pieces, glued = list[str](), True
    for token in tokens:
        pieces.append(token if glued or token in _NO_SPACE_BEFORE else f" {token}")
        glued = token in _NO_SPACE_AFTER
    return "".join(pieces)
