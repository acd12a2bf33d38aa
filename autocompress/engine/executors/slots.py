"""Slots: how much of a machine a trial takes, by the rung of its recipe.

A slot is a CPU, and a lock on a file in the machine's temporary folder: the system frees the locks
of a process that dies, so that nothing is ever leaked. A gate lets one process at a time gather its
slots, so that two never wait for each other.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["Share", "share_of", "slots"]

_PAUSE = 0.02  # seconds between two looks at slots that others hold


@dataclass(frozen=True)
class Share:
    """What a trial takes of a machine: CPUs, and the fraction of a GPU if there is one."""

    cpus: int
    gpu: float = 0.0


#: By rung: scoring runs on one thread, recovery trains.
_SHARES = (Share(1), Share(2, 0.5), Share(4, 1.0))


def share_of(rung: int) -> Share:
    """Return what a trial of a rung takes."""
    return _SHARES[min(rung, len(_SHARES) - 1)]


@contextlib.contextmanager
def slots(key: str, count: int, available: int) -> Iterator[int]:
    """Wait for so many slots and hold them; yield how many they are, threads to run on.

    ``key``: of the run that shares them, the name of a folder in the machine's temporary one;
    ``available``: slots of this machine, the most there are.
    """
    folder = Path(tempfile.gettempdir()) / key
    folder.mkdir(exist_ok=True)
    count = min(count, available)
    with contextlib.ExitStack() as held:
        with FileLock(folder / "gate"):
            taken = set[int]()
            while len(taken) < count:
                for place in set(range(available)) - taken:
                    lock = FileLock(folder / f"slot{place}")
                    with contextlib.suppress(Timeout):
                        lock.acquire(timeout=0)
                        held.callback(lock.release)
                        taken.add(place)
                    if len(taken) == count:
                        break
                else:
                    time.sleep(_PAUSE)
        yield count
