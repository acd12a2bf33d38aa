"""What must hold of every case: torch, the file and its simulation give the same answers."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from autocompress.core.plan import Plan
from autocompress.errors import AutocompressError
from autocompress.models.network import Network
from autocompress.models.trace import trace
from autocompress.targets import TARGETS
from autocompress.targets.base import Array, Builder, Target
from autocompress.transforms.compressor import Compressed, Compressor
from tests.fuzz_networks import Case, make_case, random_plan, uniform_plan

__all__ = ["Failure", "check_case", "exact", "rms"]

#: RMS in units of the outputs' deviation. Floats differ by the order of additions alone.
FLOAT = 1e-3
#: A sum on the edge of two codes may take either: a step of one activation, in few of the rows.
FLIPS, ROWS = 0.05, 0.5
#: Random networks at 8-bit activations and 7-bit weights against themselves in float32.
ROUNDED = 0.25


@dataclass(frozen=True)
class Failure:
    """What went wrong in a case; ``plan`` is its number, -1 for the network itself."""

    seed: int
    plan: int
    kind: str
    text: str


def arrays(outputs: Any) -> list[Array]:
    """Return the outputs of a model or a session as float64 arrays."""
    several = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [np.asarray(value, np.float64) for value in several]


def rms(found: Any, expected: Any) -> float:
    """Return the greatest RMS of an output, in units of the expected one's deviation."""
    pairs = list(zip(arrays(found), arrays(expected), strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return math.inf
    found_ = [float(np.sqrt(np.mean((a - b) ** 2)) / (b.std() + 1e-6)) for a, b in pairs]
    return math.inf if any(map(math.isnan, found_)) else max(found_)


def rows_alike(found: Any, expected: Any) -> float:
    """Return the share of rows in which no value differs by more than floats do."""
    alike = [
        (np.abs(a - b).reshape(len(a), -1).max(1) <= 10 * FLOAT * (b.std() + 1e-6)).mean()
        for a, b in zip(arrays(found), arrays(expected), strict=True)
    ]
    return float(min(alike))


def exact(path: Path, inputs: tuple[Array, ...]) -> list[Array]:
    """Return a file's outputs in plain arithmetic, whatever the CPU's integer kernels do."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [info.name for info in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def _disagreement(found: Any, simulated: Any, integers: bool) -> str:
    """Return what is wrong with a file's outputs, "" if nothing is."""
    error = rms(found, simulated)
    if error > (FLIPS if integers else FLOAT):
        return f"file and simulation differ by {error:.3g} deviations"
    if integers and rows_alike(found, simulated) < ROWS:
        return f"only {rows_alike(found, simulated):.2f} of the rows are alike"
    return ""


@dataclass
class Checker:
    """A case with its network, and the files of any plan of it, below ``folder``."""

    case: Case
    folder: Path
    targets: tuple[str, ...] = ("onnxruntime",)

    def __post_init__(self) -> None:
        self.network: Network = trace(self.case.model, self.case.example_inputs)
        self.calibration = self.case.calibration(self.case.seed)
        self.fresh = self.case.draw(24, torch.Generator().manual_seed(self.case.seed + 10**6))
        self.inputs = tuple(value.numpy() for value in self.fresh)
        self.made: dict[str, tuple[Target, Builder, Compressor]] = {}
        for name in self.targets:
            target = TARGETS[name]()
            compressor = Compressor(self.network, self.calibration, target.abilities)
            self.made[name] = (target, target.prepare(self.network), compressor)

    def float_error(self) -> str:
        """Compare the uncompressed files with the torch model."""
        with torch.no_grad():
            expected = self.case.model(*self.fresh)
        for name, (target, builder, _) in self.made.items():
            path = self.folder / f"{self.case.seed}_{name}{target.suffix}"
            builder.build(Compressed(Plan(), self.network, {}, {}), path)
            found = self._run(name, path)
            if len(arrays(found)) != len(arrays(expected)) or rms(found, expected) > FLOAT:
                return f"{name}: the uncompressed file is not the model"
        return ""

    def _run(self, name: str, path: Path) -> Any:
        if name == "onnxruntime":
            return exact(path, self.inputs)
        return self.made[name][0].open(path)(*self.inputs)

    def plan_error(self, name: str, plan: Plan) -> str:
        """Compare a plan's file with its simulation."""
        target, builder, compressor = self.made[name]
        compressed = compressor.compress(plan)
        path = self.folder / f"{self.case.seed}_{name}{target.suffix}"
        builder.build(compressed, path)
        integers = bool(compressed.activations)
        return _disagreement(self._run(name, path), compressed(*self.fresh), integers)

    def sanity_error(self) -> str:
        """Compare 8-bit activations and 7-bit weights with the network itself."""
        compressed = self.made["onnxruntime"][2].compress(uniform_plan(self.network, 7))
        error = rms(compressed(*self.fresh), self.network(*self.fresh))
        return "" if error <= ROUNDED else f"8 bits are {error:.3g} deviations off"


def check_case(
    seed: int, plans: int, folder: Path, targets: tuple[str, ...] = ("onnxruntime",)
) -> Iterator[Failure]:
    """Yield what fails of a case's network and of so many plans, the first a sane one."""

    def failure(number: int, kind: str, call: Any, *args: Any) -> Iterator[Failure]:
        try:
            text = call(*args)
        except AutocompressError as error:
            kind, text = f"{kind}: {type(error).__name__}", str(error)
        except Exception as error:
            kind, text = f"{kind}: crash, {type(error).__name__}", str(error)
        if text:
            yield Failure(seed, number, kind, " ".join(text.split())[:300])

    made: list[Checker] = []

    def make() -> str:
        made.append(Checker(make_case(seed), folder, targets))
        return ""

    yield from failure(-1, "network", make)
    if not made:
        return
    checker = made[0]
    yield from failure(-1, "float file", checker.float_error)
    yield from failure(-1, "8 bits", checker.sanity_error)
    for number, name in itertools.product(range(plans), checker.made):
        # other runtimes take the host's integer kernels, which may saturate
        plan = random_plan(checker.network, 1000 * seed + number, integers=name == "onnxruntime")
        yield from failure(number, f"{name} file", checker.plan_error, name, plan)
