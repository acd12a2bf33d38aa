"""How well latencies are predicted: the fitted model, MACs, a roofline, a table of layers.

    python experiments/benchmarks/latency_model.py [--runtimes onnxruntime openvino]
        [--networks resnet20 mobilenetv2 shufflenetv2] [--plans 100] [--seconds 140]

For each network (random weights, 1×28×28) and runtime: calibrates, then measures random plans that
the calibration never saw, each knob of each layer (keep 0.25 to 1, w_bits, a_bits), and compares.
All models may use the calibration's measurements: MACs is a straight line through them; the
roofline is that of the device file avx2-core times one factor; the table has every layer's
profiled time in the uncompressed and the uniform 8-bit network, scaled by its multiply-adds and
by one factor. Results take the place of those of the same runtime and network in
experiments/results/latency_model.csv.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from results import RESULTS, replace_rows
from scipy.stats import spearmanr

from autocompress.core.plan import Plan
from autocompress.cost import analytic
from autocompress.cost.fit_latency import Bench, calibrate, calibration_path, random_plans
from autocompress.cost.hardware import read_hardware
from autocompress.cost.workload import workload
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.targets.timing import cpu_model
from autocompress.tasks.images import make_network
from autocompress.transforms.dry_run import dry_run

SPACE = {
    "*/keep": [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0],
    "*/w_bits": [2, 3, 4, 5, 6, 7, 8],
    "*/a_bits": [8, 32],
}


def line(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the coefficients of the straight line of least relative error."""
    system = np.stack([x, np.ones_like(x)], axis=1) / y[:, None]
    return np.linalg.lstsq(system, np.ones(len(y)), rcond=None)[0]


def factor(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.median(y / x))


def table_of_layers(bench, network, target):
    """Return a function from a workload to the sum of a table's entries."""
    tables = {}
    for bits in (32, 8):
        settings = {f"{x.name}/{k}": bits for x in network.layers for k in ("w_bits", "a_bits")}
        plan = Plan(settings)
        found, whole = defaultdict(float), defaultdict(float)
        work = workload(dry_run(network, plan, target.abilities), target.abilities)
        owner = {op.output: op.node for op in work.ops} | {op.node: op.node for op in work.ops}
        path = bench.folder / "table.onnx"
        path.write_bytes(
            bench.builder.content(dry_run(network, plan, target.abilities), named=True)
        )
        for op in target.profile(path, bench.inputs):
            found[owner.get(op.node, op.node)] += op.ms
        for op in work.ops:
            whole[op.node] = max(op.macs, work.values[op.output].elements)
        tables[bits] = (found, whole)

    def total(work) -> float:
        time_of = 0.0
        for op in work.ops:
            found, whole = tables[8 if op.layer and op.a_bits <= 8 else 32]
            amount = max(op.macs, work.values[op.output].elements)
            time_of += found.get(op.node, 0.0) * amount / max(whole.get(op.node, 1), 1)
        return time_of

    return total


