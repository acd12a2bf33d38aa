"""The profile: what each value of a space does to a network's outputs by itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autocompress.models.network import Network
from autocompress.searching.oracle import Oracle
from autocompress.spec.plan import split_name
from autocompress.spec.space import SearchSpace

__all__ = ["Profile", "companions_of", "groups_of", "profile"]


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
    """What values do to the outputs: ``effects`` by knob, each value alone, above ``base``.

    ``base`` is what the plan does that has the highest value of every knob.
    """

    effects: Mapping[str, Sequence[float]]
    base: float


def profile(
    space: SearchSpace,
    oracle: Oracle,
    companions: Mapping[str, tuple[str, ...]],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> Profile:
    """Return the effects of a space's values; ``progress`` is told done and all.

    Values that have an effect only together are set together, and share it.
    """
    wanted = [(name, v) for name, values in space.knobs.items() if len(values) > 1 for v in values]
    rest = {name: values[-1] for name, values in space.knobs.items()}
    base = oracle(space.plan(rest))
    found: dict[str, list[float]] = {}
    for done, (name, value) in enumerate(wanted):
        progress(done, len(wanted))
        knob = split_name(name)[1]
        together = companions.get(name, (name,))
        chosen = dict(rest)
        for other in together:
            chosen[other] = min(v for v in space.knobs[other] if v >= value or v == rest[other])
        if knob == "a_bits" and value <= 8:
            for other in together:
                weights = f"{split_name(other)[0]}/w_bits"
                narrow = [v for v in space.knobs.get(weights, ()) if v <= 8]
                if narrow:
                    chosen[weights] = narrow[-1]
        effect = oracle(space.plan(chosen)) - base
        found.setdefault(name, []).append(max(effect, 0.0) / len(together))
    progress(len(wanted), len(wanted))
    return Profile(found, base)
