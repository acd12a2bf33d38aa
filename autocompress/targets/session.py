"""What an opened file is; numpy alone, so that no one who runs one needs torch."""

from typing import Any, Protocol

import numpy as np

__all__ = ["Array", "Session"]

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """An opened file. Calls take and return numpy arrays, of any batch size."""

    load_ms: float
    peak_memory_bytes: int | None

    def __call__(self, *arrays: Array) -> Any:
        """Run the file; return an array, or a tuple where there are several outputs."""

    def again(self) -> "Session":
        """Return the file opened once more, so that it lies elsewhere in memory."""

    def example_inputs(self, batch_size: int = 1) -> tuple[Array, ...]:
        """Return arrays that the file takes, the same at every call."""
