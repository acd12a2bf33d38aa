"""What image classification tasks share: split arrays in, a Task out."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError, unknown
from autocompress.models.students import STUDENTS
from autocompress.tasks.base import Task, accuracy_of

__all__ = ["Images", "make_network"]

#: Networks by the names that tasks take: student family and its arguments.
_NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv2": ("mobilenetv2", {}),
    "plain_cnn": ("plain_cnn", {}),
    "resnet20": ("resnet", {"depth": 3}),
    "resnet56": ("resnet", {"depth": 9}),
    "shufflenetv2": ("shufflenetv2", {}),
}


def make_network(name: str) -> nn.Module:
    """Return an untrained network for one grey channel and ten classes; raise TaskError."""
    if not isinstance(name, str) or name not in _NETWORKS:
        raise TaskError(unknown("network", str(name), _NETWORKS))
    family, arguments = _NETWORKS[name]
    return STUDENTS[family](in_channels=1, num_classes=10, **arguments)


@dataclass(frozen=True, eq=False)
class Images:
    """Grey images, float32 (N, 1, H, W), and labels, int64 (N,), of three disjoint splits."""

    train: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
    test: tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

    @property
    def fingerprint(self) -> str:
        """Return a sha256 over all splits, in hex."""
        digest = hashlib.sha256()
        for images, labels in (self.train, self.validation, self.test):
            digest.update(np.ascontiguousarray(images).tobytes())
            digest.update(np.ascontiguousarray(labels).tobytes())
        return digest.hexdigest()

    def batches(
        self,
        size: int,
        seed: int,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        """Return a function that yields an epoch of shuffled training batches, a new one each."""
        images, labels = (torch.from_numpy(part) for part in self.train)
        generator = torch.Generator().manual_seed(seed)

        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(labels), generator=generator)
            for start in range(0, len(order) - size + 1, size):
                chosen = order[start : start + size]
                batch = images[chosen]
                yield (batch if augment is None else augment(batch, generator)), labels[chosen]

        return epoch

    def task(self, model: nn.Module, name: str, calibration: int) -> Task:
        """Return the task; calibration is the first so many training images."""
        images = torch.from_numpy(self.train[0][:calibration])
        return Task(
            model=model,
            example_inputs=(images[:1],),
            calibration=[(batch,) for batch in torch.split(images, 128)],
            evaluate=accuracy_of(*self.validation),
            test=accuracy_of(*self.test),
            train=self.batches(128, seed=0),
            name=name,
            fingerprint=self.fingerprint,
        )
