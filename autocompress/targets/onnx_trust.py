"""Whether an edited template can be trusted for a copy with fewer channels.

The exporter may compute constants from channel counts that no argument of the network shows. Where
an integer constant that was not edited could be one of them, the edited graph is run once beside
the network.
"""

from weakref import WeakKeyDictionary

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from autocompress.errors import TraceError
from autocompress.models.network import Network
from autocompress.targets.onnx_edits import NotPlain
from autocompress.targets.onnx_match import check_outputs
from autocompress.targets.onnx_template import Template, fill

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
    if not counts or hash(template.model) in trusted or not _may_depend(model, counts):
        return
    try:
        check_outputs(fill(model, template.places, network.params), network)
    except TraceError as error:
        raise NotPlain(str(error)) from error
    trusted.add(hash(template.model))


def _may_depend(model: ModelProto, counts: set[int]) -> bool:
    used = {name for node in model.graph.node for name in node.input}
    for initializer in model.graph.initializer:
        if initializer.data_type not in (TensorProto.INT64, TensorProto.INT32):
            continue
        if initializer.name.startswith("_e") or initializer.name not in used:
            continue  # edited
        value = numpy_helper.to_array(initializer)
        elements = np.abs(value[(np.abs(value) > 1) & (np.abs(value) < _LARGEST)])
        for count in counts:
            if count > 1 and (value.size >= count or (elements % count == 0).any()):
                return True
            if count > 3 and (elements * 2 == count).any():
                return True
    return False
