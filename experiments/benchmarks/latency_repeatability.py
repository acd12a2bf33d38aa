"""How well one latency measurement repeats: quiet, and with a busy loop on every core.

    python experiments/benchmarks/latency_repeatability.py [--repeats 20] [--minutes 20]
        [--runtimes onnxruntime openvino] [--sizes small large]

Networks with random weights: ResNet-20, MobileNetV2- and ShuffleNetV2-style at 1×28×28 (below
1 ms) in 8 bits, and in float32 at 3 channels and 96, 128 and 112 pixels (5 ms and more).
In every round each file is opened anew and measured once quiet and once beside busy loops, next to
the same uncompressed reference. Printed for each: the coefficient of variation of the repeats, of
the plain wall-clock median and of the simple median of paired ratios taken of the same blocks, and
how often the 95 % intervals hold the long-run value, the mean of the quiet repeats. Results take
the place of those of the same files in experiments/results/latency_repeatability.csv.
"""

import argparse
import contextlib
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from results import RESULTS, replace_rows

from autocompress.core.plan import Plan
from autocompress.models.students import STUDENTS
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.timing import cpu_model, measure, openings
from autocompress.transforms.dry_run import dry_run

# name: student, arguments, pixels, channels
NETWORKS = {
    "ResNet-20 small": ("resnet", {"depth": 3}, 28, 1),
    "MobileNetV2 small": ("mobilenetv2", {}, 28, 1),
    "ShuffleNetV2 small": ("shufflenetv2", {}, 28, 1),
    "ResNet-20 large": ("resnet", {"depth": 3}, 96, 3),
    "MobileNetV2 large": ("mobilenetv2", {"width": 1.0}, 128, 3),
    "ShuffleNetV2 large": ("shufflenetv2", {}, 112, 3),
}
SECONDS = {"small": 0.6, "large": 1.5}  # of one measurement
FORMS = {"small": ("int8",), "large": ("float32",)}


def spin(core: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    while True:
        pass


@contextlib.contextmanager
def busy_cores():
    """Run a busy loop on every core."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(2)
    loops = [multiprocessing.Process(target=spin, args=(core,), daemon=True) for core in cores]
    for loop in loops:
        loop.start()
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


def write_files(
    runtimes: list[str], sizes: list[str], folder: Path
) -> list[tuple[str, str, str, Path, Path]]:
    """Return (runtime, network, form, file, reference's file) of everything that is measured."""
    found = []
    for runtime in runtimes:
        target = make_target(runtime)
        for name, (student, arguments, pixels, channels) in NETWORKS.items():
            if name.split()[-1] not in sizes:
                continue
            torch.manual_seed(0)
            model = STUDENTS[student](in_channels=channels, num_classes=10, **arguments).eval()
            network = trace(model, (torch.randn(1, channels, pixels, pixels),))
            builder = target.prepare(network)
            knobs = [f"{x.name}/{k}" for x in network.layers for k in ("w_bits", "a_bits")]
            paths = {}
            for form, bits in (("float32", 32), ("int8", 8)):
                path = folder / f"{runtime}-{name}-{form}.onnx".replace(" ", "-")
                plan = Plan(dict.fromkeys(knobs, bits))
                builder.build(dry_run(network, plan, target.abilities), path)
                paths[form] = path
            forms = FORMS[name.split()[-1]]
            found += [(runtime, name, form, paths[form], paths["float32"]) for form in forms]
    return found


def simple(timing) -> tuple[float, float]:
    """Return the wall-clock median, and the median of paired ratios on the CPU clock."""
    table = np.array(timing.blocks)
    return float(np.median(table[:, 2])), float(np.median(table[:, 0] / table[:, 1]))


def variation(values: list[float]) -> float:
    return float(np.std(values, ddof=1) / np.mean(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--sizes", nargs="+", default=["small", "large"])
    options = parser.parse_args()
    timings = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(options.runtimes, options.sizes, Path(folder))
        references = {}
        base = {}
        for runtime, name, _, _, reference in files:
            if (runtime, name) not in base:
                sessions = openings(make_target(runtime).open(reference), 4.0)
                inputs = sessions[0].example_inputs()
                references[runtime, name] = (sessions, inputs)
                found = measure(sessions, sessions, inputs, max_seconds=4.0, relative_width=1e-4)
                base[runtime, name] = found.latency_ms
        start = time.perf_counter()
        for repeat in range(options.repeats):
            for mode in ("quiet", "busy"):
                with busy_cores() if mode == "busy" else contextlib.nullcontext():
                    for runtime, name, form, path, _ in files:
                        seconds = SECONDS[name.split()[-1]]
                        sessions = openings(make_target(runtime).open(path), seconds)
                        reference, inputs = references[runtime, name]
                        timing = measure(
                            sessions,
                            reference,
                            inputs,
                            reference_ms=base[runtime, name],
                            max_seconds=seconds,
                            relative_width=1e-4,
                        )
                        timings[runtime, name, form, mode].append(timing)
            due = start + (repeat + 1) * options.minutes * 60 / options.repeats
            print(f"round {repeat + 1} after {time.perf_counter() - start:.0f} s", flush=True)
            time.sleep(max(0.0, due - time.perf_counter()))
    rows = []
    for key, found in timings.items():
        runtime, name, form, mode = key
        long_run = np.mean([t.latency_ms for t in timings[runtime, name, form, "quiet"]])
        rows.append(
            {
                "runtime": make_target(runtime).version, "network": name, "form": form,
                "mode": mode, "repeats": len(found), "openings": found[0].openings,
                "ms": round(float(long_run), 4),
                "variation": round(variation([t.latency_ms for t in found]), 5),
                "variation_wall_median": round(variation([simple(t)[0] for t in found]), 5),
                "variation_paired_median": round(variation([simple(t)[1] for t in found]), 5),
                "covered": float(np.mean([t.low_ms <= long_run <= t.high_ms for t in found])),
                "half_width": round(
                    float(np.mean([(t.high_ms - t.low_ms) / 2 / t.latency_ms for t in found])), 5
                ),
                "clock": "/".join(sorted({t.clock for t in found})), "processor": cpu_model(),
            }
        )  # fmt: skip
        row = rows[-1]
        print(
            f"{runtime:12s} {name:19s} {form:8s} {mode:6s} {row['ms']:8.4f} ms  "
            f"CV {row['variation']:.2%} (wall median {row['variation_wall_median']:.1%}, paired "
            f"median {row['variation_paired_median']:.2%}), covered {row['covered']:.0%}, "
            f"half width {row['half_width']:.2%}, {row['clock']}"
        )
    replace_rows(RESULTS / "latency_repeatability.csv", rows, ("runtime", "network"))


if __name__ == "__main__":
    main()
