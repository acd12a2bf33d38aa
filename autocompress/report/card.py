"""Cards: what a model file is, how good it is and how to run it."""

import json
import math
from collections.abc import Callable
from typing import Any

from autocompress._version import __version__
from autocompress.core.plan import KNOBS, split_name
from autocompress.core.score import Score
from autocompress.report import formatting

__all__ = ["card", "card_data"]

_SNIPPET = """\
import numpy as np
import onnxruntime as ort

session = ort.InferenceSession({file_name}, providers=["CPUExecutionProvider"])
types = {{"tensor(float)": np.float32, "tensor(int64)": np.int64}}
feed = {{i.name: np.zeros([n if isinstance(n, int) else 1 for n in i.shape], types[i.type])
        for i in session.get_inputs()}}  # your inputs instead: any batch size
print([output.shape for output in session.run(None, feed)])
"""
_OPENVINO = """\
import numpy as np
import openvino as ov

model = ov.compile_model({file_name}, "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
feed = [np.zeros([n.get_length() if n.is_static else 1 for n in i.partial_shape],
                 i.element_type.to_dtype()) for i in model.inputs]  # your inputs instead
print([output.shape for output in model(feed).values()])
"""
_HEADINGS = {"keep": "channels kept", "w_bits": "weight bits", "a_bits": "input bits"}
_FIGURES = (
    "accuracy", "accuracy_low", "accuracy_high", "test_accuracy", "test_low", "test_high",
    "size_bytes", "latency_ms", "latency_low_ms", "latency_high_ms", "load_ms",
    "peak_memory_bytes", "macs", "activation_bytes", "device_latency_ms", "energy_mj", "parameters",
)  # fmt: skip


def _code(text: str) -> str:
    """Return a text as inline code that stays inside its table cell."""
    return "`" + formatting.one_line(text).replace("`", "'").replace("|", "\\|") + "`"


def _figures(score: Score) -> dict[str, float]:
    values = {name: getattr(score, name) for name in _FIGURES}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def card_data(score: Score, reference: Score | None, file_name: str) -> dict[str, Any]:
    """Return the card as plain data: plan, figures, sha256; what was not measured is left out."""
    return {
        "file": file_name,
        "sha256": score.sha256,
        "target": score.target,
        "device": score.device,
        "trial": score.trial,
        "baseline": score.baseline,
        "plan": json.loads(score.plan.to_json()),
        "recipe": vars(score.recipe).copy(),
        "figures": _figures(score),
        "uncompressed": None if reference is None else _figures(reference),
        "cpu": list(score.cpu),
        "portable": score.portable,
        "difference": None if math.isnan(score.difference) else score.difference,
        "differs": score.differs,
        "seed": score.seed,
        "autocompress": __version__,
    }


def card(score: Score, reference: Score | None, file_name: str) -> str:
    """Return the card of a model file as Markdown.

    ``reference`` is the uncompressed model's score. Accuracies are fractions of the validation
    and the test split, named as such, with 95 % intervals.
    """
    kind = f" It is the baseline “{formatting.one_line(score.baseline)}”." if score.baseline else ""
    parts = [
        f"# {_code(file_name)}",
        f"A network compressed by autocompress {__version__} (trial {score.trial}) "
        f"for {_code(score.target)}.{kind} Every figure was measured on this file in its runtime"
        + (f", but for those predicted for {_code(score.device)}." if score.device else "."),
        _figure_table(score, reference),
        _plan_table(score),
        _origin(score),
        _how_to_run(score, file_name),
    ]
    return "\n\n".join(parts) + "\n"


