"""Answers: what an exported model returns, and that it is of its inputs alone."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import OutputKind
from torch.fx.operator_schemas import normalize_function

from autocompress.errors import TraceError

__all__ = ["refuse_chance", "refuse_state", "user_outputs"]

aten = torch.ops.aten

_STATE = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)
# Of their first argument these read the shape alone.
_SHAPE_ALONE = (
    "copy", "fill", "full_like", "ones_like", "zero", "zeros_like", "empty_like", "new_empty",
    "new_full", "new_ones", "new_zeros",
)  # fmt: skip


def user_outputs(program: Any, output: fx.Node) -> list[fx.Node]:
    """Return what the model returns, in its order, without the state that it writes.

    None is left out; raises TraceError for what is neither that nor a tensor.
    """
    found: list[fx.Node] = []
    values = output.args[0]
    assert isinstance(values, (tuple, list))
    for spec, value in zip(program.graph_signature.output_specs, values, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT or value is None:
            continue
        if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
            raise TraceError(
                f"A model must return tensors alone: output {len(found)} is {value!r}. Drop it."
            )
        found.append(value)
    if not found:
        raise TraceError("A model must return a tensor: forward returns none.")
    return found


def refuse_state(program: Any) -> None:
    """Raise TraceError if an answer depends on a buffer that the model writes as it answers.

    State that is written and never answers (counters, a cache of the last value) has no part in a
    file, which answers alike at every call.
    """
    signature = program.graph_signature
    written = {spec.target for spec in signature.output_specs if spec.kind in _STATE}
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    held.update(signature.inputs_to_lifted_tensor_constants)
    for node in _answering(program):
        name = held.get(node.name) if node.op == "placeholder" else None
        if name in written:
            raise TraceError(
                f"A model's answers must depend on its inputs alone: forward reads '{name}' and "
                "writes it, so that the next answer is another. Do not write it in eval mode, or "
                "take it as an input and return it."
            )


def refuse_chance(program: Any) -> None:
    """Raise TraceError if an answer depends on random numbers: a file would hold them fixed."""
    for node in _answering(program):
        tags = getattr(node.target, "tags", ())
        if torch.Tag.nondeterministic_seeded in tags and not _is_idle(node):
            stack = node.meta.get("nn_module_stack") or {}
            where = [str(path) for path, _ in stack.values() if path]
            module = where[-1].removeprefix("L['self'].") if where else "forward"
            raise TraceError(
                "A model's answers must depend on its inputs alone: in eval mode "
                f"{module} draws random numbers ({node.target}). Give a functional dropout "
                "training=self.training, or take the numbers as an input."
            )


def _is_idle(node: fx.Node) -> bool:
    """Tell whether a dropout, or what has one, drops nothing."""
    assert callable(node.target)
    given = normalize_function(
        node.target, node.args, node.kwargs, normalize_to_only_use_kwargs=True
    )
    named = given.kwargs if given is not None else {}
    chances = [named[name] for name in ("p", "dropout_p") if name in named]
    return named.get("train", named.get("training")) is False or chances == [0]


def _answering(program: Any) -> Iterator[fx.Node]:
    """Yield the nodes whose values what the model returns is computed from."""
    output = next(node for node in program.graph.nodes if node.op == "output")
    queue, seen = user_outputs(program, output), set[fx.Node]()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        packet = getattr(node.target, "_opname", "")
        read = (node.args[1:], node.kwargs) if packet in _SHAPE_ALONE else (node.args, node.kwargs)
        fx.map_arg(read, queue.append)
