"""Terms: a workload as the fitted latency model sees it, with what its staircases depend on.

A term is one operator in its surroundings, or one conversion between neighbours that keep their
tensors in different formats: "q" codes of 8 bits, "f" float32 as convolutions like it, "p" plain
float32. Views cost nothing and are no terms.
"""

from collections.abc import Iterator
from typing import NamedTuple

from autocompress.cost.workload import Op, Workload

__all__ = ["TILES", "Term", "features", "placed", "storage", "terms"]

#: Channels that a kernel works on at once, of the kernels there are: a staircase has such steps.
TILES = (16, 8, 4)


class Term(NamedTuple):
    """One operator or conversion; ``op`` is the node's name in the workload, "" in a model.

    ``family`` says what it is apart from sizes: terms of one family share what is known of them.
    ``into`` and ``out``: channels a group and channels of a layer, else all channels read and made.
    ``work``: output positions times taps of a layer; ``before`` and ``after``: formats around.
    """

    family: str
    into: int
    out: int
    work: int
    area: int
    before: str
    after: str
    op: str = ""


def terms(workload: Workload) -> tuple[Term, ...]:
    """Return the terms of a workload in order; conversions stand before the operator that reads."""
    return tuple(term for term, _ in placed(workload))


def storage(workload: Workload) -> dict[str, str]:
    """Return, of every value, the one that holds its elements: itself, but for views."""
    found = {name: name for name in workload.values}
    for op in workload.ops:
        if op.kind == "view" and op.inputs:
            found[op.output] = found[op.inputs[0]]
    return found


def placed(workload: Workload) -> list[tuple[Term, str]]:
    """Return the terms, each with the value that it converts or that its operator makes.

    That value is no view: it is the one in storage.
    """
    values, stored = workload.values, storage(workload)
    makers = {op.output: op for op in workload.ops}
    source = {op.output: op.inputs[0] for op in workload.ops if op.kind == "view" and op.inputs}
    readers: dict[str, list[Op]] = {}

    def part(value: str) -> str:
        """The value as far back as it holds the same elements: not a whole that was split."""
        while value in source and values[source[value]].elements == values[value].elements:
            value = source[value]
        return value

    for op in workload.ops:
        if op.kind != "view":
            for value in op.inputs:
                readers.setdefault(stored[value], []).append(op)

    def given(value: str) -> str:
        """The format in which a value is made."""
        maker = makers.get(value)
        if values[value].bits <= 8 and maker is not None:
            return "q" if not maker.layer or maker.a_bits <= 8 else _own(maker)
        return "p" if maker is None else _own(maker)

    found: list[tuple[Term, str]] = []
    converted: set[tuple[str, str]] = set()
    for op in workload.ops:
        if op.kind == "view":
            continue
        inputs = [part(value) for value in op.inputs]
        own = "q" if values[op.output].bits <= 8 and not op.layer else _own(op)
        for value in inputs:
            whole = stored[value]
            made = given(whole)
            change = f"{made}{'r' if values[whole].bits <= 8 and made != 'q' else ''}"
            if change != own and (value, own) not in converted:
                converted.add((value, own))
                size, at = values[value].elements, values[value].positions
                family = f"convert {change} to {own}, {at} positions"
                found.append((Term(family, size // at, 1, 0, size, "", "", op.node), whole))
        after = "".join(sorted({_own(reader) for reader in readers.get(op.output, ())}))
        before = "".join(sorted(given(stored[value]) for value in inputs))
        bits = "q" if values[op.output].bits <= 8 else ""
        found.append((_term(op, workload, inputs, before, bits + after), op.output))
    return found


def _own(op: Op) -> str:
    """The format in which an operator works."""
    if not op.layer:
        return "p"
    return "q" if op.a_bits <= 8 else "f" if op.blocked else "p"


def _term(op: Op, workload: Workload, inputs: list[str], before: str, after: str) -> Term:
    read = sum(workload.values[value].elements for value in inputs)
    made = workload.values[op.output].elements
    if not op.layer:
        at = workload.values[op.output].positions
        if at == 1 and inputs:  # a mean over positions
            at = workload.values[inputs[0]].positions
        family = f"{op.type}, {at} positions"
        return Term(family, read // at, -(-made // at), 0, read + made, before, after, op.node)
    number = "int8" if op.a_bits <= 8 else "float" if op.blocked else "plain float"
    family = f"{op.kind} {number} {op.taps} taps, stride {op.stride}, {op.pixels} positions"
    into = 1 if op.kind == "depthwise" else op.cin // op.groups
    if op.kind == "grouped":
        family += f", {op.groups} groups"
    return Term(family, into, op.cout, op.pixels * op.taps, op.pixels, before, after, op.node)


def features(term: Term) -> Iterator[tuple[str, float]]:
    """Yield what a term's time is taken to be a sum of multiples of, each above 0."""
    yield f"{term.family}: once", 1.0
    if not term.work:
        yield f"{term.family}: elements", term.area / 1e4
        return
    yield f"{term.family}: multiply-adds", term.work * term.into * term.out / 1e6
    yield f"{term.family}: whole tiles", term.work * _up(term.into, 4) * _up(term.out, 16) / 1e6
    yield f"{term.family}: inputs", term.area * term.into / 1e4
    yield f"{term.family}: outputs", term.area * term.out / 1e4


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile
