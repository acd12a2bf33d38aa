"""Which node of the network the parts of a named ONNX file came from."""

import re
from collections import deque
from collections.abc import Iterable

from onnx import ModelProto, NodeProto

__all__ = ["Origins", "is_layer", "of_network"]

_NAME = re.compile(r"\w+/(?:\d+|[qd])(?![^\W_])")
_LAYERS = ("Conv", "Gemm", "MatMul")


class Origins:
    """Finds the network's nodes behind the names that a runtime gives its fused operators.

    ``model``: a file written with ``named``: its nodes are called ``<node>/<index>`` after the
    network's, those that round a tensor ``<node>/q`` and ``<node>/d``.
    """

    def __init__(self, model: ModelProto) -> None:
        self._nodes = {node.name: node for node in model.graph.node if node.name}
        self._makers = {name: n for n in model.graph.node if n.name for name in n.output}
        self._rounded = {
            node.input[0]: node for node in model.graph.node if node.name.endswith("/q")
        }

    def named(self, text: str) -> list[NodeProto]:
        """Return the nodes of the file whose names are in ``text``, in their order there."""
        found = []
        for match in _NAME.finditer(text):
            name = match.group()
            while name not in self._nodes and "_" in name:  # words of the runtime before it
                name = name.partition("_")[2]
            if name in self._nodes:
                found.append(self._nodes[name])
        return found

    def value(self, name: str) -> NodeProto | None:
        """Return the named node that makes a value, or that rounds an input of the file."""
        return self._makers.get(name) or self._rounded.get(name)

    def layer(self, node: NodeProto, taken: Iterable[str] = ()) -> NodeProto:
        """Return the nearest layer at or before ``node`` that is not ``taken``, else ``node``."""
        queue, seen = deque([node]), set[str]()
        while queue:
            here = queue.popleft()
            if is_layer(here) and here.name not in taken:
                return here
            for name in here.input:
                maker = self._makers.get(name)
                if maker is not None and maker.name not in seen and not is_layer(here):
                    seen.add(maker.name)
                    queue.append(maker)
        return node


def is_layer(node: NodeProto) -> bool:
    """Return whether a node, of the file or of a runtime's graph, is a convolution or a product."""
    return any(part in node.op_type for part in _LAYERS)


def of_network(node: NodeProto | None) -> str:
    """Return the node of the network that a node of the file came from, "" if it says none."""
    return node.name.rpartition("/")[0] if node is not None else ""
