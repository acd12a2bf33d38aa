"""Calibration: random plans of a network, measured on a runtime, make its latency model.

What is measured is kept in a cache, by target and by the kinds of layers that the network has, so
that the next search on the same device starts with it.
"""

import hashlib
import json
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from autocompress.core.files import write_whole
from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace
from autocompress.cost.latency_model import LatencyModel
from autocompress.cost.latency_terms import Term, features, placed, storage, terms
from autocompress.cost.workload import workload
from autocompress.models.network import Network
from autocompress.targets.base import Array, Builder, Session, Target
from autocompress.targets.timing import cpu_model, measure, openings
from autocompress.transforms.dry_run import dry_run

__all__ = [
    "Bench",
    "Calibration",
    "calibrate",
    "calibration_path",
    "load_calibration",
    "random_plans",
]

_FORMAT = 1
_PROFILED = 24  # plans whose operators are profiled one by one
_LEAST = 40  # plans, however long they take
_MOST = 800
_FOLDED = 1_000_000  # larger layers may keep narrow weights at run time

Sample = tuple[tuple[Term, ...], float]


@dataclass(eq=False)
class Calibration:
    """What was measured of one network's kinds of layers on one device.

    ``device``: target, runtime's version, processor, threads and batch size; ``reference_ms``: the
    uncompressed network's latency then; ``samples``: terms and milliseconds of every plan;
    ``rates``: milliseconds a unit of each feature, from the runtime's own profile.
    """

    device: Mapping[str, Any]
    reference_ms: float
    samples: list[Sample] = field(default_factory=list)
    rates: Mapping[str, float] = field(default_factory=dict)

    def model(self, reference_ms: float | None = None) -> LatencyModel:
        """Return the fitted model; ``reference_ms``: the uncompressed network's latency now."""
        scale = 1.0 if reference_ms is None else reference_ms / self.reference_ms
        return LatencyModel([(t, ms * scale) for t, ms in self.samples], self.rates)

    def save(self, path: Path) -> None:
        """Write the calibration as JSON."""
        listed: dict[Term, int] = {}
        samples = [
            [ms, [listed.setdefault(t._replace(op=""), len(listed)) for t in found]]
            for found, ms in self.samples
        ]
        document = {
            "format": _FORMAT, "device": dict(self.device), "reference_ms": self.reference_ms,
            "terms": [list(term[:-1]) for term in listed], "samples": samples,
            "rates": dict(self.rates),
        }  # fmt: skip
        write_whole(path, json.dumps(document, separators=(",", ":")).encode())

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read what ``save`` wrote; raise ValueError, or what data of other types do."""
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document["format"] != _FORMAT:
            raise ValueError("another format")
        listed = [Term(*entry) for entry in document["terms"]]
        samples = [
            (tuple(listed[place] for place in places), float(ms))
            for ms, places in document["samples"]
        ]
        reference = float(document["reference_ms"])
        if not all(0 < ms < math.inf for ms in (reference, *(ms for _, ms in samples))):
            raise ValueError("times must be above 0 and finite")
        rates = {name: float(rate) for name, rate in dict(document["rates"]).items()}
        return cls(dict(document["device"]), reference, samples, rates)


def _device(target: Target) -> dict[str, Any]:
    return {
        "target": target.name, "version": target.version, "processor": cpu_model(),
        "threads": target.threads, "batch_size": target.batch_size,
    }  # fmt: skip


def calibration_path(network: Network, target: Target) -> Path:
    """Return where the calibration of a network's kinds of layers on a target is kept.

    In the folder that AUTOCOMPRESS_CACHE names, else in the user's cache.
    """
    own = os.environ.get("AUTOCOMPRESS_CACHE")
    shared = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kinds: set[str] = set()
    for bits in (32, 8):
        knobs = (f"{layer.name}/{k}" for layer in network.layers for k in ("w_bits", "a_bits"))
        found = dry_run(network, Plan(dict.fromkeys(knobs, bits)), target.abilities)
        kinds |= {term.family for term in terms(workload(found, target.abilities))}
    digest = hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()[:12]
    name = f"{target.name}-{target.threads}-{target.batch_size}-{digest}.json"
    return (Path(own) if own else shared / "autocompress") / "latency" / name


def load_calibration(path: Path, target: Target) -> tuple[Calibration | None, str]:
    """Return the calibration at a path if it is of this device, and a sentence if it is not."""
    if not path.exists():
        return None, ""
    try:
        found = Calibration.read(path)
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None, f"the latency calibration {path} cannot be read and is measured again"
    wanted = _device(target)
    changed = [key for key in wanted if found.device.get(key) != wanted[key]]
    if changed:
        was = ", ".join(f"{found.device.get(key)}" for key in changed)
        now = ", ".join(f"{wanted[key]}" for key in changed)
        return None, f"the latency calibration was of {was}, this is {now}: it is measured again"
    return found, ""


def random_plans(space: SearchSpace, seed: int = 0) -> Iterator[Plan]:
    """Yield random plans of a space that cover it: each knob's level differs from plan to plan.

    In half of the plans every value is drawn evenly; in the others about a level, a different one
    for channels, weights and activations.
    """
    generator = random.Random(seed)  # noqa: S311 - no secret
    while True:
        level = {knob: generator.random() for knob in ("keep", "w_bits", "a_bits")}
        focus = generator.choice((0, 0, 2, 6))
        chosen = {}
        for name, values in space.knobs.items():
            at = level[name.rpartition("/")[2]]
            place = (
                generator.betavariate(max(0.05, at * focus), max(0.05, (1 - at) * focus))
                if focus
                else generator.random()
            )
            chosen[name] = values[min(len(values) - 1, int(place * len(values)))]
        yield space.plan(chosen)


def calibrate(
    network: Network,
    target: Target,
    space: SearchSpace,
    *,
    builder: Builder | None = None,
    seconds: float = 120.0,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Calibration:
    """Measure random plans of a space for about ``seconds`` and return what was found.

    Plans are carried out in shapes alone, since time does not depend on values. ``progress`` is
    called with the part that is done, 0 to 1.
    """
    builder = builder or target.prepare(network)
    start = time.perf_counter()
    samples: list[Sample] = []
    nodes: list[tuple[list[Term], float]] = []
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        bench = Bench(network, target, builder, Path(folder))
        plans, profiled = random_plans(space, seed), 0
        for label, plan in space.baselines():
            if label != "uncompressed":
                samples.append(bench.measure(plan))
        while len(samples) < _MOST:
            done = time.perf_counter() - start
            if done > seconds and len(samples) >= _LEAST:
                break
            late = done / seconds if seconds > 0 else 1.0
            progress(max(min(late, len(samples) / _LEAST, 1.0), len(samples) / _MOST))
            plan = next(plans)
            samples.append(bench.measure(plan))
            if profiled < _PROFILED:
                nodes += bench.profile(plan)
                profiled += 1
        return Calibration(_device(target), bench.reference_ms, samples, _rates(nodes))


class Bench:
    """Measures sketches of plans beside the uncompressed network."""

    def __init__(self, network: Network, target: Target, builder: Builder, folder: Path) -> None:
        self.network, self.target, self.builder, self.folder = network, target, builder, folder
        self._path = folder / f"model{target.suffix}"
        builder.build(dry_run(network, Plan(), target.abilities), self._path)
        self._references = openings(target.open(self._path), 4.0)
        self.inputs: tuple[Array, ...] = self._references[0].example_inputs(target.batch_size)
        self.reference_ms = self._time(self._references, 4.0, 0.001)

    def _time(
        self, sessions: tuple[Session, ...], most: float, width: float, base: float | None = None
    ) -> float:
        return measure(
            sessions, self._references, self.inputs, threads=self.target.threads,
            reference_ms=base, max_seconds=most, relative_width=width,
        ).latency_ms  # fmt: skip

    def measure(self, plan: Plan, most: float = 0.4, width: float = 0.02) -> Sample:
        """Return a plan's terms and its latency.

        Measured for ``most`` seconds at most, or until blocks tell it to ``width``: more would be
        worth less than another plan that is measured meanwhile.
        """
        compressed = dry_run(self.network, self._quick(plan), self.target.abilities)
        self.builder.build(compressed, self._path)
        sessions = openings(self.target.open(self._path), most)
        found = self._time(sessions, most, width, self.reference_ms)
        return terms(workload(compressed, self.target.abilities)), found

    def _quick(self, plan: Plan) -> Plan:
        """Return a plan that takes the same time and loads faster, where the target allows it."""
        if not self.target.abilities.folds_weights:
            return plan
        small = {
            f"{layer.name}/w_bits": 8
            for layer in self.network.layers
            if layer.parameters <= _FOLDED and plan.get(layer.name, "w_bits") < 8
        }
        return Plan({**plan.settings, **small}, plan.source)

    def profile(self, plan: Plan) -> list[tuple[list[Term], float]]:
        """Return the profiled times of a network's values, and the terms that each is made of.

        Those are the operator that makes the value, with what is fused into it, and conversions:
        runtimes call these after what they convert.
        """
        compressed = dry_run(self.network, plan, self.target.abilities)
        path = self.folder / f"profile{self.target.suffix}"
        path.write_bytes(self.builder.content(compressed, named=True))
        work = workload(compressed, self.target.abilities)
        stored = storage(work)
        stored |= {op.node: stored[op.output] for op in work.ops}
        times: dict[str, float] = {}
        for op in self.target.profile(path, self.inputs):
            value = stored.get(op.node, "")
            times[value] = times.get(value, 0.0) + op.ms
        found: dict[str, list[Term]] = {}
        for term, value in placed(work):
            found.setdefault(value, []).append(term)
        return [(listed, times[value]) for value, listed in found.items() if value in times]


def _rates(nodes: Sequence[tuple[list[Term], float]]) -> dict[str, float]:
    """Return milliseconds a unit of every feature by least squares over profiled nodes."""
    if not nodes:
        return {}
    names = sorted({name for found, _ in nodes for t in found for name, _ in features(t)})
    column = {name: place for place, name in enumerate(names)}
    design = np.zeros((len(nodes), len(names)))
    for row, (found, _) in enumerate(nodes):
        for term in found:
            for name, amount in features(term):
                design[row, column[name]] += amount
    times = np.array([ms for _, ms in nodes])
    weigh = 1 / np.maximum(times, max(float(np.median(times)) / 4, 1e-9))
    size = np.sqrt((design**2).sum(0)) + 1e-12
    rates = nnls(design * weigh[:, None] / size, times * weigh, maxiter=50 * len(names))[0] / size
    return {name: float(rate) for name, rate in zip(names, rates, strict=True) if rate > 0}
