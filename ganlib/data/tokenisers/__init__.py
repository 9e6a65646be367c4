"""One file a tokeniser; see `ganlib.registry`. A file has

- `split(line) -> list[str]`: the tokens of a line of text;
- `join(tokens) -> str`: the line of such tokens, which `split` gives back;
- `UNKNOWN`: how a token outside of the vocabulary is written, which `split` keeps whole.
"""
