"""Plans: what to do to a network, as canonical JSON."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from types import MappingProxyType
from typing import Any

from autocompress.errors import PlanError

__all__ = ["KNOBS", "TEACHER", "Knob", "Plan", "Recipe", "split_name"]

TEACHER: Mapping[str, Any] = MappingProxyType({"family": "teacher"})


@dataclass(frozen=True)
class Knob:
    """What may be set for a layer or unit: its neutral value and the values that exist."""

    name: str
    neutral: float
    low: float
    high: float
    integer: bool

    def check(self, value: object) -> float | int:
        """Return the value in canonical form; raise PlanError if it cannot exist."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise PlanError(f"{self.name} must be a number, not {value!r}.")
        number = float(value)
        if not self.low <= number <= self.high or (self.integer and not number.is_integer()):
            kind = "an integer" if self.integer else "a number"
            raise PlanError(
                f"{self.name} must be {kind} from {self.low:g} to {self.high:g}, not {value!r}."
            )
        return int(number) if self.integer else number


KNOBS: Mapping[str, Knob] = MappingProxyType(
    {
        "keep": Knob("keep", neutral=1.0, low=0.01, high=1.0, integer=False),
        "w_bits": Knob("w_bits", neutral=32, low=2, high=32, integer=True),
        "a_bits": Knob("a_bits", neutral=32, low=2, high=32, integer=True),
    }
)


def split_name(name: str) -> tuple[str, str]:
    """Split ``layer1.0.conv1/w_bits`` into layer (or unit) and knob; raise PlanError."""
    layer, slash, knob = name.rpartition("/") if isinstance(name, str) else ("", "", "")
    if not slash or not layer or knob not in KNOBS:
        raise PlanError(
            f"A setting is named <layer>/<knob> with a knob of {', '.join(KNOBS)}, not '{name}'."
        )
    return layer, knob


@dataclass(frozen=True)
class Plan:
    """What to do to each layer and unit of a source network.

    Settings map ``<layer or unit>/<knob>`` to a value; neutral values (keep 1, 32 bits) are
    dropped, so that two plans that do the same are equal. Raises PlanError for an unknown knob
    or an impossible value; whether layers exist is checked against a network, not here.
    """

    settings: Mapping[str, float | int] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=lambda: dict(TEACHER))

    def __post_init__(self) -> None:
        clean: dict[str, float | int] = {}
        for name in sorted(self.settings):
            knob = KNOBS[split_name(name)[1]]
            value = knob.check(self.settings[name])
            if value != knob.neutral:
                clean[name] = value
        object.__setattr__(self, "settings", MappingProxyType(clean))
        object.__setattr__(self, "source", MappingProxyType(dict(self.source)))

    def get(self, layer: str, knob: str) -> float | int:
        """Return the value of a layer's knob, neutral if it is not set."""
        neutral = KNOBS[knob].neutral
        return self.settings.get(f"{layer}/{knob}", int(neutral) if KNOBS[knob].integer else 1.0)

    def of(self, knob: str) -> Iterator[tuple[str, float | int]]:
        """Yield (layer or unit, value) of every setting of one knob."""
        for name, value in self.settings.items():
            layer, slot = split_name(name)
            if slot == knob:
                yield layer, value

    def to_json(self) -> str:
        """Return the canonical JSON: sorted keys, no spaces."""
        document = {"settings": dict(self.settings), "source": dict(self.source)}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read canonical JSON; raise PlanError if it is not a plan."""
        try:
            document = json.loads(text)
            if set(document) != {"settings", "source"}:
                raise PlanError("A plan's JSON has the keys 'settings' and 'source' alone.")
            return cls(document["settings"], document["source"])
        except (ValueError, TypeError, AttributeError) as error:
            raise PlanError(f"A plan must be a JSON object: {error}.") from error

    @property
    def digest(self) -> str:
        """Return the sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def _hash(self) -> int:
        return hash(self.to_json())

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Any, ...]:
        return (Plan, (dict(self.settings), dict(self.source)))


@dataclass(frozen=True)
class Recipe:
    """The training a plan got: rung (0 = none), epochs and seed."""

    rung: int = 0
    epochs: float = 0.0
    seed: int = 0

    def key(self, plan: Plan, target: str) -> str:
        """Return the artifact's key: a digest of plan, recipe and target."""
        text = "\n".join((plan.to_json(), f"{self.rung} {self.epochs} {self.seed}", target))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
