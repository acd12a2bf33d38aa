import json
import math
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from autocompress.core.plan import Plan, Recipe
from autocompress.report.card import card, card_data
from tests.report.made_up import score, study, with_tests

UNCOMPRESSED, *_ = with_tests(study(20), {0})


def test_the_card_names_every_figure_and_its_split():
    one = with_tests([score(7, 0.91, 155_000, 0.7)], {7})[0]
    text = card(one, UNCOMPRESSED, "small.onnx")
    assert "| validation accuracy (95 %) | 0.9100 (0.9000–0.9180) | 0.9200 (0.9100" in text
    assert "| test accuracy (95 %) | 0.9060 (0.8980–0.9130) | 0.9160" in text
    assert "| size, bytes | 155,000 | 1,092,220 |" in text
    assert "7.05× smaller, validation accuracy -0.0100, test accuracy -0.0100." in text
    assert one.sha256 in text
    assert "avx2, fma" in text
    assert "peak memory" not in text  # not measured
    assert "nan" not in text


def test_the_plan_is_a_table_of_layers():
    plan = Plan({"a.conv/w_bits": 4, "a.conv/a_bits": 8, "a.conv/keep": 0.5, "b/w_bits": 3})
    text = card(score(1, plan=plan), None, "m.onnx")
    assert "| `a.conv` | 0.5 | 4 | 8 |" in text
    assert "| `b` |  | 3 |  |" in text
    assert "Nothing is compressed" in card(UNCOMPRESSED, UNCOMPRESSED, "m.onnx")
    assert "Against uncompressed" not in card(UNCOMPRESSED, UNCOMPRESSED, "m.onnx")


def test_other_sources_and_recipes_are_named():
    plan = Plan({}, {"family": "resnet", "width": 8})
    one = score(1, plan=plan, recipe=Recipe(rung=2, epochs=3, seed=5), seed=5)
    text = card(one, None, "m.onnx")
    assert '`{"family": "resnet", "width": 8}`' in text
    assert "rung 2, 3 epochs; seed: 5" in text


def test_hostile_names_stay_in_their_cells():
    plan = Plan({"a|b`c\nd/w_bits": 4})
    text = card(score(1, plan=plan), None, "m.onnx")
    row = next(line for line in text.splitlines() if "a\\|b'c d" in line)
    assert row.replace("\\|", "").count("|") == 5


def test_the_data_is_json_without_what_was_not_measured():
    data = card_data(score(7), UNCOMPRESSED, "m.onnx")
    again = json.loads(json.dumps(data, allow_nan=False))
    assert again == data
    assert "peak_memory_bytes" not in data["figures"]
    assert not any(math.isnan(value) for value in data["uncompressed"].values())
    assert Plan(**data["plan"]) == score(7).plan
    assert card_data(score(7), None, "m.onnx")["uncompressed"] is None


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_the_snippet_runs(kind, tmp_path):
    shape = ["batch", 2]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "a 'b'.onnx"))
    text = card(score(1), None, "a 'b'.onnx")
    code = text.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([(1, 2)])
    assert np.__name__ in code


def test_another_target_is_named_without_a_snippet():
    text = card(score(1, target="null"), None, "m.null")
    assert "Open it with `null`." in text
    assert "import" not in text


def test_the_data_of_a_search_for_a_device_names_it():
    one = score(7, device="chip", device_latency_ms=4.0, energy_mj=0.5, activation_bytes=100.0)
    data = card_data(one, None, "m.onnx")
    assert data["device"] == "chip"
    assert data["figures"]["device_latency_ms"] == 4.0
    assert data["figures"]["energy_mj"] == 0.5
    assert data["figures"]["activation_bytes"] == 100.0
    assert card_data(score(7), None, "m.onnx")["device"] == ""
    assert "energy_mj" not in card_data(score(7), None, "m.onnx")["figures"]
    text = card(one, None, "m.onnx")
    assert "| predicted on the device, ms | 4.000 |" in text
    assert "| predicted on the device, mJ | 0.5 |" in text
    assert "was measured on this file in its runtime, but for those predicted for `chip`." in text
    plain = card(score(7), None, "m.onnx")
    assert "was measured on this file in its runtime." in plain
    assert "predicted" not in plain


def test_the_card_says_how_far_a_file_is_from_its_simulation():
    near, far = score(1, difference=0.0021), score(1, difference=0.3, differs="it is | not right")
    assert "- file against simulation: 0.0021 of the outputs' deviation" in card(near, None, "m")
    assert "- file against simulation: beware, it is | not right" in card(far, None, "m")
    assert "- file against simulation: nobody looked" in card(score(1), None, "m")
    assert card_data(far, None, "m")["differs"] == "it is | not right"
    assert card_data(score(1), None, "m")["difference"] is None