def _figure_table(score: Score, reference: Score | None) -> str:
    def with_interval(
        name: str, low: str, high: str, write: Callable[[float], str]
    ) -> Callable[[Score], str]:
        def cell(of: Score) -> str:
            value = write(getattr(of, name))
            between = formatting.interval(getattr(of, low), getattr(of, high), write)
            return f"{value} ({between})" if value and between else value

        return cell

    def whole(name: str) -> Callable[[Score], str]:
        def cell(of: Score) -> str:
            value = getattr(of, name)
            return "" if math.isnan(value) else f"{value:,.0f}"

        return cell

    lines: dict[str, Callable[[Score], str]] = {
        "validation accuracy (95 %)": with_interval(
            "accuracy", "accuracy_low", "accuracy_high", formatting.accuracy
        ),
        "test accuracy (95 %)": with_interval(
            "test_accuracy", "test_low", "test_high", formatting.accuracy
        ),
        "size, bytes": whole("size_bytes"),
        "latency, ms (95 %)": with_interval(
            "latency_ms", "latency_low_ms", "latency_high_ms", formatting.milliseconds
        ),
        "load time, ms": lambda of: formatting.milliseconds(of.load_ms),
        "peak memory of loading, bytes": whole("peak_memory_bytes"),
        "multiply-adds": whole("macs"),
        "peak activation memory, bytes (by liveness)": whole("activation_bytes"),
        "predicted on the device, ms": lambda of: formatting.milliseconds(of.device_latency_ms),
        "predicted on the device, mJ": lambda of: (
            "" if math.isnan(of.energy_mj) else f"{of.energy_mj:.3g}"
        ),
        "parameters": whole("parameters"),
    }
    table = ["| | this file | uncompressed |", "|-|-|-|"]
    for name, cell in lines.items():
        if cell(score):
            table.append(
                f"| {name} | {cell(score)} | {'' if reference is None else cell(reference)} |"
            )
    text = "## Figures\n\n" + "\n".join(table)
    if reference is not None and reference.key != score.key:
        text += (
            f"\n\nAgainst uncompressed: {formatting.smaller(score, reference):.2f}× smaller, "
            f"validation accuracy {score.accuracy - reference.accuracy:+.4f}"
        )
        test = score.test_accuracy - reference.test_accuracy
        text += "." if math.isnan(test) else f", test accuracy {test:+.4f}."
    return text + (
        "\n\nThe search and the pick saw the validation split, so that its figure is a little "
        "favourable; they never saw the test split."
    )


def _plan_table(score: Score) -> str:
    names = sorted({split_name(setting)[0] for setting in score.plan.settings})
    source = dict(score.plan.source)
    origin = (
        "" if source == {"family": "teacher"} else f" Source network: {_code(json.dumps(source))}."
    )
    if not names:
        return f"## Plan\n\nNothing is compressed.{origin}"
    table = ["| layer or unit | " + " | ".join(_HEADINGS[k] for k in KNOBS) + " |", "|-|-|-|-|"]
    for name in names:
        cells = []
        for knob in KNOBS:
            value = score.plan.settings.get(f"{name}/{knob}")
            cells.append("" if value is None else f"{value:g}")
        table.append(f"| {_code(name)} | " + " | ".join(cells) + " |")
    return (
        f"## Plan\n\nWhat is empty or not listed stays whole, in float32.{origin}\n\n"
        + "\n".join(table)
    )


_ANSWERS = {
    True: "alike on every CPU that the runtime serves",
    False: "as measured on processors with VNNI, or ARM's, alone: 8-bit codes take their whole "
    "range, and kernels without VNNI overflow",
    None: "accuracy may depend on the CPU where inputs have 8 bits; nobody looked",
}


def _origin(score: Score) -> str:
    cpu = ", ".join(score.cpu) or "not recorded"
    training = (
        "none"
        if score.recipe.rung == 0
        else f"rung {score.recipe.rung}, {score.recipe.epochs:g} epochs"
    )
    return "\n".join(
        [
            "## Origin\n",
            f"- target: {_code(score.target)}",
            f"- CPU features where latency was measured: {formatting.one_line(cpu)}",
            f"- answers: {_ANSWERS[score.portable]}",
            f"- file against simulation: {_agreement(score)}",
            f"- training after compression: {training}; seed: {score.seed}",
            f"- sha256: {_code(score.sha256)}",
            f"- bytes: {score.size_bytes:,.0f}",
        ]
    )


def _agreement(score: Score) -> str:
    if score.differs:
        return f"beware, {formatting.one_line(score.differs)}"
    if math.isnan(score.difference):
        return "nobody looked"
    return f"{score.difference:.2g} of the outputs' deviation off on calibration inputs (RMS)"


def _how_to_run(score: Score, file_name: str) -> str:
    snippets = {"onnxruntime": _SNIPPET, "openvino": _OPENVINO}
    if score.target not in snippets:
        return f"## How to run it\n\nOpen it with {_code(score.target)}."
    code = snippets[score.target].format(file_name=json.dumps(file_name))
    return f"## How to run it\n\nWith {score.target} and numpy alone:\n\n```python\n{code}```"
