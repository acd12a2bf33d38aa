"""Networks: a model as one functional ATen graph and a table of parameters."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx

from autocompress.errors import PlanError, unknown
from autocompress.models.channels.groups import Groups, Unit, find_groups
from autocompress.models.layer import Layer
from autocompress.models.plain import graph_of, plain

__all__ = ["Network", "Observer"]

Observer = Callable[[fx.Node, Any], Tensor | None]


@dataclass(frozen=True, eq=False)
class Network:
    """A network without BatchNorm, as a graph of ATen operators over named parameters.

    The graph is functional and shared between copies; parameters are its ``get_attr`` nodes.
    Made by :func:`autocompress.models.trace.trace`. Nothing in it is ever changed in place.
    """

    graph: fx.Graph
    params: Mapping[str, Tensor]
    layers: tuple[Layer, ...]
    example_inputs: tuple[Tensor, ...]

    @cached_property
    def groups(self) -> Groups:
        """The channel groups of the network (of the one that was traced, in pruned copies)."""
        return find_groups(self.graph, self.params, self.layers, self.example_inputs)

    def __getstate__(self) -> dict[str, Any]:
        """Return plain data for other processes: the graph's nodes, and what a trace found."""
        return {
            "graph": [plain(node) for node in self.graph.nodes],
            "params": dict(self.params),
            "layers": self.layers,
            "example_inputs": self.example_inputs,
        }

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        made = {"graph": graph_of(state["graph"]), "params": MappingProxyType(state["params"])}
        self.__dict__.update({**state, **made})

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units whose channels can be pruned."""
        return self.groups.units

    @property
    def fixed(self) -> Mapping[str, str]:
        """Layers whose output channels cannot be pruned, and why."""
        return self.groups.fixed

    @cached_property
    def by_name(self) -> Mapping[str, Layer]:
        """The layers by their names."""
        return MappingProxyType({layer.name: layer for layer in self.layers})

    def layer(self, name: str) -> Layer:
        """Return a layer; raise PlanError that names the nearest if there is none."""
        if name not in self.by_name:
            raise PlanError(unknown("layer", name, self.by_name))
        return self.by_name[name]

    @property
    def macs(self) -> int:
        """Multiply-adds of all layers for one input, as they are in this copy."""
        return sum(layer.positions * self.params[layer.weight].numel() for layer in self.layers)

    @cached_property
    def example_ranges(self) -> Mapping[str, tuple[float, float]]:
        """Least and greatest value of every float tensor on the example inputs, by node."""
        found: dict[str, tuple[float, float]] = {}

        def observe(node: fx.Node, value: Any) -> None:
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                found[node.name] = (float(value.min()), float(value.max()))

        self.run(*self.example_inputs, observe=observe)
        return MappingProxyType(found)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by node, at a batch of two, so that the batch differs from 1."""
        found: dict[str, tuple[int, ...]] = {}

        def observe(node: fx.Node, value: Any) -> None:
            if isinstance(value, Tensor):
                found[node.name] = tuple(value.shape)

        pair = (value.repeat(2, *[1] * (value.ndim - 1)) for value in self.example_inputs)
        self.run(*pair, observe=observe)
        return MappingProxyType(found)

    @cached_property
    def fingerprint(self) -> str:
        """A sha256 over graph and parameters, in hex."""
        digest = hashlib.sha256()
        for node in self.graph.nodes:
            digest.update(f"{node.name} {node.target} {node.args} {node.kwargs}\n".encode())
        for name in sorted(self.params):
            value = self.params[name].detach().cpu().contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _program(self) -> list[tuple[fx.Node, list[fx.Node]]]:
        """Nodes in order, each with the values that are dead after it."""
        nodes = list(self.graph.nodes)
        last: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for source in node.all_input_nodes:
                last[source] = node
        dead: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            dead.setdefault(node, []).append(source)
        return [(node, dead.get(node, [])) for node in nodes]

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the network; return a tensor, or a tuple where the model had several outputs."""
        return self.run(*inputs)

    @torch.no_grad()
    def run(self, *inputs: Tensor, observe: Observer | None = None) -> Any:
        """Run node by node; ``observe(node, value)`` may return a value to put in its place."""
        values: dict[fx.Node, Any] = {}
        feed = iter(inputs)
        result: Any = None
        for node, dead in self._program:
            if node.op == "get_attr":
                value: Any = self.params[str(node.target)]
            elif node.op == "placeholder":
                value = next(feed)
            elif node.op == "output":
                outputs: Any = fx.map_arg(node.args[0], values.__getitem__)
                result = outputs[0] if len(outputs) == 1 else tuple(outputs)
                break
            else:
                assert callable(node.target)
                args = fx.map_arg(node.args, values.__getitem__)
                kwargs = fx.map_arg(node.kwargs, values.__getitem__)
                value = node.target(*args, **kwargs)
            if observe is not None and node.op != "get_attr":
                replacement = observe(node, value)
                value = value if replacement is None else replacement
            values[node] = value
            for source in dead:
                del values[source]
        return result

    def replace(
        self,
        *,
        params: Mapping[str, Tensor] | None = None,
        edits: Mapping[str, Sequence[Any]] | None = None,
    ) -> "Network":
        """Return a copy with other parameters and, by node name, other arguments."""
        graph = self._edited(edits) if edits else self.graph
        merged = MappingProxyType({**self.params, **(params or {})})
        copy = Network(graph, merged, self.layers, self.example_inputs)
        if "groups" in self.__dict__:
            copy.__dict__["groups"] = self.groups
        if not edits and "_program" in self.__dict__:
            copy.__dict__["_program"] = self._program
        return copy

    def pruned(
        self, kept: Mapping[str, Sequence[int]]
    ) -> "tuple[Network, Mapping[str, Mapping[int, Tensor]]]":
        """Return a copy with fewer channels, and what each parameter keeps, by dimension.

        ``kept`` has the ascending channels kept of each unit, as for ``groups.slices``.
        """
        if not kept:
            return self, {}
        slices = self.groups.slices(kept)
        sliced = {}
        for name, cuts in slices.items():
            value = self.params[name]
            for dim, index in cuts.items():
                value = value.index_select(dim, index)
            sliced[name] = value
        return self.replace(params=sliced, edits=self.groups.edits(kept)), slices

    def _edited(self, edits: Mapping[str, Sequence[Any]]) -> fx.Graph:
        graph = fx.Graph()
        mapping: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            copy = graph.node_copy(node, mapping.__getitem__)
            assert copy.name == node.name
            if node.name in edits:
                copy.args = fx.map_arg(tuple(edits[node.name]), mapping.__getitem__)
            mapping[node] = copy
        return graph

    def module(self) -> fx.GraphModule:
        """Return the network as a module that shares its parameters, for export.

        They are called ``held.p0``, ``held.p1``, …: no value of an exported graph is called so.
        """
        root: dict[str, Any] = {}
        places = {name: f"held.p{place}" for place, name in enumerate(self.params)}
        for name, value in self.params.items():
            floats = value.is_floating_point()
            root[places[name]] = torch.nn.Parameter(value, requires_grad=False) if floats else value
        graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.graph.nodes:
            made[node] = graph.node_copy(node, made.__getitem__)
            if node.op == "get_attr":
                made[node].target = places[str(node.target)]
        return fx.GraphModule(root, graph)
