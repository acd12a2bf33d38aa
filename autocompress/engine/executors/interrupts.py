"""Ctrl-C: once to finish what is being evaluated, twice to leave at once."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["deferred"]


@contextlib.contextmanager
def deferred(tell: Callable[[], None]) -> Iterator[None]:
    """Let a first Ctrl-C wait until the block's end; then KeyboardInterrupt is raised.

    ``tell`` is called when it comes. A second one is raised at once. Only the main thread of a
    process that listens to Ctrl-C is concerned.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    asked = False

    def handle(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            before(number, frame)
        asked = True
        tell()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt
