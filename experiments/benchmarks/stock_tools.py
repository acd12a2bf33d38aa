"""What stock tools make of the ResNet-20 teacher, beside files of a run's front.

    python experiments/benchmarks/stock_tools.py [--run runs/fashion_mnist_resnet20]

The same network, data and runtime for all: onnxruntime's own quantizer (static with per-channel
weights, and dynamic) on the exported float32 file and the calibration images of the task; from the
run, the uniform baselines and the smallest file within 0.5 and within 1 point of the uncompressed
validation accuracy. Accuracy is of the test split; latency, one thread and one image, is the paired
ratio to the float32 file times that file's own latency.
"""

import argparse
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import autocompress as ac
from autocompress.core.plan import Plan
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.timing import measure
from autocompress.tasks.base import Task
from autocompress.tasks.fashion_mnist import fashion_mnist
from autocompress.transforms.compressor import Compressed


class Images(CalibrationDataReader):
    """The calibration images one by one, as the quantizer wants them."""

    def __init__(self, task: Task, name: str) -> None:
        self.feeds: Iterator[dict[str, np.ndarray]] = (
            {name: image[None].numpy()} for (batch,) in task.calibration for image in batch
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def stock(plain: Path, task: Task, folder: Path) -> dict[str, Path]:
    """Return the files of onnxruntime's quantizer by what they are."""
    ready = folder / "ready.onnx"
    quant_pre_process(str(plain), str(ready))
    static, swapped, dynamic = (folder / f"{name}.onnx" for name in ("u8s8", "s8s8", "dynamic"))
    name = onnx.load(str(plain)).graph.input[0].name
    for path, activations in ((static, QuantType.QUInt8), (swapped, QuantType.QInt8)):
        quantize_static(
            str(ready), str(path), Images(task, name), quant_format=QuantFormat.QDQ,
            per_channel=True, activation_type=activations, weight_type=QuantType.QInt8,
        )  # fmt: skip
    quantize_dynamic(str(ready), str(dynamic), weight_type=QuantType.QUInt8)
    return {
        "onnxruntime static, u8 activations, s8 weights": static,
        "onnxruntime static, s8 activations, s8 weights": swapped,
        "onnxruntime dynamic, u8 weights": dynamic,
    }


def of_run(directory: Path) -> dict[str, Path]:
    """Return the files of a run: uniform baselines and picks."""
    front = ac.open_run(directory).front()
    found = {
        f"autocompress, {pick.score.baseline}": pick.path
        for pick in front.baselines
        if pick.score.baseline.startswith(("uniform 8-bit", "uniform 4-bit"))
    }
    for lost in (0.005, 0.01):
        pick = front.pick(min_accuracy=front.reference.accuracy - lost)
        found[f"autocompress, pick within {100 * lost:g} points (validation)"] = pick.path
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/fashion_mnist_resnet20"))
    parser.add_argument("--data-dir", default=None)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    task = fashion_mnist(data_dir=options.data_dir)
    network = trace(task.model, task.example_inputs)
    target = make_target("onnxruntime")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "float32.onnx"
        target.prepare(network).build(Compressed(Plan(), network, {}, {}), plain)
        files = {"float32": plain, **stock(plain, task, folder), **of_run(options.run)}
        reference = target.open(plain)
        inputs = tuple(value.numpy() for value in task.example_inputs)
        base = measure(reference, reference, inputs, max_seconds=4).reference_ms
        print("| | test accuracy | bytes | × smaller | ms | × faster |\n|-|-|-|-|-|-|")
        for what, path in files.items():
            session = target.open(path)
            accuracy = float(np.mean(task.test(session)))
            timing = measure(session, reference, inputs, reference_ms=base, max_seconds=4)
            size = path.stat().st_size
            print(
                f"| {what} | {100 * accuracy:.2f} % | {size:,} | "
                f"{plain.stat().st_size / size:.2f} | {timing.latency_ms:.3f} | "
                f"{1 / timing.ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
