"""Waiting for what other processes and threads do, on machines however slow."""

import time
from collections.abc import Callable

#: Seconds that nothing here takes on any machine.
FAR = 600.0


def until(true: Callable[[], object]) -> bool:
    """Wait until something is true; tell whether it came to be."""
    end = time.monotonic() + FAR
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
