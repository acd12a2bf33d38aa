"""The profile: what each value of a space does to a network's outputs by itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autocompress.core.plan import Plan, split_name
from autocompress.core.space import SearchSpace
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.network import Network

__all__ = ["Profile", "companions_of", "groups_of", "profile", "questions"]


def groups_of(network: Network, space: SearchSpace) -> dict[str, str]:
    """Return the kind and stage of every knob: what it sets, and the size of what that is in."""
    units = {unit.name: network.layer(unit.producers[0]) for unit in network.units}
    found = {}
    for name in space.knobs:
        owner, knob = split_name(name)
        layer = units[owner] if knob == "keep" else network.layer(owner)
        shape = layer.out_shape[1:] if layer.kind != "linear" else layer.out_shape[:-1]
        found[name] = f"{knob} {shape}"
    return found


def companions_of(network: Network, space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """Return by knob those that must be set with it to have an effect, itself among them.

    A tensor is rounded when all layers that read it ask for that, and if their weights are narrow;
    a weight that several layers share has the widest width that one of them asks for.
    """
    nodes = {node.name: node for node in network.graph.nodes}
    shared: dict[tuple[str, object], list[str]] = {}
    for layer in network.layers:
        for knob, what in (("a_bits", nodes[layer.node].args[0]), ("w_bits", layer.weight)):
            name = f"{layer.name}/{knob}"
            if name in space.knobs:
                shared.setdefault((knob, what), []).append(name)
    return {name: tuple(names) for names in shared.values() for name in names}


@dataclass(frozen=True)
class Profile:
    """What values do to the outputs: ``effects`` by knob, each value alone.

    ``base`` is what the plan does that has the highest value of every knob: the effects of these
    are in it, and 0 here.
    """

    effects: Mapping[str, Sequence[float]]
    base: float


def _wanted(space: SearchSpace) -> list[tuple[str, int]]:
    """Return the knobs and places whose effects are computed: the others are interpolated."""
    return [
        (name, place)
        for name, values in space.knobs.items()
        for place in range(0, len(values) - 1, 2 if len(values) > 3 else 1)
    ]


def questions(space: SearchSpace, companions: Mapping[str, tuple[str, ...]]) -> list[Plan]:
    """Return the plans that a profile asks an cache about, each once."""
    alone = (
        _alone(space, name, space.knobs[name][place], companions.get(name, (name,)))
        for name, place in _wanted(space)
    )
    return list(dict.fromkeys([_whole(space), *alone]))


def profile(
    space: SearchSpace, cache: SensitivityCache, companions: Mapping[str, tuple[str, ...]]
) -> Profile:
    """Return the effects of a space's values.

    Each is that of a network that is uncompressed but for the value, so that what lies before it
    need not be computed. Of a knob with four values or more every second one is computed, from the
    lowest up; the logarithm of what lies between is interpolated, that of the last but one
    extrapolated. Values that have an effect only together are set together, and share it.
    """
    found: dict[str, dict[int, float]] = {}
    for name, place in _wanted(space):
        together = companions.get(name, (name,))
        effect = cache(_alone(space, name, space.knobs[name][place], together))
        found.setdefault(name, {})[place] = effect / len(together)
    effects = {name: _filled(few, len(space.knobs[name])) for name, few in found.items()}
    return Profile(effects, cache(_whole(space)))


def _whole(space: SearchSpace) -> Plan:
    """Return the plan that has the highest value of every knob."""
    return Plan({name: values[-1] for name, values in space.knobs.items()})


def _alone(space: SearchSpace, name: str, value: float, together: Sequence[str]) -> Plan:
    """Return the plan that sets a value, and only what it needs to have an effect."""
    chosen: dict[str, float] = {}
    knob = split_name(name)[1]
    for other in together:
        values = space.knobs[other]
        chosen[other] = min(v for v in values if v >= value or v == values[-1])
        weights = f"{split_name(other)[0]}/w_bits"
        narrow = [v for v in space.knobs.get(weights, ()) if v <= 8]
        if knob == "a_bits" and value <= 8 and narrow:
            chosen[weights] = narrow[-1]
    return Plan(chosen)


def _filled(few: Mapping[int, float], count: int) -> list[float]:
    """Return the effects of all places of a knob from those of some; the last has none."""
    found = [few.get(place, math.nan) for place in range(count - 1)]
    for place in range(1, count - 1):
        if place not in few:
            before = found[place - 1]
            if place + 1 in few:
                found[place] = math.sqrt(before * max(few[place + 1], 1e-12))
            else:
                ratio = before / found[place - 2] if 0 < found[place - 2] < math.inf else 1.0
                found[place] = before * min(ratio, 1.0)
    return [*found, 0.0]
