"""Estimates: what a plan is expected to cost, before anything is compressed or built."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.core.abilities import Abilities
from autocompress.core.budget import Budget
from autocompress.core.plan import Plan
from autocompress.cost import analytic
from autocompress.cost.hardware import HardwareSpec
from autocompress.cost.latency_model import LatencyModel, Prediction
from autocompress.cost.latency_terms import Term, placed, terms
from autocompress.cost.memory import peak_activation_bytes
from autocompress.cost.workload import Workload, workload
from autocompress.models.network import Network
from autocompress.targets.base import Builder
from autocompress.transforms.compressor import Compressed, Options
from autocompress.transforms.dry_run import dry_run

__all__ = ["Estimate", "Estimator", "Feedback"]

#: What the size of a file may differ by from its dry_run's, whose values are made up.
_SIZE_ERROR = 0.01


@dataclass(frozen=True)
class Estimate:
    """Expected figures of a file; what has no model is NaN.

    ``size_bytes`` of the file, ``macs`` and ``activation_bytes`` (peak) for one input; ``latency``
    on this machine; ``device_latency_ms`` and ``energy_mj`` on the device that was named.
    ``unknown``: operators that a model of latency or energy has never seen.
    """

    size_bytes: float
    macs: int
    activation_bytes: int
    latency: Prediction
    device_latency_ms: float = math.nan
    energy_mj: float = math.nan
    device: str = ""
    unknown: tuple[str, ...] = ()

    def figures(self) -> dict[str, float]:
        """Return the figures by the names that a score has for them, those that are known."""
        found = {
            "size_bytes": float(self.size_bytes),
            "macs": float(self.macs),
            "activation_bytes": float(self.activation_bytes),
            "latency_ms": self.latency.ms,
            "latency_low_ms": self.latency.low_ms,
            "latency_high_ms": self.latency.high_ms,
            "device_latency_ms": self.device_latency_ms,
            "energy_mj": self.energy_mj,
        }
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def least(self, name: str) -> float:
        """Return the figure that a budget limits, less its error; NaN where it has no model."""
        if name == "latency_limit_ms":
            return self.device_latency_ms if self.device else self.latency.low_ms
        value = float(getattr(self, name))
        return value * (1 - _SIZE_ERROR) if name == "size_bytes" else value

    def expected(self, name: str) -> float:
        """Return a figure as a score over budget tells it."""
        if name in ("latency_limit_ms", "latency_figure_ms"):
            return self.device_latency_ms if self.device else self.latency.ms
        return float(getattr(self, name))

    def over(self, budget: Budget) -> bool:
        """Tell whether a limit is exceeded by more than the estimate's own error."""
        return any(excess > 0 for excess in budget.constraints(self.least).values())


@dataclass(frozen=True)
class Feedback:
    """What estimates can learn of one compressed network besides its latency.

    ``terms``: of its latency model; ``long`` and ``short``: the channels of the biases that are
    in float32 and in float16, by name.
    """

    terms: tuple[Term, ...]
    long: Mapping[str, int]
    short: Mapping[str, int]


