"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 28×28 grey images of ten kinds of clothing."""

import gzip
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.torch import load_file

from autocompress.errors import TaskError
from autocompress.tasks.base import Task
from autocompress.tasks.images import Images, make_network

__all__ = ["fashion_mnist", "load", "read_idx"]

_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
# Mean and deviation of the training images, scaled to 0…1.
_MEAN, _DEVIATION = 0.2860, 0.3530


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of a gzipped IDX file of unsigned bytes; raise TaskError if it is none."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise TaskError(f"An IDX file must be a readable .gz file: {path} ({error}).") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise TaskError(f"An IDX file must begin with its magic number: {path} does not.")
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(int)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if values.size != shape.prod():
        raise TaskError(
            f"An IDX file must hold as many values as it says: {path} has {values.size} for "
            f"shape {tuple(shape)}. Fetch it again."
        )
    return values.reshape(shape)


def _find(data_dir: str | Path | None) -> Path:
    places = [Path(data_dir)] if data_dir is not None else []
    if data_dir is None and "AUTOCOMPRESS_DATA" in os.environ:
        places.append(Path(os.environ["AUTOCOMPRESS_DATA"]) / "fashion-mnist")
    if data_dir is None:
        places.append(Path("..") / "shared" / "data" / "fashion-mnist")
    for place in places:
        if all((place / name).is_file() for name in _FILES):
            return place
    raise TaskError(
        f"Fashion-MNIST needs the files {', '.join(_FILES)} in data_dir (or in "
        "$AUTOCOMPRESS_DATA/fashion-mnist); looked in "
        f"{', '.join(str(place) for place in places)}."
    )


def load(data_dir: str | Path | None = None, validation_size: int = 5000) -> Images:
    """Return the normalised images; validation is cut from the official training split."""
    folder = _find(data_dir)
    arrays = [read_idx(folder / name) for name in _FILES]
    count = len(arrays[1])
    if not 0 < validation_size < count:
        raise TaskError(f"validation_size must be from 1 to {count - 1}, not {validation_size!r}.")
    images, test_images = (
        ((part.astype(np.float32) / 255 - _MEAN) / _DEVIATION).astype(np.float32)[:, None]
        for part in (arrays[0], arrays[2])
    )
    labels, test_labels = (part.astype(np.int64) for part in (arrays[1], arrays[3]))
    order = np.random.default_rng(0).permutation(count)
    train, validation = np.split(order, [count - validation_size])
    return Images(
        (images[train], labels[train]),
        (images[validation], labels[validation]),
        (test_images, test_labels),
    )


def fashion_mnist(
    *,
    data_dir: str | None = None,
    network: str = "resnet20",
    weights: str | None = None,
    validation_size: int = 5000,
    calibration: int = 512,
) -> Task:
    """Return the Fashion-MNIST task with a trained network.

    ``weights`` is a safetensors file of the network's state, by default
    ``experiments/teachers/fashion_mnist_<network>.safetensors``. Raises TaskError where data or
    weights are missing or do not fit.
    """
    model = make_network(network)
    path = Path(weights or f"experiments/teachers/fashion_mnist_{network}.safetensors")
    if not path.is_file():
        raise TaskError(
            f"Weights must be a safetensors file: {path} does not exist. Give weights=, or train "
            "one by experiments/train_teachers.py."
        )
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise TaskError(f"Weights must fit the network: {path} for {network} ({first}).") from error
    images = load(data_dir, validation_size)
    return images.task(model.eval(), "fashion_mnist", calibration)
