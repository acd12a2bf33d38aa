"""Which value of an export is which node of the network.

The exporter's record of what it made from which node proposes, and probes (onnx_probes) decide:
a value is a node's only if the two are equal on generic inputs and parameters, and on the example.
Then the readers are checked: every value is deformed in both graphs, and all that follows must
still be equal, so that rounding the value rounds what the network's node gives, and no more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, helper
from torch import Tensor, fx

from autocompress.errors import TraceError
from autocompress.models.network import Network
from autocompress.targets.onnx.probes import (
    Inputs,
    Probe,
    close,
    inputs_like,
    pair,
    run_model,
    run_network,
)

__all__ = ["check_outputs", "match_values"]

Array = np.ndarray[Any, Any]
_ROUNDS = 8  # of dropping what is read wrongly, before the export is given up


def match_values(
    exact: ModelProto,
    network: Network,
    other: ModelProto,
    changed: Network,
    made: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """Return, by node of the network, the name of the value that is it; others are absent.

    ``exact``: the export with the network's parameters; ``other``: the same with those of
    ``changed``, which are generic. ``made``: values that the exporter says it made of a node.
    Raises TraceError if the export does not compute what the network does.
    """
    inputs = inputs_like(changed)
    probes = [_probe(other, changed, inputs), _probe(exact, network, pair(network.example_inputs))]
    _check_outputs(exact, network, probes)
    table = _identify(exact, network, probes, made)
    return _drop_misread(other, changed, inputs, probes[0], table)


def check_outputs(model: ModelProto, network: Network) -> None:
    """Raise TraceError if a model does not compute what the network does, on random inputs."""
    inputs = inputs_like(network)
    theirs = run_model(model, _feeds(model, inputs))
    quick = Probe(run_network(network, inputs, exact=False), theirs)
    ends = [end for end in _ends(model, network) if end[0] in quick.ours.arrays]
    if not all(quick.same(*end) for end in ends):
        _check_outputs(model, network, [Probe(run_network(network, inputs), theirs)])


def _probe(model: ModelProto, network: Network, inputs: Inputs) -> Probe:
    return Probe(run_network(network, inputs), run_model(model, _feeds(model, inputs)))


def _feeds(model: ModelProto, inputs: Inputs) -> dict[str, Array]:
    return {info.name: v.numpy() for info, v in zip(model.graph.input, inputs, strict=True)}


def _ends(model: ModelProto, network: Network) -> list[tuple[str, str]]:
    """Return the nodes that the network returns, each with the output that stands for it."""
    output = next(n for n in network.graph.nodes if n.op == "output")
    pairs = zip(output.args[0], model.graph.output, strict=True)
    return [(source.name, info.name) for source, info in pairs]


def _check_outputs(model: ModelProto, network: Network, probes: Sequence[Probe]) -> None:
    for node, value in _ends(model, network):
        for probe in probes:
            mine = probe.ours.arrays.get(node)
            if mine is None or probe.same(node, value):
                continue
            theirs = probe.theirs.get(value)
            if theirs is None or theirs.shape != mine.shape:
                what = f"has shape {None if theirs is None else theirs.shape}, not {mine.shape}"
            else:
                deviation = float(mine.std()) or 1.0
                gap = float(np.nanmax(np.abs(mine - theirs))) / deviation
                what = f"differs by {gap:.2g} times its deviation"
            raise TraceError(
                "The exported graph must compute what the network computes: "
                f"its output '{value}' {what}."
            )


def _identify(
    model: ModelProto, network: Network, probes: Sequence[Probe], made: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    nodes = list(network.graph.nodes)
    starts = [node for node in nodes if node.op == "placeholder"]
    table = {node.name: i.name for node, i in zip(starts, model.graph.input, strict=True)}
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, value in probes[0].theirs.items():
        by_shape.setdefault(value.shape, []).append(name)
    for node in nodes:
        mine = probes[0].ours.arrays.get(node.name)
        if mine is None or node.name in table:
            continue
        said = [v for v in made.get(node.name, ()) if all(p.same(node.name, v) for p in probes)]
        if said:
            table[node.name] = said[-1]
            continue
        equal = [
            v for v in by_shape.get(mine.shape, []) if all(p.same(node.name, v) for p in probes)
        ]
        passed = [table[source.name] for source in node.all_input_nodes if source.name in table]
        if len(equal) > 1:  # values that are equal always: the node passes on what it reads
            taken = set(table.values())  # else they come in one order in both graphs
            equal = [v for v in equal if v in passed] or [v for v in equal if v not in taken]
        if equal:
            table[node.name] = equal[0]
    for name, end in _ends(model, network):
        if name in probes[0].ours.arrays:
            table.setdefault(name, end)
    return table


def _drop_misread(
    model: ModelProto, network: Network, inputs: Inputs, probe: Probe, table: dict[str, str]
) -> dict[str, str]:
    """Drop the nodes whose value in the export has other readers than the node has.

    Several nodes may share a value (an Identity that is gone): the first and the last of them
    are tried.
    """
    kept = {n: v for n, v in table.items() if n in probe.ours.arrays}
    for last in (False, True):
        for _ in range(_ROUNDS):
            members: dict[str, str] = {}
            for name, value in kept.items():
                if last or value not in members:
                    members[value] = name
            if last and len(members) == len(kept):
                break
            wrong = _misread(model, network, inputs, probe, members)
            if not wrong:
                break
            kept = {n: v for n, v in kept.items() if n not in wrong}
        else:
            raise TraceError("The exported graph must read what the network reads.")
    return {n: v for n, v in table.items() if n in kept or n not in probe.ours.arrays}


def _misread(
    model: ModelProto,
    network: Network,
    inputs: Inputs,
    probe: Probe,
    members: Mapping[str, str],
) -> set[str]:
    """Deform ``members`` (nodes by value) in both graphs; return those that are read otherwise."""
    forms = _forms({value: probe.theirs[value] for value in members})
    bent, renamed = _bend(model, forms)
    of_node = {node: forms[value] for value, node in members.items()}

    def replace(name: str, value: Tensor) -> Tensor:
        if name not in of_node:
            return value
        slope, offset = of_node[name]
        return torch.clamp(value * slope + offset, 0, 1)

    try:
        ours = run_network(network, inputs, replace)
        theirs = run_model(bent, _feeds(model, inputs))
    except (RuntimeError, IndexError, TraceError):
        return set()  # deformed values that an operator refuses: nothing to learn
    value_of = {node: value for value, node in members.items()}
    for node in network.graph.nodes:
        value = value_of.get(node.name)
        if value is None:
            continue
        a, b = ours.arrays[node.name], theirs[renamed.get(value, value)]
        if a.shape != b.shape or not close(a, b, ours.noise[node.name], part=0.02):
            return _nearest(node, value_of) or {node.name}
    return set()


def _nearest(node: fx.Node, known: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    for source in node.all_input_nodes:
        found |= {source.name} if source.name in known else _nearest(source, known)
    return found


def _forms(values: Mapping[str, Array]) -> dict[str, tuple[float, float]]:
    """Return for each value the slope and offset of a line that is cut off at 0 and 1."""
    random = np.random.default_rng(3)
    found = {}
    for name, value in values.items():
        finite = value[np.isfinite(value)].astype(np.float64)
        mean, deviation = (finite.mean(), finite.std()) if finite.size else (0.0, 0.0)
        slope = 1 / (3 * deviation) if deviation > 1e-6 * abs(mean) + 1e-30 else 1.0
        offset = 0.5 - mean * slope + random.uniform(-0.1, 0.1)
        found[name] = float(np.float32(slope)), float(np.float32(offset))
    return found


def _bend(
    model: ModelProto, forms: Mapping[str, tuple[float, float]]
) -> tuple[ModelProto, dict[str, str]]:
    """Return the model with values deformed for all readers, and new names of deformed inputs."""
    bent = ModelProto()
    bent.CopyFrom(model)
    del bent.graph.node[:]
    renamed = {i.name: f"{i.name}_bent" for i in model.graph.input if i.name in forms}
    for name, new in renamed.items():
        bent.graph.node.append(_cut(name, new, forms[name]))
    for node in model.graph.node:
        copy = bent.graph.node.add()
        copy.CopyFrom(node)
        for index, name in enumerate(copy.input):
            copy.input[index] = renamed.get(name, name)
        for index, name in enumerate(node.output):
            if name in forms:
                copy.output[index] = f"{name}_straight"
                bent.graph.node.append(_cut(f"{name}_straight", name, forms[name]))
    return bent, renamed


def _cut(source: str, result: str, form: tuple[float, float]) -> Any:
    return helper.make_node("HardSigmoid", [source], [result], alpha=form[0], beta=form[1])