class Estimator:
    """Estimates plans of one network on a target, and on a device that is not at hand.

    ``model`` is the latency model fitted to this machine. Every measured trial refines it, and
    shows which biases stay in float32.
    """

    def __init__(
        self,
        network: Network,
        abilities: Abilities,
        builder: Builder,
        *,
        options: Options | None = None,
        device: HardwareSpec | None = None,
        model: LatencyModel | None = None,
    ) -> None:
        self.network, self.abilities, self.builder = network, abilities, builder
        self.options, self.device, self.model = options, device, model
        # by name: the least channels of a bias that was in float32, the most of one in float16
        self._long: dict[str, int] = {}
        self._short: dict[str, int] = {}

    def __call__(self, plan: Plan) -> Estimate:
        """Return the estimate of a plan, which must fit the network (``Compressor.check``)."""
        long = {name: max(n, self._short.get(name, 0) + 1) for name, n in self._long.items()}
        drawn = dry_run(self.network, plan, self.abilities, self.options, long=long)
        return self.of(drawn, len(self.builder.content(drawn)))

    def of(self, compressed: Compressed, size_bytes: float) -> Estimate:
        """Return the estimate of a compressed network whose file has so many bytes."""
        work = workload(compressed, self.abilities)
        latency = Prediction(math.nan, math.nan, math.nan)
        unknown: set[str] = set()
        if self.model is not None:
            latency = self.model.predict(terms(work))
            unknown.update(latency.unknown)
        energy = on_device = math.nan
        if self.device is not None:
            unknown.update(work.unknown)
            if not work.unknown:
                on_device = analytic.latency_ms(work, self.device)
                energy = analytic.energy_mj(work, self.device)
        return Estimate(
            size_bytes=size_bytes,
            macs=work.macs,
            activation_bytes=peak_activation_bytes(work),
            latency=latency,
            device_latency_ms=on_device,
            energy_mj=energy,
            device=self.device.name if self.device else "",
            unknown=tuple(sorted(unknown)),
        )

    def parts(self, plans: Sequence[Plan]) -> list[dict[str, dict[str, float]]]:
        """Return for each plan what each value of the network adds: it is made, and converted.

        By the value's name, then by the figure's as in an Estimate. In place of a file's size, of
        which formats and overheads are part: "weights" and "biases", the numbers that a layer has
        of them, by its node.
        """
        found: list[dict[str, dict[str, float]]] = []
        placed_terms: list[list[tuple[Term, str]]] = []
        for plan in plans:
            work = workload(
                dry_run(self.network, plan, self.abilities, self.options), self.abilities
            )
            parts: dict[str, dict[str, float]] = {op.output: {} for op in work.ops}
            for op in work.ops:
                if op.kind != "view":
                    parts[op.output]["activation_bytes"] = float(work.values[op.output].nbytes)
                if op.macs:
                    parts[op.output]["macs"] = float(op.macs)
                if op.layer and not op.shared:
                    own = parts.setdefault(op.node, {})
                    own["weights"], own["biases"] = float(op.weights - op.cout), float(op.cout)
            if self.device is not None and not work.unknown:
                for cost in analytic.roofline(work, self.device):
                    parts[cost.op.output]["device_latency_ms"] = cost.ms
                    parts[cost.op.output]["energy_mj"] = cost.energy_mj
            found.append(parts)
            listed = placed(work) if self.model is not None else []
            placed_terms.append([(term._replace(op=""), value) for term, value in listed])
        if self.model is not None:
            terms = list(dict.fromkeys(term for listed in placed_terms for term, _ in listed))
            known = [term for term in terms if term.family in self.model.families]
            times = dict(zip(known, self.model.parts(known).tolist(), strict=True))
            for parts, listed in zip(found, placed_terms, strict=True):
                for term, value in listed:
                    own = parts.setdefault(value, {})
                    ms = times.get(term, math.nan)
                    own["latency_ms"] = own.get("latency_ms", 0.0) + ms
        return found

    def feedback(self, compressed: Compressed) -> Feedback:
        """Return what a compressed network can teach, to be learnt here or in another process."""
        long, short = dict[str, int](), dict[str, int]()
        for layer in compressed.network.layers:
            name = layer.bias
            if name in compressed.weights or layer.weight in compressed.weights:
                kind = short if name in compressed.weights else long
                kind[name] = len(compressed.network.params[name])
        return Feedback(terms(self.work(compressed)), long, short)

    def learn(self, feedback: Feedback, ms: float) -> None:
        """Take in what a network has taught, and its measured latency in milliseconds."""
        for name, channels in feedback.short.items():
            self._short[name] = max(channels, self._short.get(name, 0))
        for name, channels in feedback.long.items():
            self._long[name] = min(channels, self._long.get(name, channels))
        if self.model is not None:
            self.model.add(feedback.terms, ms)

    def work(self, compressed: Compressed) -> Workload:
        """Return the workload of a compressed network."""
        return workload(compressed, self.abilities)