def report(name: str, predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    error = predicted / measured - 1
    figures = {
        "within_10": float((abs(error) <= 0.1).mean()),
        "within_5": float((abs(error) <= 0.05).mean()),
        "median_error": float(np.median(abs(error))),
        "worst_error": float(abs(error).max()),
        "spearman": float(spearmanr(predicted, measured)[0]),
    }
    print(
        f"  {name:12s} within 10 %: {figures['within_10']:.0%}, 5 %: {figures['within_5']:.0%}; "
        f"median {figures['median_error']:.2%}, worst {figures['worst_error']:.1%}; "
        f"Spearman {figures['spearman']:.4f}",
        flush=True,
    )
    return figures


def blame(rows, errors: np.ndarray) -> None:
    """Print the families of operators whose share of the time goes with the error."""
    shares = defaultdict(lambda: np.zeros(len(rows)))
    for place, prediction in enumerate(rows):
        for term, ms in prediction.parts:
            shares[term.family][place] += ms / prediction.ms
    found = []
    for family, share in shares.items():
        if share.std() > 1e-4:
            found.append((float(np.corrcoef(share, errors)[0, 1]), share.mean(), family))
    for correlation, mean, family in sorted(found, key=lambda f: -abs(f[0]))[:3]:
        print(f"    error goes with {family} ({mean:.1%} of the time): r = {correlation:+.2f}")


def run(runtime: str, name: str, plans: int, seconds: float, folder: Path) -> list[dict]:
    torch.manual_seed(0)
    target = make_target(runtime)
    network = trace(make_network(name).eval(), (torch.randn(1, 1, 28, 28),))
    space = resolve_space(find_space(SPACE), network, target)
    start = time.perf_counter()
    builder = target.prepare(network)
    prepared = time.perf_counter()
    calibration = calibrate(network, target, space, builder=builder, seconds=seconds)
    model = calibration.model()
    took = time.perf_counter() - start
    calibration.save(calibration_path(network, target))
    print(
        f"{runtime}, {name}: {len(calibration.samples)} plans in {took:.0f} s, of which exporting "
        f"{prepared - start:.0f} s; held out: {np.median(abs(model.errors)):.2%}"
    )
    bench = Bench(network, target, builder, folder)
    scale = bench.reference_ms / calibration.reference_ms
    works, measured, predictions = [], [], []
    generator = random_plans(space, seed=10_000)
    for _ in range(plans):
        plan = next(generator)
        made, ms = bench.measure(plan, most=1.0, width=0.001)
        works.append(workload(dry_run(network, plan, target.abilities), target.abilities))
        predictions.append(model.predict(made))
        measured.append(ms)
    y = np.array(measured)
    fitted = np.array([p.ms for p in predictions]) * scale
    covered = np.mean(
        [p.low_ms * scale <= ms <= p.high_ms * scale for p, ms in zip(predictions, y, strict=True)]
    )
    bar = np.mean([(p.high_ms - p.low_ms) / 2 / p.ms for p in predictions])
    print(f"  {y.min():.3f} to {y.max():.3f} ms; error bar ±{bar:.1%}, it holds {covered:.0%}")

    seen = [works_of(network, plan, target) for plan in replay(space, calibration, target)]
    known = np.array([ms for _, ms in calibration.samples])[-len(seen) :]
    device = read_hardware("avx2-core")

    def macs(work) -> float:
        return float(work.macs)

    def roof(work) -> float:
        return analytic.latency_ms(work, device)

    table = table_of_layers(bench, network, target)
    slope = line(np.array([macs(w) for w in seen]), known)
    others = {
        "fitted": fitted,
        "MACs": slope[0] * np.array([macs(w) for w in works]) + slope[1],
        "roofline": factor(np.array([roof(w) for w in seen]), known)
        * np.array([roof(w) for w in works]),
        "one table": factor(np.array([table(w) for w in seen]), known)
        * np.array([table(w) for w in works]),
    }
    rows = []
    for label, values in others.items():
        rows.append(
            {
                "runtime": target.version, "network": name, "model": label, "plans": plans,
                **report(label, values, y),
                "calibration_plans": len(calibration.samples), "calibration_seconds": round(took),
                "bar_holds": covered if label == "fitted" else "",
                "processor": cpu_model(),
            }
        )  # fmt: skip
    blame(predictions, fitted / y - 1)
    return rows


def replay(space, calibration, target):
    """Yield again the random plans that a calibration measured (not the baselines before them)."""
    baselines = sum(label != "uncompressed" for label, _ in space.baselines())
    generator = random_plans(space, seed=0)
    for _ in range(len(calibration.samples) - baselines):
        yield next(generator)


def works_of(network, plan, target):
    return workload(dry_run(network, plan, target.abilities), target.abilities)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    names = ["resnet20", "mobilenetv2", "shufflenetv2"]
    parser.add_argument("--networks", nargs="+", default=names)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=140.0)
    options = parser.parse_args()
    rows = []
    for runtime in options.runtimes:
        for name in options.networks:
            with tempfile.TemporaryDirectory() as folder:
                rows += run(runtime, name, options.plans, options.seconds, Path(folder))
    replace_rows(RESULTS / "latency_model.csv", rows, ("runtime", "network"))


if __name__ == "__main__":
    main()
