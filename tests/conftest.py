"""Settings of the whole suite: one thread a worker, a fixed seed and a cache of its own a test."""

import hashlib
import os
import pickle
import signal
from pathlib import Path

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


@pytest.fixture(scope="session")
def _exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of exports that all of the suite's processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exports"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _shared_exports(
    _exports: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Export each network once a suite: nothing takes longer. Not for tests of the exporter."""
    if request.node.get_closest_marker("exporter") is None:
        make = onnx_template._make

        def shared(network: Network, opset: int, optimize: bool) -> onnx_template.Template:
            digest = hashlib.sha256(f"{network.fingerprint} {opset} {optimize}".encode())
            for value in network.example_inputs:
                digest.update(f"{value.shape} {value.dtype}".encode() + value.numpy().tobytes())
            path = _exports / digest.hexdigest()
            if not path.exists():
                try:
                    found: onnx_template.Template | TraceError = make(network, opset, optimize)
                except TraceError as error:
                    found = TraceError(str(error))
                draft = path.with_suffix(f".{os.getpid()}")
                draft.write_bytes(pickle.dumps(found))
                draft.replace(path)
            known = pickle.loads(path.read_bytes())
            if isinstance(known, TraceError):
                raise known
            assert isinstance(known, onnx_template.Template)
            return known

        monkeypatch.setattr(onnx_template, "_make", shared)
