"""The probe: files that overflow on this host are told from those that do not."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from autocompress.targets import make_target
from autocompress.targets.probe import overflows
from autocompress.targets.timing import cpu_features


class Exact:
    """A file run without the runtime's integer kernels."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(str(path), options)

    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {"input": x})


class Halved(Exact):
    def __call__(self, x: np.ndarray) -> list[np.ndarray]:
        first, *rest = super().__call__(x)
        return [first, *(value / 2 for value in rest)]


def test_exact_arithmetic_does_not_overflow() -> None:
    assert not overflows(Exact)


def test_one_kernel_that_overflows_is_enough() -> None:
    assert overflows(Halved)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_what_this_host_does_goes_with_its_features(name: str) -> None:
    features = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "asimddp"}
    if features & set(cpu_features()):
        assert not make_target(name).saturates()
    elif "avx2" in cpu_features():
        assert make_target(name).saturates()


def test_the_null_target_never_does() -> None:
    assert not make_target("null").saturates()
