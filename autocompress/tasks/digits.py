"""Digits: scikit-learn's 1,797 bundled 8×8 images and a small CNN trained in seconds."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from autocompress.errors import TaskError
from autocompress.tasks.base import Task
from autocompress.tasks.images import Images, make_network
from autocompress.train.loop import TrainConfig, fit

__all__ = ["digits", "load"]


def load(seed: int = 0) -> Images:
    """Return the images, scaled to mean 0 and deviation 1, split 997 / 400 / 400 by a seed."""
    bundle = load_digits()
    images = ((bundle.images - 4.88) / 6.02).astype(np.float32)[:, None]
    labels = bundle.target.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(labels))
    train, validation, test = np.split(order, [len(order) - 800, len(order) - 400])
    return Images(
        (images[train], labels[train]),
        (images[validation], labels[validation]),
        (images[test], labels[test]),
    )


def digits(*, network: str = "plain_cnn", seed: int = 0, epochs: int = 30) -> Task:
    """Return the digits task with a network trained from scratch on one thread.

    The same options give the same weights. Raises TaskError for options that cannot be.
    """
    for name, value, least in (("epochs", epochs, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**32:
            raise TaskError(f"{name} must be an integer of at least {least}, not {value!r}.")
    images = load(seed)
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # sums over threads depend on their number
        try:
            model = make_network(network)
            fit(model, images.batches(50, seed), TrainConfig(epochs=epochs, learning_rate=0.1))
        finally:
            torch.set_num_threads(threads)
    return images.task(model, "digits", calibration=256)
