"""Whether an edited template can be trusted for a copy with fewer channels.

The exporter may compute constants from channel counts that no argument of the network shows. Where
an integer constant that was not edited could be one of them, or a float one has a channel each, the
edited graph is run once beside the network.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from autocompress.errors import TraceError
from autocompress.models.network import Network
from autocompress.targets.onnx.edits import NotPlain
from autocompress.targets.onnx.match import check_outputs
from autocompress.targets.onnx.template import Template, fill, graph_args

__all__ = ["check_constants"]

_TRUSTED: WeakKeyDictionary[Network, set[int]] = WeakKeyDictionary()  # a file is written twice
_LARGEST = 2**31  # above it are ends of slices that mean "to the last"


def check_constants(model: ModelProto, template: Template, network: Network) -> None:
    """Raise NotPlain if ``model``, edited to ``network``, computes something else or nothing.

    ``model`` lacks the parameters.
    """
    counts = {
        before
        for name, shape in template.shapes.items()
        for before, now in zip(shape, network.params[name].shape, strict=True)
        if before != now
    }
    trusted = _TRUSTED.setdefault(network, set())
    if not counts or hash(template.model) in trusted:
        return
    if not _may_depend(model, template.inner, graph_args(network.graph), counts):
        return
    try:
        check_outputs(fill(model, template.places, network.params), network)
    except TraceError as error:
        raise NotPlain(str(error)) from error
    trusted.add(hash(template.model))


def _may_depend(
    model: ModelProto,
    inner: Mapping[str, tuple[int, ...]],
    args: Mapping[str, Any],
    counts: set[int],
) -> bool:
    """Tell whether a constant may hold one of ``counts`` that no argument of its node shows.

    ``inner``: by node of the network, its ONNX nodes; ``args``: by node, its arguments.
    """
    constants = {
        i.name: numpy_helper.to_array(i)
        for i in model.graph.initializer
        if i.data_type in (TensorProto.INT64, TensorProto.INT32)
    }
    if any(counts & set(i.dims) for i in model.graph.initializer if i.name not in constants):
        return True
    shown: dict[int, set[int]] = {}
    for name, indices in inner.items():
        numbers = set(_numbers(args.get(name, ())))
        for index in indices:
            shown.setdefault(index, set()).update(numbers)
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            value = constants.get(name)
            if value is not None and _holds(value, shown.get(index, set()), counts):
                return True
    return False


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int):
        yield value


def _holds(value: np.ndarray[Any, Any], shown: set[int], counts: set[int]) -> bool:
    elements = [
        abs(e) for e in value.reshape(-1).tolist() if e not in shown and 1 < abs(e) < _LARGEST
    ]
    return any(
        count > 1
        and (
            (elements and value.size >= count)
            or any(e % count == 0 or 2 * e == count > 3 for e in elements)
        )
        for count in counts
    )
