"""Where the wall time of a post-training trial goes.

    python experiments/benchmarks/trial_overhead.py [--trials 40] [--memory-trials 300]

For ResNet-20 and ResNet-56 with random weights, at 28×28, on all threads that torch takes: plans
of the ptq space (keep, w_bits and a_bits of every layer) that a sampler proposes go through a
study. Prints the median of each step in milliseconds, and the resident memory over many trials. A
step that the trial does not control is marked *: accuracy and latency are measurements, propose
is the sampler's own thinking.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from autocompress.core.budget import Budget
from autocompress.core.plan import Recipe
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place
from autocompress.engine.study import Study
from autocompress.models.trace import trace
from autocompress.registry import find_space
from autocompress.targets import make_target
from autocompress.tasks.base import Task
from autocompress.tasks.images import make_network

OURS = ("compress", "build", "open", "bookkeeping")
NOT_OURS = ("propose", "accuracy", "latency")


def resident() -> float:
    """Return the resident memory in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise OSError("VmRSS is not in /proc/self/status")


def random_task(name: str) -> Task:
    torch.manual_seed(0)
    model = make_network(name)
    images = torch.randn(256, 1, 28, 28)
    with torch.no_grad():  # BatchNorm statistics of these images
        for _ in range(10):
            model(images)
    model.eval()
    inputs = images[:200].numpy()
    return Task(
        model=model,
        example_inputs=(images[:1],),
        calibration=[(batch,) for batch in images.split(128)],
        evaluate=lambda predict: float(predict(inputs).std()),
        name=name,
    )


def steps(name: str, trials: int, sampler: str, directory: Path) -> None:
    task = random_task(name)
    network = trace(task.model, task.example_inputs)
    target = make_target("onnxruntime")
    layers = [layer.name for layer in network.layers]
    units = [unit.name for unit in network.units]
    space = find_space("ptq").resolve(layers, units, target.abilities)
    (directory / "artifacts").mkdir(parents=True)
    study = Study(
        Place(directory / "study.log"),
        Parameters(space),
        sampler=lambda finished: make_sampler(sampler, finished),
        objectives=("accuracy", "size"),
        budget=Budget(),
    )
    start = time.perf_counter()
    evaluator = Evaluator(task, network, target, directory)
    ready = time.perf_counter() - start
    recipe = Recipe()
    for label, plan in space.baselines()[:10]:  # something to learn from
        study.add(evaluator(plan, recipe, label))
    rows: dict[str, list[float]] = {name: [] for name in (*NOT_OURS, *OURS)}
    memory = []
    for _ in range(trials):
        start = time.perf_counter()
        trial, plan = study.ask()
        asked = time.perf_counter()
        score = evaluator(plan, recipe)
        scored = time.perf_counter()
        if score.outcome != "ok":
            raise SystemExit(score.message)
        study.add(score, trial)
        rows["propose"].append(asked - start)
        rows["bookkeeping"].append(
            time.perf_counter() - scored + (scored - asked - sum(score.seconds.values()))
        )
        for step, seconds in score.seconds.items():
            rows[step].append(seconds)
        memory.append(resident())
    print(
        f"\n{name}, {sampler}, {trials} trials, {len(space.knobs)} parameters, "
        f"ready in {ready:.1f} s"
    )
    for step, seconds in rows.items():
        ms = sorted(1e3 * value for value in seconds)
        mark = "*" if step in NOT_OURS else " "
        print(f"  {step:12}{mark} median {statistics.median(ms):8.1f} ms, most {ms[-1]:8.1f} ms")
    sums = [sum(rows[step][i] for step in OURS) for i in range(trials)]
    print(f"  all but *     median {1e3 * statistics.median(sums):8.1f} ms")
    fifth = max(1, trials // 5)
    print(
        f"  resident memory: first fifth {statistics.mean(memory[:fifth]):.0f} MB, last fifth "
        f"{statistics.mean(memory[-fifth:]):.0f} MB, most {max(memory):.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--memory-trials", type=int, default=0, help="a longer run of ResNet-20")
    parser.add_argument("--sampler", default="tpe")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("resnet20", "resnet56"):
            steps(name, options.trials, options.sampler, Path(folder) / name)
        if options.memory_trials:
            steps("resnet20", options.memory_trials, "random", Path(folder) / "memory")


if __name__ == "__main__":
    main()
