"""Words, with their apostrophes and hyphens, and each other symbol that is no white space.

What Unicode writes after a letter or symbol to change it belongs to it: vowel signs, accents, joiners, the colour of an
emoji. White space itself is not kept: it is put back by the rules of English punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

__all__ = ["UNKNOWN", "join", "split"]

UNKNOWN = "<unk>"

_MARKS = "".join(c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c).startswith("M"))
_CHANGES = _MARKS + r"\U0001f3fb-\U0001f3ff\U000e0100-\U000e01ef"  # also the colours of emoji, and variants
_WORD = rf"\w[\w{_CHANGES}\u200c\u200d]*"
_SYMBOL = rf"[^\w\s][{_CHANGES}]*"
_FLAG = r"[\U0001f1e6-\U0001f1ff]{2}"
_TOKEN = re.compile(rf"{UNKNOWN}|{_WORD}(?:['’-]{_WORD})*|{_FLAG}|{_SYMBOL}(?:\u200d{_SYMBOL})*")
_NO_SPACE_BEFORE, _NO_SPACE_AFTER = frozenset(".,;:!?)]}"), frozenset("([{")


def split(line: str) -> list[str]:
    return _TOKEN.findall(line)


def join(tokens: Sequence[str]) -> str:
    pieces, glued = list[str](), True
    for token in tokens:
        pieces.append(token if glued or token in _NO_SPACE_BEFORE else f" {token}")
        glued = token in _NO_SPACE_AFTER
    return "".join(pieces)
