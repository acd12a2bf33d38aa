"""Whether latencies measured with all workers busy agree with quiet ones.

    python experiments/benchmarks/timing_with_workers.py [--workers 2] [--threads 1]

The uniform plans of ResNet-20 on Fashion-MNIST, in onnxruntime, three times: one after another on a
quiet machine, by workers that are all busy, and one after another again. For each plan the ratio of
the later latency to the first: what the workers change, beside what a repeat changes anyway.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from autocompress.core.budget import Budget
from autocompress.core.execution import Execution
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.executors import Serial
from autocompress.engine.executors.ray_tune import Tuned
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place
from autocompress.engine.study import Study
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.tasks.fashion_mnist import fashion_mnist


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    task = fashion_mnist()
    network = trace(task.model, task.example_inputs)
    target = make_target("onnxruntime", threads=options.threads)
    space = resolve_space(find_space("ptq"), network, target)
    reference, found = None, []
    for executor in (Serial(), Tuned(Execution(workers=options.workers)), Serial()):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "artifacts").mkdir()
            study = Study(
                Place(Path(folder) / "study.log"), Parameters(space),
                sampler=lambda finished: make_sampler("random", finished),
                objectives=("accuracy", "size"), budget=Budget(),
            )  # fmt: skip
            evaluator = Evaluator(task, network, target, Path(folder), reference_ms=reference)
            reference = evaluator.reference_ms
            count = len(space.baselines())
            drive(study, evaluator, count, lambda _: None, executor=executor)
            found.append({score.plan: score.latency_ms for score in study.scores})
    quiet, *others = found
    for name, other in zip((f"{options.workers} workers busy", "again quiet"), others, strict=True):
        ratios = np.array([other[plan] / quiet[plan] for plan in quiet])
        away = np.abs(ratios - 1)
        print(
            f"{name}: {len(ratios)} plans, median ratio {np.median(ratios):.4f}, away from 1 by "
            f"{np.median(away):.2%} (median), {np.quantile(away, 0.9):.2%} (90 %), "
            f"{away.max():.2%} at most"
        )


if __name__ == "__main__":
    main()
