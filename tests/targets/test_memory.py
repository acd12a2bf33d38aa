from pathlib import Path

import numpy as np
import pytest

from autocompress.targets import memory
from autocompress.targets.memory import PeakMemory


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells")
def test_a_peak_that_is_over_is_seen() -> None:
    peak = PeakMemory()
    large = np.ones(8_000_000)
    del large
    found = peak.read()
    assert found is None or 60_000_000 < found < 200_000_000


def test_elsewhere_it_is_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_RESET", tmp_path / "none" / "clear_refs")
    assert PeakMemory().read() is None
