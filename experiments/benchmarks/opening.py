"""How long a study of 2,000 trials with 50 parameters takes to open, by where it is kept.

    python experiments/benchmarks/opening.py [--trials 2000]

Scores are as large as real ones: 60 blocks of latency samples and all figures. PostgreSQL is
measured where a server's binaries are.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sleeping import space_of

from autocompress.core.budget import Budget
from autocompress.core.plan import Recipe
from autocompress.core.score import Score
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place
from autocompress.engine.study import Study, read_study


def study_at(place: Place) -> Study:
    return Study(
        place, Parameters(space_of(50)), sampler=lambda n: make_sampler("guided", n),
        objectives=("accuracy", "size"), budget=Budget(),
    )  # fmt: skip


def score(generator: np.random.Generator, plan) -> Score:
    blocks = np.round(generator.random((60, 4)), 5).tolist()
    figures = {
        name: float(generator.random())
        for name in (
            "accuracy", "accuracy_low", "accuracy_high", "size_bytes", "latency_ms",
            "latency_low_ms", "latency_high_ms", "load_ms", "peak_memory_bytes", "macs",
            "activation_bytes", "parameters", "effect",
        )
    }  # fmt: skip
    return Score(
        trial=-1, plan=plan, recipe=Recipe(), target="onnxruntime", outcome="ok",
        artifact="0123456789abcdef.onnx", sha256="0" * 64, cpu=("avx", "avx2", "avx512f"),
        seconds={"compress": 0.1, "build": 0.1, "open": 0.1, "accuracy": 0.1, "latency": 0.1},
        timing={"latency_ms": 1.0, "clock": "cpu", "blocks": blocks}, **figures,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.engine.postgres import Server, binaries

    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(tempfile.gettempdir())) if binaries() else None
        if server is not None:
            server.start()
        for kind, url in (
            ("journal", ""),
            ("sqlite", f"sqlite:///{folder}/study.db"),
            ("postgresql", server.url if server else None),
        ):
            if url is None:
                print("postgresql: no binaries of a server")
                continue
            generator = np.random.default_rng(0)
            place = Place(Path(folder) / "study.log", url, "one" if url else "autocompress")
            study = study_at(place)
            space, start = study.parameters.space, time.perf_counter()
            for _ in range(options.trials):
                values = {n: v[int(generator.integers(7))] for n, v in space.knobs.items()}
                study.add(score(generator, space.plan(values)))
            each = (time.perf_counter() - start) / options.trials
            place.close()
            took = [math.inf, math.inf]
            for _ in range(3):
                again = Place(place.path, url, place.name)
                start = time.perf_counter()
                assert study_at(again).completed == options.trials
                took[0] = min(took[0], time.perf_counter() - start)
                again.close()
                start = time.perf_counter()
                read_study(Place(place.path, url, place.name))
                took[1] = min(took[1], time.perf_counter() - start)
            print(
                f"{kind}: {1e3 * each:.1f} ms to add a trial, {took[0]:.2f} s to open to go on, "
                f"{took[1]:.2f} s to read",
                flush=True,
            )
        if server is not None:
            server.close()


if __name__ == "__main__":
    main()
