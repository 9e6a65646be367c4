"""One file an entry; see `ganlib.registry`."""
