"""Studies that never ran: figures are drawn from a seeded generator, files from their number."""

import hashlib
import math
import random
from dataclasses import replace

from autocompress.core.budget import Budget
from autocompress.core.plan import Plan, Recipe
from autocompress.core.score import Score
from autocompress.report.front import Front


def score(trial, accuracy=0.9, size=1000.0, latency=1.0, **others):
    content = f"model {trial}".encode() * 10
    values = {
        "trial": trial,
        "plan": Plan({f"layer{trial}/w_bits": 4, "layer0/keep": 0.5}),
        "recipe": Recipe(),
        "target": "onnxruntime",
        "outcome": "ok",
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.01,
        "accuracy_high": accuracy + 0.008,
        "size_bytes": size,
        "latency_ms": latency,
        "latency_low_ms": latency * 0.98,
        "latency_high_ms": latency * 1.05,
        "load_ms": 3.0,
        "macs": 1_000_000,
        "parameters": 5_000,
        "artifact": f"{trial}.onnx",
        "sha256": hashlib.sha256(content).hexdigest(),
        "cpu": ("avx2", "fma"),
    }
    return Score(**(values | others))


def failure(trial, message="it broke"):
    return Score(
        trial=trial, plan=Plan(), recipe=Recipe(), target="onnxruntime", outcome="failed",
        message=message,
    )  # fmt: skip


def study(trials=60, seed=0):
    """Return scores of a plausible search on a 92 % network of 1.1 MB, baselines first."""
    draw = random.Random(seed)
    scores = [score(0, 0.92, 1_092_220, 1.06, baseline="uncompressed", plan=Plan())]
    drop = {8: 0.001, 7: 0.0005, 6: 0.002, 5: 0.004, 4: 0.009, 3: 0.06, 2: 0.55}
    for bits, lost in drop.items():
        for a_bits in (32, 8):
            name = f"uniform {bits}-bit weights" + (", 8-bit activations" if a_bits == 8 else "")
            scores.append(
                score(
                    len(scores),
                    0.92 - lost - (0.002 if a_bits == 8 else 0.0),
                    1_060_000 * bits / 32 + (22_000 if a_bits == 32 else 40_000),
                    1.05 if a_bits == 32 else 0.66,
                    baseline=name,
                )
            )
    scores.append(score(len(scores), 0.83, 300_000, 0.4, baseline="uniform keep 0.5"))
    while len(scores) < trials:
        bits = draw.uniform(2.4, 8)
        lost = 0.25 * math.exp(-(bits - 2) * 1.6) + abs(draw.gauss(0, 0.01))
        size = 1_060_000 * bits / 32 + draw.uniform(20_000, 40_000)
        scores.append(score(len(scores), 0.92 - lost, size, draw.uniform(0.55, 1.05)))
    return scores


def with_tests(scores, trials):
    return [
        replace(
            s,
            test_accuracy=s.accuracy - 0.004,
            test_low=s.accuracy - 0.012,
            test_high=s.accuracy + 0.003,
        )
        if s.trial in trials
        else s
        for s in scores
    ]


def front(scores, directory, objectives=("accuracy", "size"), budget=None):
    return Front(scores, objectives, budget or Budget(), directory)


def files(scores, directory):
    """Write the artifact of every score."""
    folder = directory / "artifacts"
    folder.mkdir(parents=True, exist_ok=True)
    for one in scores:
        (folder / one.artifact).write_bytes(f"model {one.trial}".encode() * 10)
