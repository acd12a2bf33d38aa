"""Explanations: where bytes and milliseconds of a trial go, by models and the runtime itself."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autocompress.core.plan import Plan
from autocompress.core.score import Score
from autocompress.cost.analytic import roofline
from autocompress.cost.estimate import Estimator
from autocompress.cost.latency_terms import Term, placed, storage, terms
from autocompress.cost.workload import Op, Workload
from autocompress.report.receipt import Line, Receipt, Side
from autocompress.targets.base import Array, Target
from autocompress.targets.timing import cpu_features
from autocompress.transforms.compressor import Compressed, Compressor

__all__ = ["explain"]


@dataclass(frozen=True)
class _Costs:
    """One network's workload and, by node, what its operators take in milliseconds."""

    work: Workload
    predicted: Mapping[str, float]
    conversions: Mapping[str, list[tuple[Term, float]]]
    profiled: Mapping[str, float]
    device: Mapping[str, float]


def explain(
    score: Score,
    reference: Score | None,
    compressor: Compressor,
    estimator: Estimator,
    target: Target,
    inputs: tuple[Array, ...],
) -> Receipt:
    """Return the receipt of a trial beside the uncompressed network.

    ``inputs``: what the profiled files are run on. The file is built again with named nodes, since
    the one that ships has no names.
    """
    notes = []
    with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
        path = Path(folder) / f"named{target.suffix}"
        before, after = (
            _costs(compressor.compress(plan), estimator, target, path, inputs)
            for plan in (Plan(), score.plan)
        )
    if estimator.model is None:
        notes.append("no latency model of this machine yet: autocompress fit-latency makes one")
    elif not after.predicted:
        named = ", ".join(estimator.model.predict(terms(after.work)).unknown)
        notes.append(f"the latency model has never seen {named}: nothing is predicted")
    lost = after.profiled.get("", 0.0)
    if lost:
        notes.append(f"profiled, of no operator of the network: {lost:.4f} ms")
    old = {op.node: op for op in before.work.ops}
    lines = [
        _line(op, old.get(op.node), before, after, estimator)
        for op in after.work.ops
        if op.kind != "view"
    ]
    return Receipt(score=score, reference=reference, lines=lines, notes=notes)


def _costs(
    compressed: Compressed,
    estimator: Estimator,
    target: Target,
    path: Path,
    inputs: tuple[Array, ...],
) -> _Costs:
    work = estimator.work(compressed)
    stored = storage(work)
    stored |= {op.node: stored[op.output] for op in work.ops}
    home: dict[str, str] = {}  # by value in storage: who makes it, else who reads it first
    for op in work.ops:
        if op.kind != "view":
            home[stored[op.output]] = op.node
            for value in op.inputs:
                home.setdefault(stored[value], op.node)
    predicted: dict[str, float] = {}
    conversions: dict[str, list[tuple[Term, float]]] = {}
    if estimator.model is not None:
        listed = placed(work)
        parts = estimator.model.predict([term for term, _ in listed]).parts
        for (term, value), (_, ms) in zip(listed, parts, strict=False):  # no parts: unknown terms
            node = home.get(value, term.op)
            predicted[node] = predicted.get(node, 0.0) + ms
            if term.family.startswith("convert"):
                conversions.setdefault(node, []).append((term, ms))
    path.write_bytes(estimator.builder.content(compressed, named=True))
    profiled: dict[str, float] = {}
    for found in target.profile(path, inputs):
        node = home.get(stored.get(found.node, ""), "")
        profiled[node] = profiled.get(node, 0.0) + found.ms
    device: dict[str, float] = {}
    if estimator.device is not None:
        device = {cost.op.node: cost.ms for cost in roofline(work, estimator.device)}
    return _Costs(work, predicted, conversions, profiled, device)


def _line(op: Op, old: Op | None, before: _Costs, after: _Costs, estimator: Estimator) -> Line:
    first = None if old is None else _side(old, before)
    return Line(
        name=op.name,
        kind=op.kind if op.layer else op.type.removeprefix("aten.").split(".")[0],
        before=first,
        after=_side(op, after),
        step=_step(op, after, estimator) if op.layer else "",
        conversion=", ".join(
            f"{_words(term)} {ms:.4f} ms" for term, ms in after.conversions.get(op.node, ())
        ),
    )


def _side(op: Op, costs: _Costs) -> Side:
    return Side(
        channels=f"{op.cin}×{op.cout}" if op.layer else "",
        w_bits=op.w_bits,
        a_bits=op.a_bits,
        size_bytes=op.weight_bytes - op.shared,
        predicted_ms=costs.predicted.get(op.node, math.nan),
        profiled_ms=costs.profiled.get(op.node, math.nan),
        device_ms=costs.device.get(op.node, math.nan),
    )


_FORMATS = {"q": "8-bit codes", "f": "float in blocks", "p": "float", "fr": "float", "pr": "float"}


def _words(term: Term) -> str:
    """Return a conversion in words: the family is ``convert <from> to <into>``."""
    _, made, _, wanted = term.family.partition(",")[0].split()
    return f"{_FORMATS.get(made, made)} to {_FORMATS.get(wanted, wanted)}"


def _step(op: Op, costs: _Costs, estimator: Estimator) -> str:
    """Return where a layer's output channels stand among tiles, and what the next step down saves.

    A tile is the number of float32 in a vector register.
    """
    tile = 16 if "avx512f" in cpu_features() else 8
    full = -(-op.cout // tile) * tile
    text = f"{op.cout} of {full}"
    lower = full - tile
    if estimator.model is None or lower <= 0 or op.node not in costs.predicted:
        return text
    term = next(t for t in terms(costs.work) if t.op == op.node and t.work)
    now, then = estimator.model.parts((term, term._replace(out=lower)))
    return f"{text}; {lower} would take {then - now:+.4f} ms"
