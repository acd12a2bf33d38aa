"""Check files: made, read, compared, and refused where they are not what they should be."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autocompress.core.artifact import Artifact
from autocompress.core.plan import Plan
from autocompress.errors import ConfigError, InputError
from autocompress.targets import make_target
from autocompress.targets.check import make_check, verified_json, verified_text, verify
from autocompress.targets.checkfile import Check, check_path
from autocompress.targets.made_inputs import InputStatistics, inputs_like, statistics_of
from autocompress.transforms.compressor import Compressed
from tests.targets.support import builder, inputs, residual, rounded


def made_check(made: Artifact, statistics: Sequence[InputStatistics]) -> bytes:
    target = make_target("onnxruntime")
    return make_check(target.open(made.path), made, target.version, statistics).to_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with 6-bit weights and 8-bit inputs, its check beside it."""
    net = residual()
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    made = builder("onnxruntime", net).build(rounded(net, 6, 8), path)
    known = statistics_of([tuple(value.numpy() for value in inputs(net, 64))])
    content = made_check(made, known)
    assert len(content) <= 50_000
    assert content == made_check(made, known)
    check_path(path).write_bytes(content)
    return path


def test_a_file_answers_as_it_did(model: Path) -> None:
    found = verify(model)
    assert found.alike
    assert (found.agree, found.total) == (32, 32)
    assert found.largest_difference == 0
    assert found.cpu_then == found.cpu_now


def test_other_answers_are_told(model: Path, tmp_path: Path) -> None:
    known = Check.read(check_path(model))
    (answers,) = known.answers
    moved = answers.values + np.float32(0.5 * answers.unit) * (np.arange(len(answers.values)) == 7)
    other = replace(known, answers=(replace(answers, values=moved.astype(np.float32)),))
    path = tmp_path / "c.npz"
    path.write_bytes(other.to_bytes())
    found = verify(model, path)
    assert not found.alike
    assert found.largest_difference == pytest.approx(0.5, rel=1e-3)


def test_what_was_found_is_told(model: Path) -> None:
    found = verify(model)
    text = verified_text(found)
    assert "32 of 32" in text
    assert "0.1 is allowed" in text
    assert text.endswith("answers here as it did where it was scored.")
    assert "answers otherwise here" in verified_text(replace(found, alike=False))
    assert json.loads(verified_json(found))["alike"] is True
    nowhere = replace(found, largest_difference=float("inf"))
    assert json.loads(verified_json(nowhere))["largest_difference"] is None


def test_it_needs_neither_torch_nor_optuna_nor_onnx(model: Path) -> None:
    code = (
        "import sys\nfor n in ('torch', 'optuna', 'onnx', 'scipy'): sys.modules[n] = None\n"
        "from autocompress.targets.check import verify\nprint(verify(sys.argv[1]).alike)"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def damaged(content: bytes) -> dict[str, bytes]:
    return {"empty": b"", "cut": content[:-40], "text": b"no zip at all", "flip": content[::-1]}


@pytest.mark.parametrize("how", ["empty", "cut", "text", "flip", "bomb", "pickle"])
def test_damaged_check_files_are_refused_in_a_sentence(
    how: str, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c.npz"
    if how == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("meta.npy", b"\0" * 50_000_000)
    elif how == "pickle":
        np.savez_compressed(path, meta=np.array([{"a": 1}], dtype=object))
    else:
        path.write_bytes(damaged(check_path(model).read_bytes())[how])
    with pytest.raises(InputError, match="must be as autocompress wrote it"):
        verify(model, path)


def test_what_does_not_belong_together_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        verify(tmp_path / "absent.onnx")
    other = tmp_path / "other.onnx"
    net = residual()
    builder("onnxruntime", net).build(Compressed(Plan(), net, {}, {}), other)
    with pytest.raises(InputError, match="beside the model"):
        verify(other)
    with pytest.raises(InputError, match="must be of the model"):
        verify(other, check_path(model))
    known = Check.read(check_path(model))
    path = tmp_path / "c.npz"
    path.write_bytes(replace(known, target="tpu").to_bytes())
    with pytest.raises(ConfigError, match="tpu"):
        verify(model, path)
    path.write_bytes(replace(known, seed=-1).to_bytes())
    with pytest.raises(InputError, match="must be as autocompress wrote it"):
        verify(model, path)
    path.write_bytes(replace(known, digest="0").to_bytes())
    with pytest.raises(InputError, match="come out as they were"):
        verify(model, path)
    flat = statistics_of([(np.random.default_rng(0).random((64, 5), np.float32),)])
    with pytest.raises(InputError, match="must run on the inputs"):
        made_check(Artifact.of(model, "onnxruntime"), flat)


def test_a_runtime_that_is_not_there_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    path = tmp_path / "c.npz"
    path.write_bytes(replace(Check.read(check_path(model)), target="openvino").to_bytes())
    with pytest.raises(ConfigError, match=r"autocompress\[openvino\]"):
        verify(model, path)


@pytest.mark.parametrize("shape", [(64, 5), (1, 5), (64, 3, 8, 8), (2, 9, 40), (40, 600)])
@pytest.mark.parametrize("kind", ["float32", "int64"])
def test_made_inputs_are_within_what_was_seen_and_no_row_of_it(
    shape: tuple[int, ...], kind: str
) -> None:
    data = (np.random.default_rng(0).normal(3, 2, shape) * 50).astype(kind)
    (known,) = statistics_of([(data,)])
    (made,) = inputs_like([known], 32)
    assert made.dtype == data.dtype
    assert made.shape == (32, *shape[1:])
    assert made.min() >= data.min()
    assert made.max() <= data.max()
    rows = {row.tobytes() for row in data}
    assert not rows & {row.tobytes() for row in made}
