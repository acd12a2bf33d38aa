"""Does ``autocompress verify`` see that a CPU's kernels overflow, and nothing where they do not?

    python experiments/benchmarks/verify_elsewhere.py [--cpus host Haswell] [--networks resnet20 …]

Uniform plans at 8-bit activations are built on the host with their check files, portable and not,
and verified on each CPU, emulated by qemu-user. Meant for a host with VNNI, whose kernels are
exact. "images differ by" is the largest difference on 60 images, in units of the outputs'
deviation, which ``verify`` stands for. Debian: apt-get install qemu-user.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
from other_cpus import launcher, run_file, teacher

from autocompress.core.plan import Plan
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.check import make_check
from autocompress.targets.checkfile import check_path
from autocompress.targets.made_inputs import statistics_of
from autocompress.tasks.fashion_mnist import load
from autocompress.transforms.compressor import Compressor

_VARIANTS = ((8, False), (8, True), (4, True))


def build(name: str, runtime: str, options: argparse.Namespace) -> list[tuple[str, Path]]:
    """Write the files of a network with their checks; return them with their names."""
    images = load(options.data_dir)
    np.save(options.folder / "images.npy", images.test[0][:60])
    model = teacher(name, images, options.folder)
    calibration = images.train[0][:512]
    network = trace(model, (torch.from_numpy(calibration[:1]),))
    statistics, found = statistics_of([(calibration,)]), []
    builder = make_target(runtime).prepare(network)
    for bits, portable in _VARIANTS:
        target = make_target(runtime, portable=portable)
        compressor = Compressor(network, [(torch.from_numpy(calibration),)], target.abilities)
        knobs = (("w_bits", bits), ("a_bits", 8))
        plan = Plan({f"{layer.name}/{k}": n for layer in network.layers for k, n in knobs})
        path = options.folder / f"{name}_{runtime}_{bits}_{portable}.onnx"
        artifact = builder.build(compressor.compress(plan), path)
        check = make_check(target.open(path), artifact, target.version, statistics)
        check_path(path).write_bytes(check.to_bytes())
        found.append((f"{bits}" if portable else f"{bits}, whole range", path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpus", nargs="+", default=["host", "Haswell"])
    parser.add_argument("--networks", nargs="+", default=["resnet20", "mobilenetv2"])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--folder", type=Path, default=Path("runs/verify_elsewhere"))
    parser.add_argument("--data-dir", default=None)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print("| network | runtime | weights | CPU | verify | largest | images differ by |")
    print("|-|-|-|-|-|-|-|")
    for name in options.networks:
        for runtime in options.runtimes:
            for weights, path in build(name, runtime, options):
                outputs: dict[str, np.ndarray] = {}
                for cpu in ("host", *(c for c in options.cpus if c != "host")):
                    command, environment = launcher(cpu, Path())
                    done = subprocess.run(
                        [*command, "-m", "autocompress", "verify", str(path), "--format", "json"],
                        env=environment, capture_output=True, text=True, check=False,
                    )  # fmt: skip
                    found = json.loads(done.stdout)
                    outputs[cpu] = run_file(
                        cpu, runtime, path, options.folder / "images.npy", Path()
                    )
                    here = outputs["host"]
                    away = float(np.abs(outputs[cpu] - here).max() / here.std())
                    verdict = {0: "alike", 3: "otherwise"}[done.returncode]
                    largest = f"{found['largest_difference']:.3f}"
                    print(
                        f"| {name} | {runtime} | {weights} | {cpu} | {verdict} | {largest} "
                        f"| {away:.3f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
