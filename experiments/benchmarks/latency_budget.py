"""Whether a latency budget holds: fronts under half of the uncompressed latency, measured again.

    python experiments/benchmarks/latency_budget.py [--trials 60]
        [--runtimes onnxruntime openvino] [--networks resnet20 mobilenetv2 shufflenetv2]

For each network (random weights, 1×28×28; its score is 1 less the relative error of its outputs on
512 random images) and runtime: a search with a budget of half of the uncompressed network's
latency. Every file of its front is then opened in a process of its own and measured anew beside
the uncompressed file. Results take the place of those of the same runtime and network in
experiments/results/latency_budget.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from results import RESULTS, replace_rows

import autocompress as ac
from autocompress.targets.timing import cpu_model
from autocompress.tasks.images import make_network

SPACE = {
    "*/keep": [0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0],
    "*/w_bits": [2, 3, 4, 5, 6, 7, 8],
    "*/a_bits": [8, 32],
}
AGAIN = """
import json, sys
import autocompress as ac
timing = ac.bench(sys.argv[1], reference=sys.argv[2], runtime=sys.argv[3])
print(json.dumps([timing.latency_ms, timing.low_ms, timing.high_ms]))
"""


def make_task(name: str) -> ac.Task:
    torch.manual_seed(0)
    model = make_network(name)
    images = torch.randn(1024, 1, 28, 28)
    with torch.no_grad():  # BatchNorm statistics of these images
        for part in images.split(128):
            model(part)
        model.eval()
        wanted = model(images[512:]).numpy()
    inputs, size = images[512:].numpy(), float(np.linalg.norm(wanted))
    return ac.Task(
        model=model,
        example_inputs=(images[:1],),
        calibration=[(images[:192],)],
        evaluate=lambda predict: 1 - float(np.linalg.norm(predict(inputs) - wanted)) / size,
        name=name,
    )


def again(file: Path, reference: Path, runtime: str) -> list[float]:
    """Measure a file in a fresh process: milliseconds and the ends of the interval."""
    command = [sys.executable, "-c", AGAIN, str(file), str(reference), runtime]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(runtime: str, name: str, trials: int, folder: Path) -> list[dict]:
    task = make_task(name)
    first = ac.search(task, space=SPACE, target=runtime, trials=1, run_dir=folder / "first")
    uncompressed = first.scores[0]
    limit = uncompressed.latency_ms / 2
    found = ac.search(
        task, space=SPACE, target=runtime, trials=trials, run_dir=folder / "run",
        budget=ac.Budget(latency_ms=limit),
    )  # fmt: skip
    front = found.front()
    over = sum(score.outcome == "over_budget" for score in found.scores)
    print(
        f"{runtime}, {name}: {uncompressed.latency_ms:.3f} ms uncompressed, {len(front)} files on "
        f"the front, {over} of {len(found.scores)} plans over budget and not built",
        flush=True,
    )
    reference = folder / "first" / "artifacts" / uncompressed.artifact
    rows = []
    for pick in front if front.feasible else ():
        ms, low, high = again(pick.path, reference, runtime)
        rows.append(
            {
                "runtime": runtime, "network": name, "trial": pick.score.trial,
                "limit_ms": round(limit, 5), "upper_end_ms": round(pick.score.latency_high_ms, 5),
                "predicted_ms": round(pick.score.estimates.get("latency_ms", float("nan")), 5),
                "searched_ms": round(pick.score.latency_ms, 5), "again_ms": round(ms, 5),
                "again_low_ms": round(low, 5), "again_high_ms": round(high, 5),
                "over": round(ms / limit - 1, 4), "processor": cpu_model(),
            }
        )  # fmt: skip
    excess = np.array([row["over"] for row in rows])
    if len(excess):
        print(
            f"  measured again: {(excess <= 0).mean():.0%} of {len(excess)} within the budget, "
            f"the worst {excess.max():+.1%}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"])
    names = ["resnet20", "mobilenetv2", "shufflenetv2"]
    parser.add_argument("--networks", nargs="+", default=names)
    parser.add_argument("--trials", type=int, default=60)
    options = parser.parse_args()
    rows = []
    for runtime in options.runtimes:
        for name in options.networks:
            with tempfile.TemporaryDirectory() as folder:
                rows += run(runtime, name, options.trials, Path(folder))
    excess = np.array([row["over"] for row in rows])
    print(f"in all: {(excess <= 0).mean():.1%} of {len(excess)}, the worst {excess.max():+.1%}")
    replace_rows(RESULTS / "latency_budget.csv", rows, ("runtime", "network"))


if __name__ == "__main__":
    main()
