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

_MARKS = {code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M")}
# ranges, in which `re` searches faster than in single characters; also the colours of emoji, their tags, and variants
_FIRST, _LAST = (sorted(code for code in _MARKS if code + step not in _MARKS) for step in (-1, 1))
_CHANGES = "".join(
    rf"\U{first:08x}-\U{last:08x}"
    for first, last in (*zip(_FIRST, _LAST, strict=True), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F), (0xE0100, 0xE01EF))
)
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
