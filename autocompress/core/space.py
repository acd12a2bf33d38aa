"""Search spaces: which values each knob of each layer or unit may take."""

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autocompress.core.abilities import Abilities
from autocompress.core.plan import KNOBS, Plan, split_name
from autocompress.core.toml import check_keys, line_of, read_toml
from autocompress.errors import PlanError, SpaceError, unknown

__all__ = ["SearchSpace", "SpaceTemplate"]

Value = float | int


@dataclass(frozen=True)
class SearchSpace:
    """The values, ascending, of every ``<layer or unit>/<knob>`` of one network.

    ``code_limit``: that of the target's abilities, by which uniform plans are called.
    """

    knobs: Mapping[str, tuple[Value, ...]]
    code_limit: int = 128

    def __post_init__(self) -> None:
        for name, values in self.knobs.items():
            split_name(name)
            if not values or list(values) != sorted(set(values)):
                raise SpaceError(f"'{name}' needs different values in ascending order: {values}.")
        object.__setattr__(self, "knobs", MappingProxyType(dict(self.knobs)))

    @property
    def size(self) -> int:
        """Return the number of plans in the space."""
        return math.prod(len(values) for values in self.knobs.values())

    @property
    def digest(self) -> str:
        """Return a sha256 of the space, in hex."""
        text = json.dumps({name: list(values) for name, values in sorted(self.knobs.items())})
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _neutral(self) -> Mapping[str, Value]:
        return {name: Plan().get(*split_name(name)) for name in self.knobs}

    def plan(self, choices: Mapping[str, Value]) -> Plan:
        """Return the plan of a full choice; knobs with one value need not be named."""
        only = {name: values[0] for name, values in self.knobs.items() if len(values) == 1}
        return Plan({**only, **choices})

    def choices(self, plan: Plan) -> dict[str, Value]:
        """Return the value of every knob of the space in a plan."""
        return {name: plan.settings.get(name, neutral) for name, neutral in self._neutral.items()}

    def contains(self, plan: Plan) -> bool:
        """Tell whether a plan takes its values from the space and sets nothing else."""
        chosen = self.choices(plan)
        return set(plan.settings) <= set(self.knobs) and all(
            value in self.knobs[name] for name, value in chosen.items()
        )

    def uniform(self, **wanted: Value) -> Plan:
        """Return the plan with one value a knob (``w_bits=4``) wherever the space has it.

        Elsewhere the nearest higher value of the space stands in, or its highest.
        """
        chosen: dict[str, Value] = {}
        for name, values in self.knobs.items():
            goal = wanted.get(split_name(name)[1], math.inf)
            chosen[name] = next((value for value in values if value >= goal), values[-1])
        return Plan(chosen)

    def baselines(self) -> list[tuple[str, Plan]]:
        """Return the named plans that every study scores: uncompressed and uniform ones.

        The first three are the uncompressed model, uniform 8-bit (or the most bits up to 8 that
        the space has) and uniform pruning by about one half.
        """
        values: dict[str, list[Value]] = {knob: [] for knob in KNOBS}
        for name, options in self.knobs.items():
            values[split_name(name)[1]].extend(options)
        w_bits, a_bits = (
            sorted({v for v in values[k] if v <= 8})[::-1] for k in ("w_bits", "a_bits")
        )
        keeps = sorted({v for v in values["keep"] if v < 1}, key=lambda v: abs(v - 0.5))[:3]
        low_a = {"a_bits": a_bits[0]} if a_bits else {}
        wanted: list[dict[str, Value]] = []
        wanted += [{"w_bits": w_bits[0], **low_a}] if w_bits else []
        wanted += [{"keep": keeps[0]}] if keeps else []
        for bits in w_bits:
            wanted += [{"w_bits": bits}, {"w_bits": bits, **low_a}]
        for keep in keeps:
            wanted += [{"keep": keep}]
            wanted += [{"keep": keep, "w_bits": w_bits[0], **low_a}] if w_bits else []
        named = {Plan(): "uncompressed"}
        for choice in wanted:
            full = {k: choice.get(k, max(values[k])) for k in KNOBS if values[k]}
            named.setdefault(self.uniform(**choice), "uniform " + ", ".join(self._words(full)))
        return [(label, plan) for plan, label in named.items()]

    def _words(self, choice: Mapping[str, Value]) -> Iterator[str]:
        if choice.get("keep", 1) < 1:
            yield f"keep {choice['keep']:g}"
        bits = choice.get("w_bits", 32)
        narrow = bits <= 8 and choice.get("a_bits", 32) <= 8 and 2 ** (bits - 1) > self.code_limit
        for knob, what in (("w_bits", "weights"), ("a_bits", "activations")):
            if choice.get(knob, 32) < 32:
                codes = f" (codes to ±{self.code_limit})" if narrow and knob == "w_bits" else ""
                yield f"{choice[knob]:g}-bit {what}{codes}"


