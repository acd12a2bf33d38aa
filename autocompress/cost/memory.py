"""Memory: the bytes of activations that are alive at once, exact by liveness."""

from autocompress.cost.workload import Op, Workload

__all__ = ["live_bytes", "peak_activation_bytes", "peak_operator"]


def live_bytes(workload: Workload) -> tuple[int, ...]:
    """Return the bytes of activations that are alive while each operator runs, in order.

    Alive are its inputs, its output and all that a later operator or the caller still reads.
    Inputs of the network live until their last reader, its outputs from when they are made to
    the end. Views share the storage of their source, which is as large as its largest view; no
    operator writes over its input, and no scratch memory is counted.
    """
    root: dict[str, str] = {}
    born: dict[str, int] = {}
    for place, op in enumerate(workload.ops):
        for name in op.inputs:
            if root.setdefault(name, name) == name:
                born.setdefault(name, 0)
        view = op.kind == "view" and op.inputs
        root[op.output] = root[op.inputs[0]] if view else op.output
        born.setdefault(root[op.output], place)
    last, end = dict(born), len(workload.ops) - 1
    size: dict[str, int] = {}
    for place, op in enumerate(workload.ops):
        for name in (*op.inputs, op.output):
            store = root[name]
            last[store] = place
            size[store] = max(size.get(store, 0), workload.values[name].nbytes)
    for name in workload.outputs:
        store = root.get(name, name)
        last[store] = end
        born.setdefault(store, 0)
        size.setdefault(store, workload.values[name].nbytes)
    change = [0] * (len(workload.ops) + 1)
    for store, first in born.items():
        if workload.ops:
            change[first] += size[store]
            change[last[store] + 1] -= size[store]
    alive, found = 0, []
    for step in change[:-1]:
        alive += step
        found.append(alive)
    return tuple(found)


def peak_activation_bytes(workload: Workload) -> int:
    """Return the most bytes of activations that are alive at once; see live_bytes."""
    if not workload.ops:
        return sum(workload.values[name].nbytes for name in dict.fromkeys(workload.outputs))
    return max(live_bytes(workload))


def peak_operator(workload: Workload) -> Op | None:
    """Return the first operator at which the most bytes are alive; None where there is none."""
    alive = live_bytes(workload)
    return workload.ops[alive.index(max(alive))] if alive else None
