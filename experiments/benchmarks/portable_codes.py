"""What portable 8-bit codes cost and give: agreement, size, latency, and three rules side by side.

    python experiments/benchmarks/portable_codes.py [--images 1000] [--networks resnet20 …]

For every network and runtime, uniform plans at 8-bit activations: how many classes of the file in
its runtime on this host equal those of the simulation, accuracy of both, bytes, and latency as the
paired ratio to the portable 8-bit file. "8, whole range" is what the files were before. The second
table: how much finer than with codes to ±64 the scale of a row of weights could be (mean over rows)
where only the two largest codes of a row, or only neighbours along the input channels, need to
fit 16 bits together.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from results import RESULTS, replace_rows

from autocompress.core.plan import Plan
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.timing import cpu_features, cpu_model, measure
from autocompress.tasks.fashion_mnist import fashion_mnist, load
from autocompress.transforms.compressor import Compressor


def uniform(network: Network, bits: int) -> Plan:
    """Return the plan of one width for all weights, at 8-bit activations."""
    knobs = (("w_bits", bits), ("a_bits", 8))
    return Plan({f"{layer.name}/{knob}": n for layer in network.layers for knob, n in knobs})


def finer(network: Network) -> tuple[float, float]:
    """Return the mean ratio of scales, to that of codes to ±64, of two rules."""
    pairs, neighbours = [], []
    for layer in network.layers:
        weight = network.params[layer.weight].numpy()
        rows = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)  # channels side by side
        if rows.shape[1] < 2:
            continue
        peak = np.abs(rows).max(1)
        ends = np.sort(rows, 1)
        both = np.maximum(ends[:, -2:].sum(1), -ends[:, :2].sum(1)) / 128
        even = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).sum(2)
        beside = np.abs(even).max(1) / 128
        pairs.append(np.maximum(both, peak / 127) / (peak / 64))
        neighbours.append(np.maximum(beside, peak / 127) / (peak / 64))
    return float(np.concatenate(pairs).mean()), float(np.concatenate(neighbours).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56", "mobilenetv2"])
    parser.add_argument("--data-dir", default=None)
    options = parser.parse_args()
    images, labels = (part[: options.images] for part in load(options.data_dir).validation)
    host = f"{cpu_model()} ({' '.join(cpu_features())})"
    print(f"host: {host}\n")
    print("| network | runtime | weights | simulation | file | classes equal | bytes | × latency |")
    print("|-|-|-|-|-|-|-|-|")
    rules = []
    for name in options.networks:
        task = fashion_mnist(network=name, data_dir=options.data_dir)
        network = trace(task.model, task.example_inputs)
        rules.append((name, *finer(network)))
        for runtime in ("onnxruntime", "openvino"):
            rows = list(compare(name, network, task.calibration, runtime, images, labels))
            for row in rows:
                print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            kept = [{"host": host, **row} for row in rows]
            replace_rows(
                RESULTS / "portable_codes.csv", kept, ["host", "network", "runtime", "weights"]
            )
    print("\n| network | two largest of a row | neighbouring channels |\n|-|-|-|")
    for name, both, beside in rules:
        print(f"| {name} | {both:.3f} | {beside:.3f} |")


def compare(name, network, calibration, runtime, images, labels):
    """Yield a row a plan; the first one's file is what the others are timed beside."""
    inputs, reference = (images[:1],), None
    with tempfile.TemporaryDirectory() as folder:
        for bits, portable in ((8, True), (8, False), (7, True), (6, True), (4, True)):
            target = make_target(runtime, portable=portable)
            compressed = Compressor(network, calibration, target.abilities).compress(
                uniform(network, bits)
            )
            path = Path(folder) / f"{bits}{portable}.onnx"
            session = target.open(target.prepare(network).build(compressed, path).path)
            reference = reference or session
            simulated = compressed(torch.from_numpy(images)).numpy().argmax(1)
            found = np.concatenate(
                [session(images[at : at + 250]).argmax(1) for at in range(0, len(images), 250)]
            )
            ratio = measure(session, reference, inputs, max_seconds=2).ratio
            yield {
                "network": name,
                "runtime": runtime,
                "weights": f"{bits}" if portable else f"{bits}, whole range",
                "simulation": f"{100 * np.mean(simulated == labels):.1f}",
                "file": f"{100 * np.mean(found == labels):.1f}",
                "equal": f"{100 * np.mean(found == simulated):.1f}",
                "bytes": path.stat().st_size,
                "latency": f"{ratio:.3f}",
            }


if __name__ == "__main__":
    main()