@dataclass(frozen=True)
class SpaceTemplate:
    """Rules with wildcards that become a SearchSpace for a network.

    ``rules`` pair a pattern over ``<layer or unit>/<knob>`` with its values, later rules win;
    ``exclude`` are patterns over names or ``<name>/<knob>`` that are left alone.
    """

    rules: tuple[tuple[str, tuple[Value, ...]], ...]
    exclude: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, knobs: Mapping[str, Sequence[Value]], exclude: Sequence[str] = ()
    ) -> "SpaceTemplate":
        """Return the template of a mapping; raise SpaceError for an impossible pattern or value."""
        rules = []
        for pattern, values in knobs.items():
            try:
                knob = KNOBS[split_name(pattern)[1]]
                if not isinstance(values, (list, tuple)) or not values:
                    raise PlanError(f"its values must be a list of numbers, not {values!r}.")
                checked = tuple(sorted({knob.check(value) for value in values}))
            except PlanError as error:
                known = [f"{pattern.rpartition('/')[0] or pattern}/{knob}" for knob in KNOBS]
                hint = (
                    "" if pattern.rpartition("/")[2] in KNOBS else unknown("knob", pattern, known)
                )
                raise SpaceError(f"In the search space, '{pattern}': {hint or error}") from error
            rules.append((pattern, checked))
        return cls(tuple(rules), tuple(exclude))

    @classmethod
    def read(cls, path: Path) -> "SpaceTemplate":
        """Read a TOML file; raise ConfigError or SpaceError naming file and line."""
        table, text = read_toml(path)
        return cls.from_table(table, text, path)

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], text: str, path: Path, section: str = ""
    ) -> "SpaceTemplate":
        """Return the template of a table of a TOML file; errors are those of :meth:`read`."""
        check_keys(table, ("knobs", "exclude"), text, path, section)
        knobs, exclude = table.get("knobs", {}), table.get("exclude", [])
        patterns = isinstance(exclude, list) and all(isinstance(item, str) for item in exclude)
        if not isinstance(knobs, dict) or not patterns:
            line = line_of(text, "knobs" if patterns else "exclude", section)
            raise SpaceError(
                f"{path}, line {line}: 'knobs' must be a table and 'exclude' a list of patterns."
            )
        for pattern, values in knobs.items():
            try:
                cls.of({pattern: values})
            except SpaceError as error:
                line = line_of(text, pattern, f"{section}.knobs".removeprefix("."))
                raise SpaceError(f"{path}, line {line}: {error}") from error
        return cls.of(knobs, exclude)

    def resolve(
        self, layers: Collection[str], units: Collection[str], abilities: Abilities
    ) -> SearchSpace:
        """Return the space for a network's layers and units on a target.

        Raises SpaceError for a pattern that matches nothing (unless its layer part is ``*``)
        and for a bit width that the target lacks.
        """
        have = {"w_bits": abilities.w_bits, "a_bits": abilities.a_bits}
        names = {f"{layer}/{knob}": True for layer in layers for knob in ("w_bits", "a_bits")}
        if abilities.keep:
            names.update({f"{unit}/keep": True for unit in units})
        knobs: dict[str, tuple[Value, ...]] = {}
        for pattern, values in self.rules:
            layer, knob = split_name(pattern)
            able = have.get(knob)
            for value in values:
                if able is not None and value not in able:
                    raise SpaceError(
                        f"'{pattern}' asks for {value:g} bits; this target has {knob} "
                        f"{', '.join(str(bits) for bits in able)}."
                    )
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if not matched and layer.strip("*"):
                pool = units if knob == "keep" else layers
                kind = "unit (prunable group of channels)" if knob == "keep" else "layer"
                raise SpaceError(f"'{pattern}' matches nothing: {unknown(kind, layer, pool)}")
            knobs.update(dict.fromkeys(matched, values))
        for pattern in self.exclude:
            gone = [
                n
                for n in names
                if fnmatchcase(n, pattern) or fnmatchcase(n[: n.rfind("/")], pattern)
            ]
            if not gone:
                raise SpaceError(
                    f"exclude '{pattern}' matches nothing: {unknown('layer', pattern, layers)}"
                )
            for name in gone:
                knobs.pop(name, None)
        if not knobs:
            raise SpaceError(
                "A search space must leave at least one knob of the network to search."
            )
        return SearchSpace(knobs, abilities.code_limit)

    def to_dict(self) -> dict[str, Any]:
        """Return the template as plain data."""
        return {"knobs": {p: list(v) for p, v in self.rules}, "exclude": list(self.exclude)}
