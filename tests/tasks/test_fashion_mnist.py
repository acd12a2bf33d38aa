import gzip
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autocompress.errors import TaskError
from autocompress.tasks.fashion_mnist import fashion_mnist, load, read_idx
from autocompress.tasks.images import make_network


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return tmp_path


def test_splits_of_idx_files(folder):
    images = load(folder, validation_size=15)
    assert [len(part[1]) for part in (images.train, images.validation, images.test)] == [45, 15, 20]
    rows = [image.tobytes() for part in (images.train, images.validation) for image in part[0]]
    assert len(set(rows)) == 60
    raw = read_idx(folder / "t10k-images-idx3-ubyte.gz")
    assert np.allclose(images.test[0][:, 0] * 0.353 + 0.286, raw / 255, atol=1e-6)
    assert images.test[0].dtype == np.float32


def test_the_task_loads_weights(folder, tmp_path):
    torch.manual_seed(0)
    network = make_network("plain_cnn")
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    task = fashion_mnist(
        data_dir=str(folder),
        network="plain_cnn",
        weights=str(tmp_path / "w.safetensors"),
        validation_size=10,
        calibration=32,
    )
    x = task.example_inputs[0]
    assert torch.equal(task.model(x), network.eval()(x))
    assert sum(len(batch[0]) for batch in task.calibration) == 32
    with pytest.raises(TaskError, match="fit the network"):
        fashion_mnist(
            data_dir=str(folder), network="resnet20", weights=str(tmp_path / "w.safetensors")
        )


@pytest.mark.parametrize("size", [0, 60, -1])
def test_validation_size_is_checked(folder, size):
    with pytest.raises(TaskError, match="validation_size"):
        load(folder, validation_size=size)


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(TaskError, match=r"train-images-idx3-ubyte\.gz"):
        load(tmp_path / "nowhere")
    path = folder / "t10k-labels-idx1-ubyte.gz"
    for content in (b"no gzip", gzip.compress(b"no idx file"), path.read_bytes()[:-9]):
        path.write_bytes(content)
        with pytest.raises(TaskError, match="t10k-labels"):
            load(folder, 10)
    write_idx(path, np.zeros(20, np.uint8))
    short = gzip.decompress(path.read_bytes())[:-3]
    path.write_bytes(gzip.compress(short))
    with pytest.raises(TaskError, match="has 17"):
        load(folder, 10)


def test_missing_weights_name_the_script(folder):
    with pytest.raises(TaskError, match=r"train_teachers\.py"):
        fashion_mnist(data_dir=str(folder), weights="none.safetensors")
