"""Settings of the whole suite: one thread a worker, a fixed seed and a cache of its own a test."""

import hashlib
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

from autocompress.errors import TraceError
from autocompress.models.network import Network
from autocompress.targets.onnx import template as onnx_template

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep latency calibrations out of the user's cache, and of other tests."""
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path_factory.mktemp("cache")))


_EXPORTS: dict[str, onnx_template.Template | TraceError] = {}


@pytest.fixture(autouse=True)
def _shared_exports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export each network once a process: nothing takes longer. Not for tests of the exporter."""
    if request.node.get_closest_marker("exporter") is not None:
        return
    make = onnx_template._make

    def shared(network: Network, opset: int, optimize: bool) -> onnx_template.Template:
        digest = hashlib.sha256(f"{network.fingerprint} {opset} {optimize}".encode())
        for value in network.example_inputs:
            digest.update(f"{value.shape} {value.dtype}".encode() + value.numpy().tobytes())
        key = digest.hexdigest()
        if key not in _EXPORTS:
            try:
                _EXPORTS[key] = make(network, opset, optimize)
            except TraceError as error:
                _EXPORTS[key] = error
        known = _EXPORTS[key]
        if isinstance(known, TraceError):
            raise known
        return known

    monkeypatch.setattr(onnx_template, "_make", shared)
