"""Shape constants of a template, edited for copies with fewer channels.

A pruned copy has the nodes of the original with other constants among their arguments. Where the
ONNX nodes that stand for a node show plainly which constant is meant, it is replaced; the result
is checked by shape inference. Whatever is not plain is refused, and the caller exports afresh.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from autocompress.targets.onnx.strip import tensor

__all__ = ["NotPlain", "apply_edits", "check_shapes"]

Change = tuple[tuple[int, ...], Any, Any]  # path in the arguments, old value, new value
Size = tuple[str, int, int]  # a value must have, in this dimension, this size


class NotPlain(Exception):  # noqa: N818 - not an error: the caller exports afresh
    """A constant could not be found, or the edited graph's shapes do not fit."""


def apply_edits(
    model: ModelProto,
    inner: Mapping[str, tuple[int, ...]],
    old: Mapping[str, Any],
    new: Mapping[str, Any],
) -> list[Size] | None:
    """Edit the constants of ``model`` in place; return the sizes to check, None if none changed.

    ``inner``: by node, the ONNX nodes that compute it; ``old``, ``new``: by node, its arguments.
    Raises NotPlain.
    """
    changed = [name for name in new if new[name] != old.get(name)]
    if not changed:
        return None
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    editor = _Editor(model, constants)
    for name in changed:
        if name not in old or name not in inner:
            raise NotPlain(name)
        changes = list(_differences(old[name], new[name], ()))
        editor.edit([model.graph.node[i] for i in inner[name]], changes)
    editor.finish()
    return editor.sizes


def _differences(old: Any, new: Any, path: tuple[int, ...]) -> list[Change]:
    if isinstance(old, tuple) and isinstance(new, tuple):
        if len(old) != len(new):
            raise NotPlain(f"{old} {new}")
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, (*path, i))]
    if old == new:
        return []
    if isinstance(old, bool) or not isinstance(old, int) or not isinstance(new, int):
        raise NotPlain(f"{old} {new}")
    return [(path, old, new)]


class _Editor:
    def __init__(self, model: ModelProto, constants: Mapping[str, Any]) -> None:
        self.model = model
        self.constants = constants
        self.makers = {name: n for n in model.graph.node for name in n.output}
        self.added: list[TensorProto] = []
        self.shared: dict[str, str] = {}
        self.sizes: list[Size] = []

    def edit(self, nodes: list[NodeProto], changes: list[Change]) -> None:
        """Make the changes of one node's arguments in its ONNX nodes."""
        rule = _RULES.get(nodes[-1].op_type) if nodes else None
        if rule is None or not rule(self, nodes[-1], changes):
            self._by_value(nodes, changes)

    def replace(self, node: NodeProto, position: int, value: np.ndarray[Any, Any]) -> None:
        """Give a node another constant as one of its inputs."""
        key = f"{value.dtype} {value.tolist()}"
        if key not in self.shared:
            self.shared[key] = f"_e{len(self.added)}"
            self.added.append(tensor(self.shared[key], value))
        node.input[position] = self.shared[key]

    def vector(self, node: NodeProto, position: int, at: int, old: int, new: int) -> bool:
        """Set element ``at`` of a vector input that is a constant or a Concat of pieces."""
        name = node.input[position]
        added = {t.name: t for t in self.added}
        known = numpy_helper.to_array(added[name]) if name in added else self.constants.get(name)
        if known is not None:
            if known.ndim != 1 or at >= known.size:
                return False
            if name in added and known[at] == new:  # a shape that another node has too
                return True
            if known[at] != old:
                return False
            value = known.copy()
            value[at] = new
            self.replace(node, position, value)
            return True
        maker = self.makers.get(name)
        if maker is None or maker.op_type != "Concat":
            return False
        start = 0
        for index, piece in enumerate(maker.input):
            size = self.constants[piece].size if piece in self.constants else 1
            if start <= at < start + size:
                return self.vector(maker, index, at - start, old, new)
            start += size
        return False

    def _by_value(self, nodes: list[NodeProto], changes: list[Change]) -> None:
        """Replace each old value where it stands exactly once among the nodes' constants."""
        wanted: dict[int, int] = {}
        for _, old, new in changes:
            if wanted.setdefault(old, new) != new:
                raise NotPlain(f"{old}")
        for old, new in wanted.items():
            spots = [
                (node, position, at)
                for node in nodes
                for position, name in enumerate(node.input)
                if name in self.constants and self.constants[name].dtype == np.int64
                for at in np.flatnonzero(self.constants[name].reshape(-1) == old)
            ]
            attributes = [a for node in nodes for a in node.attribute if a.i == old]
            if len(spots) + len(attributes) != 1 or old in (0, 1, -1):
                raise NotPlain(f"{old}")
            if attributes:
                attributes[0].i = new
                continue
            node, position, at = spots[0]
            value = self.constants[node.input[position]].copy()
            value.reshape(-1)[at] = new
            self.replace(node, position, value)

    def finish(self) -> None:
        """Add the new constants to the model."""
        used = {name for node in self.model.graph.node for name in node.input}
        self.model.graph.initializer.extend(t for t in self.added if t.name in used)


