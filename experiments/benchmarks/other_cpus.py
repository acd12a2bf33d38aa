"""Do files answer on other CPUs as their simulations do? Emulated by qemu-user, and on the host.

    python experiments/benchmarks/other_cpus.py [--cpus host Haswell EPYC-Rome] [--bits 8 7 6 4]

Uniform plans at 8-bit activations are built and simulated on the host; each runtime then runs the
files on test images of Fashion-MNIST on each CPU, where nothing but numpy and the runtime is
needed (run_file.py). A cell is the share of images whose class is the simulation's. Finished cells
are lines of FOLDER/cells.jsonl, are not run again, and are rows of results/other_cpus.csv.
``--tests`` runs the tests marked ``kernels`` on each CPU instead. Debian's package is qemu-user.

Networks without a teacher in experiments/teachers are trained for a few minutes into the folder.

``--cpus arm`` takes an aarch64 root with Python, numpy and the runtimes (``--arm-root``, made by
arm_root.sh beside this file); integers never saturate there, so it shows how much of a difference
is saturation.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from results import RESULTS, replace_rows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from autocompress.core.plan import Plan
from autocompress.models.trace import trace
from autocompress.targets import make_target
from autocompress.targets.timing import cpu_model
from autocompress.tasks.fashion_mnist import load
from autocompress.tasks.images import Images, make_network
from autocompress.train.loop import TrainConfig, fit
from autocompress.transforms.compressor import Compressor

_HERE = Path(__file__).parent
_TEACHERS = _HERE.parent / "teachers"
_KEY = ["network", "bits", "runtime", "cpu", "images"]
_TRAINED = 12_800  # images for networks without a teacher


class Transformer(nn.Module):
    """Patches of 7 × 7 pixels as 16 tokens, two encoder layers, a linear classifier."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 7, 7)
        self.place = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                norm_first=True,
            )
            for _ in range(2)
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def teacher(name: str, images: Images, folder: Path) -> nn.Module:
    """Return a trained network: a teacher's, or one trained once into the folder."""
    torch.manual_seed(0)
    model = Transformer() if name == "transformer" else make_network(name)
    known = _TEACHERS / f"fashion_mnist_{name}.safetensors"
    path = known if known.is_file() else folder / f"{name}.safetensors"
    if not path.is_file():
        some = Images(
            tuple(part[:_TRAINED] for part in images.train), images.validation, images.test
        )
        rate, epochs = (0.05, 15) if name == "transformer" else (0.1, 3)
        recipe = TrainConfig(epochs=epochs, learning_rate=rate)
        start = time.perf_counter()
        fit(
            model, some.batches(64, 0), recipe,
            progress=lambda e: print(f"{name}: epoch {e.number}, loss {e.loss:.3f}", flush=True),
        )  # fmt: skip
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
        print(f"{name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
    model.load_state_dict(load_file(path))
    return model.eval()


def build(name: str, options: argparse.Namespace) -> None:
    """Write the files of a network and what their simulations answer, where they are not there."""
    folder: Path = options.folder
    wanted = [
        (runtime, bits)
        for runtime in options.runtimes
        for bits in options.bits
        if options.again or not _simulated(folder, name, bits, runtime, options.images).is_file()
    ]
    if not wanted:
        return
    images = load(options.data_dir)
    test = images.test[0][: options.images]
    np.save(folder / f"images_{options.images}.npy", test)
    model = teacher(name, images, folder)
    network = trace(model, (torch.from_numpy(test[:1]),))
    calibration = [(torch.from_numpy(images.train[0][:512]),)]
    for runtime in options.runtimes:
        target = make_target(runtime)
        builder = target.prepare(network)
        compressor = Compressor(network, calibration, target.abilities)
        for bits in [bits for wish, bits in wanted if wish == runtime]:
            settings = {f"{layer.name}/w_bits": bits for layer in network.layers}
            settings |= {f"{layer.name}/a_bits": 8 for layer in network.layers}
            compressed = compressor.compress(Plan(settings))
            builder.build(compressed, _file(folder, name, bits, runtime))
            parts = torch.from_numpy(test).split(100)
            outputs = torch.cat([compressed(part) for part in parts]).numpy()
            np.save(_simulated(folder, name, bits, runtime, options.images), outputs)


def _file(folder: Path, name: str, bits: int, runtime: str) -> Path:
    return folder / f"{name}_{bits}_{runtime}.onnx"


def _simulated(folder: Path, name: str, bits: int, runtime: str, images: int) -> Path:
    return folder / f"{name}_{bits}_{runtime}_{images}.npy"


def launcher(cpu: str, arm_root: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs Python on a CPU, and the environment that it needs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if cpu == "host":
        return [sys.executable], environment
    if cpu == "arm":
        root = arm_root.resolve()
        environment["PYTHONPATH"] = str(root / "site")
        return ["qemu-aarch64", "-L", str(root), str(root / "usr/bin/python3.11")], environment
    # qemu does not run the links of an environment: the real interpreter, and its packages
    places = [str(Path.cwd()), sysconfig.get_paths()["purelib"], environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    return ["qemu-x86_64", "-cpu", cpu, str(Path(sys.executable).resolve())], environment


def run_file(cpu: str, runtime: str, path: Path, images: Path, arm_root: Path) -> np.ndarray:
    """Return what a file answers on a CPU; raise RuntimeError with the last line of its error."""
    command, environment = launcher(cpu, arm_root)
    outputs = images.with_name("outputs.npy")
    done = subprocess.run(
        [*command, *map(str, [_HERE / "run_file.py", runtime, path, images, outputs])],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "TCG doesn't support" not in line]
        raise RuntimeError(" ".join(lines[-1:])[:200])
    return np.load(outputs)


def run_cell(cell: dict[str, object], options: argparse.Namespace) -> dict[str, object]:
    """Return a cell with what one file answers on one CPU, or why it does not."""
    name, bits, runtime = str(cell["network"]), int(str(cell["bits"])), str(cell["runtime"])
    folder: Path = options.folder
    start = time.perf_counter()
    try:
        found = run_file(
            str(cell["cpu"]), runtime, _file(folder, name, bits, runtime),
            folder / f"images_{options.images}.npy", options.arm_root,
        )  # fmt: skip
    except RuntimeError as error:
        return {**cell, "seconds": round(time.perf_counter() - start, 1), "error": str(error)}
    seconds = round(time.perf_counter() - start, 1)
    simulated = np.load(_simulated(folder, name, bits, runtime, options.images))
    alike = float((found.argmax(1) == simulated.argmax(1)).mean())
    error = float(np.sqrt(np.mean((found - simulated) ** 2)) / simulated.std())
    return {**cell, "alike": alike, "rms": error, "seconds": seconds}


def known_cells(path: Path) -> dict[tuple[object, ...], dict[str, object]]:
    """Return the finished cells by what they are of."""
    if not path.is_file():
        return {}
    cells = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {_key(cell): cell for cell in cells if "error" not in cell}


def _key(cell: dict[str, object]) -> tuple[object, ...]:
    return tuple(cell[name] for name in _KEY)


def table(options: argparse.Namespace) -> None:
    """Run what is not finished, and print the table."""
    path = options.folder / "cells.jsonl"
    known = {} if options.again else known_cells(path)
    print("| network | bits | runtime | CPU | classes equal | RMS | s |\n|-|-|-|-|-|-|-|")
    for name in options.networks:
        build(name, options)
        for bits in options.bits:
            for runtime in options.runtimes:
                for cpu in options.cpus:
                    cell: dict[str, object] = {
                        "network": name, "bits": bits, "runtime": runtime, "cpu": cpu,
                        "images": options.images,
                    }  # fmt: skip
                    if _key(cell) in known:
                        cell = known[_key(cell)]
                    else:
                        cell = run_cell(cell, options)
                        with path.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(cell) + "\n")
                    print(_row(cell), flush=True)
                    if "error" not in cell:
                        kept = {"host": cpu_model(), **cell}
                        replace_rows(RESULTS / "other_cpus.csv", [kept], ["host", *_KEY])


def _row(cell: dict[str, object]) -> str:
    what = " | ".join(str(cell[name]) for name in ("network", "bits", "runtime", "cpu"))
    if "error" in cell:
        return f"| {what} | {cell['error']} | | {cell['seconds']} |"
    return f"| {what} | {100 * cell['alike']:.1f} % | {cell['rms']:.4f} | {cell['seconds']} |"


def run_tests(cpus: Sequence[str], arm_root: Path, more: Sequence[str]) -> bool:
    """Run the tests marked ``kernels`` on each CPU; return whether all passed.

    Only the files that have the mark are collected: others import what crashes in qemu (Ray).
    """
    passed = True
    marked = [
        str(path) for path in Path("tests").rglob("test_*.py") if "mark.kernels" in path.read_text()
    ]
    for cpu in cpus:
        if cpu == "arm":
            print("arm: tests need torch there; not run")
            continue
        command, environment = launcher(cpu, arm_root)
        start = time.perf_counter()
        pytest = ["-m", "pytest", "-m", "kernels", "-p", "no:cacheprovider", *(more or marked)]
        done = subprocess.run([*command, *pytest], env=environment, check=False)
        passed &= done.returncode == 0
        print(f"{cpu}: exit status {done.returncode}, {time.perf_counter() - start:.0f} s")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    networks = ["resnet20", "shufflenetv2", "mobilenetv2", "transformer"]
    parser.add_argument("--networks", nargs="+", default=networks)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 7, 6, 4])
    parser.add_argument("--images", type=int, default=1000, help="a multiple of ten")
    parser.add_argument("--cpus", nargs="+", default=["host", "Haswell", "EPYC-Rome"])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--folder", type=Path, default=Path("runs/other_cpus"))
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--arm-root", type=Path, default=Path("runs/arm"))
    parser.add_argument("--again", action="store_true", help="build and run what is finished")
    parser.add_argument("--tests", nargs="*", metavar="PATH", help="run the marked tests instead")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    run: Callable[[], bool | None] = functools.partial(table, options)
    if options.tests is not None:
        run = functools.partial(run_tests, options.cpus, options.arm_root, options.tests)
    if run() is False:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
