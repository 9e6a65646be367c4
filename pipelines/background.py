"""Work in a thread while a block of code runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["background_thread"]


@contextmanager
def background_thread(target: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `target(over)` in a thread; when the block ends, `over` is set, and the thread waited for."""
    over = threading.Event()
    thread = threading.Thread(target=target, args=(over,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