def _shape(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """Reshape and Expand: args = (x, shape)."""
    return len(node.input) > 1 and all(
        len(path) == 3 and path[:2] == (0, 1) and editor.vector(node, 1, path[2], old, new)
        for path, old, new in changes
    )


def _split(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """Split: args = (x, sizes, dim), or (x, size, dim), which is then into equal parts."""
    if len(node.input) < 2 and len(changes) == 1 and changes[0][0] == (0, 1):
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        editor.sizes.append((node.output[0], axis, changes[0][2]))
        return True
    return _shape(editor, node, changes)


def _slice(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """Slice: args = (x, dim, start, end, step)."""
    return all(
        path in ((0, 2), (0, 3)) and editor.vector(node, path[1] - 1, 0, old, new)
        for path, old, new in changes
    )


def _pad(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """Pad: args = (x, pairs from the last dimension to the first, value)."""
    pads = editor.constants.get(node.input[1])
    if pads is None:
        return False
    axes = editor.constants.get(node.input[3]) if len(node.input) > 3 else None
    rank = pads.size // 2
    value = pads.copy()
    for path, old, new in changes:
        if len(path) != 3 or path[:2] != (0, 1) or axes is not None:
            return False
        at = rank - 1 - path[2] // 2 + (rank if path[2] % 2 else 0)
        if value[at] != old:
            return False
        value[at] = new
    editor.replace(node, 1, value)
    return True


def _conv(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """Conv: args = (x, w, b, stride, padding, dilation, groups)."""
    if len(changes) != 1 or changes[0][0] != (0, 6):
        return False
    for attribute in node.attribute:
        if attribute.name == "group":
            attribute.i = changes[0][2]
            return True
    return False


def _norm(editor: _Editor, node: NodeProto, changes: list[Change]) -> bool:
    """LayerNormalization: args = (x, normalized shape, …); ONNX has the axis alone."""
    return all(path[:2] == (0, 1) for path, _, _ in changes)


_RULES = {
    "Reshape": _shape,
    "Expand": _shape,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Conv": _conv,
    "LayerNormalization": _norm,
}


def check_shapes(
    model: ModelProto, shapes: Mapping[str, tuple[int, ...]], sizes: Sequence[Size] = ()
) -> None:
    """Infer all shapes; raise NotPlain if they do not fit each other, the outputs or ``sizes``.

    ``shapes``: of the initializers that ``model`` lacks.
    """
    skeleton = ModelProto()
    skeleton.CopyFrom(model)
    for name, shape in shapes.items():
        skeleton.graph.input.append(
            onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
        )
    for info in skeleton.graph.output:
        info.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(
            skeleton, check_type=True, strict_mode=True, data_prop=True
        ).graph
    except onnx.shape_inference.InferenceError as error:
        raise NotPlain(str(error)) from error
    found = {
        info.name: _dims(info) for info in (*inferred.input, *inferred.value_info, *inferred.output)
    }
    wanted = [
        (info.name, axis, n) for info in model.graph.output for axis, n in enumerate(_dims(info))
    ]
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in shapes:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            wanted.append((node.input[0], 1, shapes[node.input[1]][1] * groups))
    for name, axis, size in (*wanted, *sizes):
        dims = found.get(name, [])
        if axis < len(dims) and dims[axis] and size and dims[axis] != size:
            raise NotPlain(f"{name}: {dims}, not {size} in dimension {axis}")


def _dims(info: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in info.type.tensor_type.shape.dim]
