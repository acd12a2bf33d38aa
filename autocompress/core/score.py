"""Scores: what was measured of one plan, with the estimates beside it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from autocompress.core.artifact import Artifact
from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.errors import InputError, unknown

__all__ = ["OBJECTIVES", "Objective", "Outcome", "Score", "check_objectives"]

Outcome = Literal["ok", "over_budget", "failed"]


@dataclass(frozen=True)
class Objective:
    """A figure of a score that a search improves: its field and direction."""

    name: str
    field: str
    maximize: bool = False


OBJECTIVES: Mapping[str, Objective] = {
    "accuracy": Objective("accuracy", "accuracy", maximize=True),
    "size": Objective("size", "size_bytes"),
    "latency": Objective("latency", "latency_figure_ms"),
    "energy": Objective("energy", "energy_mj"),
    "memory": Objective("memory", "activation_bytes"),
}


def check_objectives(names: object) -> tuple[str, ...]:
    """Return the objectives' names; raise InputError unless accuracy and at least one more."""
    if not isinstance(names, (list, tuple)):
        raise InputError(f'Objectives are a list such as ["accuracy", "size"], not {names!r}.')
    for name in names:
        if not isinstance(name, str) or name not in OBJECTIVES:
            raise InputError(unknown("objective", str(name), OBJECTIVES))
    if list(names[:1]) != ["accuracy"] or len(set(names)) != len(names) or len(names) < 2:
        others = ", ".join(name for name in OBJECTIVES if name != "accuracy")
        raise InputError(
            f"Objectives are 'accuracy' first, then one or more of {others}, each once: not "
            f"{list(names)!r}."
        )
    return tuple(names)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of one trial.

    ``accuracy`` is of the validation split and ``test_accuracy`` of the test split, both of the
    file in its runtime; the interval ends are at 95 %. Sizes in bytes, times in milliseconds;
    ``latency_high_ms`` is the upper end of the latency's interval. ``load_ms`` and
    ``peak_memory_bytes`` are of loading the file (NaN where it takes less than the system
    resolves), ``macs`` (multiply-adds for one input), ``activation_bytes`` (the most that its
    tensors take at once) and ``parameters`` of the compressed network. ``effect``: how far its
    simulated outputs on the calibration inputs are from the uncompressed network's. ``device``
    names the hardware that ``energy_mj`` and ``device_latency_ms`` are predicted for, "" for none:
    with one, it is that latency which is limited and improved, the measured one stands beside it.
    ``baseline`` names a plan that every study scores, ``cpu`` the instruction sets of the machine.
    ``estimates`` are predicted figures by the names of the measured ones, ``timing`` the raw
    latency samples, ``seconds`` the wall time of each step. A figure that was not measured is NaN;
    a plan that is ``over_budget`` has estimates alone. ``portable``: whether the file answers alike
    on every CPU, None where nobody looked. ``difference``: how far the file's outputs are from its
    simulation's on calibration inputs, RMS in units of their deviation; ``differs``: what is to be
    said of a file that is not what it should be, "" for others.
    """

    trial: int
    plan: Plan
    recipe: Recipe
    target: str
    outcome: Outcome
    message: str = ""
    baseline: str = ""
    accuracy: float = math.nan
    accuracy_low: float = math.nan
    accuracy_high: float = math.nan
    size_bytes: float = math.nan
    latency_ms: float = math.nan
    latency_low_ms: float = math.nan
    latency_high_ms: float = math.nan
    load_ms: float = math.nan
    peak_memory_bytes: float = math.nan
    macs: float = math.nan
    activation_bytes: float = math.nan
    energy_mj: float = math.nan
    device_latency_ms: float = math.nan
    parameters: float = math.nan
    effect: float = math.nan
    test_accuracy: float = math.nan
    test_low: float = math.nan
    test_high: float = math.nan
    artifact: str = ""
    sha256: str = ""
    device: str = ""
    estimates: Mapping[str, float] = field(default_factory=dict)
    timing: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu: tuple[str, ...] = ()
    portable: bool | None = None
    difference: float = math.nan
    differs: str = ""
    seed: int = 0

    @property
    def key(self) -> str:
        """Return the artifact's key: a digest of plan, recipe and target."""
        return self.recipe.key(self.plan, self.target)

    def file(self, directory: Path) -> Artifact:
        """Return the file as it was scored, in a run directory."""
        path = directory / "artifacts" / self.artifact
        return Artifact(path, self.sha256, int(self.size_bytes), self.target)

    @property
    def latency_figure_ms(self) -> float:
        """The latency that a search improves: the device's if there is one, else the measured."""
        return self.device_latency_ms if self.device else self.latency_ms

    @property
    def latency_limit_ms(self) -> float:
        """The latency that a budget limits: the device's, else the upper end of the interval."""
        return self.device_latency_ms if self.device else self.latency_high_ms

    def figure(self, name: str) -> float:
        """Return a figure by its name, of a plan over budget the estimate."""
        if self.outcome == "over_budget":
            return float(self.estimates[name])
        return float(getattr(self, name))

    def values(self, objectives: tuple[str, ...]) -> tuple[float, ...]:
        """Return the objectives' figures in order."""
        return tuple(self.figure(OBJECTIVES[name].field) for name in objectives)

    def constraints(self, budget: Budget) -> dict[str, float]:
        """Return the relative excess over each limit of a budget, feasible at ≤ 0."""
        return budget.constraints(self.figure)

    def meets(self, budget: Budget) -> bool:
        """Tell whether the score is of a file within the budget."""
        return self.outcome == "ok" and all(c <= 0 for c in self.constraints(budget).values())

    def to_json(self) -> dict[str, Any]:
        """Return the score as plain JSON data, NaN left out."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data.update(plan=self.plan.to_json(), recipe=asdict(self.recipe), cpu=list(self.cpu))
        return {k: v for k, v in data.items() if not (isinstance(v, float) and math.isnan(v))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Score":
        """Read what ``to_json`` wrote; raise PlanError, TypeError or KeyError otherwise."""
        values = dict(data)
        values["plan"] = Plan.from_json(values["plan"])
        values["recipe"] = Recipe(**values["recipe"])
        values["cpu"] = tuple(values.get("cpu", ()))
        return cls(**values)
