"""How good a front samplers find with how many evaluations, on ResNet-20 for Fashion-MNIST.

    python experiments/benchmarks/search_efficiency.py [--samplers guided tpe nsga2 random gp]
        [--seeds 0 1 2] [--trials 400] [--gp-trials 150] [--guided-trials 100] [--images 1000]
        [--objective size|latency]

Per-layer keep, w_bits and a_bits; each evaluation builds the file and scores it in onnxruntime on
the first validation images. All samplers start with the same uniform plans, which count, on the
same ordinal parameters. Hypervolume is of accuracy × log cost, from chance and the cost of the
uniform 8-bit plan. For "latency" the cost is what the calibrated model predicts, so that it is the
same for all, and a plan counts if it is under half of the uncompressed latency, which is the
reference then.
Plan → score is kept in runs/search_efficiency/, shared among samplers, and a run that was cut off
goes on. Each sampler's hypervolume after every evaluation takes the place of its last one in
experiments/results/search_efficiency_<objective>.csv, which is drawn beside it. Profile and plans
tried on the calibration inputs, which the guided sampler needs, count as evaluations: their seconds
over those of one, timed in the same run; "evaluations" is by the seconds of an evaluation here,
"evaluations_full" by those of the search's own (all validation images, latency measured).
"""

import argparse
import itertools
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
from results import RESULTS, replace_rows

from autocompress.core.plan import Plan, Recipe
from autocompress.cost.estimate import Estimator
from autocompress.cost.fit_latency import (
    calibrate,
    calibration_path,
    load_calibration,
    random_plans,
)
from autocompress.engine.evaluator import Evaluator
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.guide import Guide, Observed
from autocompress.engine.proposers.guided.sensitivity import companions_of, groups_of, profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.tasks.fashion_mnist import fashion_mnist, load
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.sensitivity import Effects

RUN = Path("runs/search_efficiency")


class Scores:
    """Accuracy and cost of plans, each evaluated once, kept in a file."""

    def __init__(self, task, network, target, images, model=None) -> None:
        self.compressor = Compressor(network, tuple(task.calibration), target.abilities)
        self.builder = target.prepare(network)
        self.target, self.model = target, model
        self.estimator = Estimator(network, target.abilities, self.builder, model=model)
        splits = load(None)
        self.x, self.y = (part[:images] for part in splits.validation)
        RUN.mkdir(parents=True, exist_ok=True)
        self.path = RUN / f"scores_{images}.jsonl"
        self.known = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                settings, accuracy, size, seconds = json.loads(line)
                self.known[Plan(settings)] = (accuracy, size, seconds)

    def __call__(self, plan: Plan) -> tuple[float, int, float]:
        """Return accuracy, bytes and the seconds that it took."""
        if plan not in self.known:
            self.known[plan] = self.evaluate(plan)
            with self.path.open("a") as file:
                file.write(json.dumps([dict(plan.settings), *self.known[plan]]) + "\n")
        return self.known[plan]

    def evaluate(self, plan: Plan) -> tuple[float, int, float]:
        start = time.perf_counter()
        compressed = self.compressor.compress(plan)
        with tempfile.TemporaryDirectory() as folder:
            artifact = self.builder.build(compressed, Path(folder) / "a.onnx")
            session = self.target.open(artifact.path)
            batches = range(0, len(self.x), 100)
            answers = [session(self.x[i : i + 100]).argmax(1) for i in batches]
        accuracy = float((np.concatenate(answers) == self.y).mean())
        return accuracy, artifact.size_bytes, time.perf_counter() - start


class Hypervolume:
    """Of accuracy above chance × log of the reference cost over the cost."""

    def __init__(self, reference_cost: float) -> None:
        self.reference, self.points = reference_cost, []

    def add(self, accuracy: float, cost: float) -> float:
        if cost <= self.reference:
            self.points.append((math.log(self.reference / cost), accuracy - 0.1))
        volume, best = 0.0, 0.0
        ordered = sorted(self.points, reverse=True)
        for place, (gain, accuracy_over) in enumerate(ordered):
            best = max(best, accuracy_over)
            after = ordered[place + 1][0] if place + 1 < len(ordered) else 0.0
            volume += best * (gain - after)
        return volume


def draw(path: Path, objective: str) -> None:
    """Draw the median of the seeds and their range, by sampler, beside the CSV."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "autocompress"
    import matplotlib.pyplot as plt

    frame = pd.read_csv(path)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for sampler, runs in frame.groupby("sampler"):
        grid = np.arange(1, runs.evaluations.max() + 1, 3)
        curves = [
            np.interp(grid, run.evaluations, run.hypervolume, left=np.nan, right=np.nan)
            for _, run in runs.groupby("seed")
        ]
        shared = np.isfinite(curves).all(0)
        grid, curves = grid[shared], np.array(curves)[:, shared]
        (line,) = axes.plot(grid, np.median(curves, 0), label=sampler)
        axes.fill_between(grid, curves.min(0), curves.max(0), color=line.get_color(), alpha=0.2)
    axes.set_xlabel("evaluations, the guided sampler's profile and simulations counted among them")
    axes.set_ylabel(f"hypervolume, accuracy × log {objective}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    plt.close(figure)


def compare(path: Path) -> None:
    """Print when each guided search passed the best end of all other samplers, and the gains."""
    frame = pd.read_csv(path)
    others, guided = (frame[(frame.sampler == "guided") == own] for own in (False, True))
    ends = others.groupby(["sampler", "seed"]).hypervolume.max().unstack()
    print(ends.round(4).to_string())
    if guided.empty or others.empty:
        return
    best = ends.max().max()
    uniform = guided[guided.evaluations == guided.trial].hypervolume.max()
    print(f"uniform plans {uniform:.4f}; best of the others {best:.4f}")
    for seed, run in guided.groupby("seed"):
        passed = run[run.hypervolume > best]
        first = passed.iloc[0] if len(passed) else None
        text = "never" if first is None else (
            f"after {first.evaluations:.0f} evaluations, {first.evaluations_full:.0f} by the "
            f"search's own, at trial {first.trial:.0f}"
        )  # fmt: skip
        for column in ("evaluations", "evaluations_full"):
            until = run[run[column] <= 100]
            gain = (until.hypervolume.max() - uniform) / (best - uniform)
            text += f"; gain at 100 {column} {gain:.2f} times the best of theirs"
        print(f"guided seed {seed} passes it {text}; {run.hypervolume.max():.4f} at the end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=["guided", "tpe", "nsga2", "random", "gp"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--gp-trials", type=int, default=150)
    parser.add_argument("--guided-trials", type=int, default=100)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--objective", choices=["size", "latency"], default="size")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = fashion_mnist()
    network = trace(task.model, task.example_inputs)
    target = make_target("onnxruntime")
    space = resolve_space(find_space("ptq"), network, target)
    model = None
    if options.objective == "latency":
        path = calibration_path(network, target)
        found, _ = load_calibration(path, target)
        if found is None:
            found = calibrate(network, target, space)
            found.save(path)
        model = found.model()
    scores = Scores(task, network, target, options.images, model)
    cost = (lambda plan: scores(plan)[1]) if model is None else (
        lambda plan: scores.estimator(plan).latency.ms
    )  # fmt: skip
    limit = math.inf if model is None else cost(Plan()) / 2
    reference = cost(space.baselines()[1][1]) if model is None else limit
    path = RESULTS / f"search_efficiency_{options.objective}.csv"
    for sampler in options.samplers:
        for seed in options.seeds:
            trials = {"gp": options.gp_trials, "guided": options.guided_trials}.get(
                sampler, options.trials
            )
            run = guided if sampler == "guided" else plain
            start = time.perf_counter()
            volume = Hypervolume(reference)
            curve = []
            for plan, spent in run(sampler, seed, trials, scores, cost, limit, space, network):
                accuracy, _, _ = scores(plan)
                curve.append((spent, volume.add(accuracy, cost(plan))))
            marks = [n for n in (21, 22, 40, 60, 80, 100, 150, 200, 400) if n <= len(curve)]
            print(
                f"{sampler} seed {seed}: "
                + ", ".join(f"{curve[n - 1][1]:.4f} at {n + curve[n - 1][0][0]:.0f}" for n in marks)
                + f"; {time.perf_counter() - start:.0f} s",
                flush=True,
            )
            rows = [
                {
                    "sampler": sampler, "seed": seed, "trial": place,
                    "evaluations": round(place + here, 2),
                    "evaluations_full": round(place + full, 2), "hypervolume": round(value, 6),
                }
                for place, ((here, full), value) in enumerate(curve, 1)
            ]  # fmt: skip
            replace_rows(path, rows, ("sampler", "seed"))
            draw(path, options.objective)
    compare(path)


def plain(name, seed, trials, scores, cost, limit, space, network):
    """Yield the plans of one of Optuna's samplers; they cost nothing beside evaluations."""
    parameters = Parameters(space)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=make_sampler(name, seed)
    )
    baselines = space.baselines()
    for _, plan in baselines:
        yield plan, (0.0, 0.0)
        if (values := parameters.of(plan)) is not None:
            amount = cost(plan)
            study.add_trial(
                optuna.trial.create_trial(
                    params=values,
                    distributions=dict(parameters.distributions),
                    values=(scores(plan)[0], math.log(amount)),
                    system_attrs={"NSGAIISampler:generation": 0},
                    constraints={"limit": amount / limit - 1 if math.isfinite(limit) else -1.0},
                )
            )
    for _ in range(trials - len(baselines)):
        trial = study.ask()
        plan = parameters.suggest(trial)
        yield plan, (0.0, 0.0)
        amount = cost(plan)
        trial.set_constraint("limit", amount / limit - 1 if math.isfinite(limit) else -1.0)
        study.tell(trial, (scores(plan)[0], math.log(amount)))


def evaluation_seconds(scores, space, network) -> tuple[float, float]:
    """Return the median seconds of an evaluation here and of a search's own, of eight plans."""
    here, full = [], []
    with tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(fashion_mnist(), network, scores.target, Path(folder))
        for plan in itertools.islice(random_plans(space, 1), 8):
            here.append(scores.evaluate(plan)[2])
            full.append(sum(evaluator(plan, Recipe()).seconds.values()))
    return float(np.median(here)), float(np.median(full))


def guided(name, seed, trials, scores, cost, limit, space, network):
    """Yield the plans of the guide, and what profile and simulations cost, in evaluations."""
    observed = []
    for _, plan in space.baselines():
        yield plan, (0.0, 0.0)
        observed.append(Observed(plan, scores(plan)[0], (cost(plan),)))
    each = np.array(evaluation_seconds(scores, space, network))
    effects = Effects(scores.compressor)
    objective = "size" if scores.model is None else "latency"
    cache = SensitivityCache(effects, RUN / f"oracle_{objective}_{seed}.jsonl")
    figure = "size_bytes" if scores.model is None else "latency_ms"
    alone = profile(space, cache, companions_of(network, space))

    def estimate(plan):
        found = scores.estimator(plan)
        return (float(found.size_bytes if scores.model is None else found.latency.ms),)

    print(
        f"  profile: {len(cache.known)} effects, {cache.seconds:.0f} s, "
        f"{cache.seconds / each[0]:.1f} evaluations of {each[0]:.2f} s, "
        f"{cache.seconds / each[1]:.1f} of {each[1]:.2f} s",
        flush=True,
    )
    start = time.perf_counter()
    tables = cost_tables(space, scores.estimator, [figure])
    guide = Guide(
        space, cache, alone, groups_of(network, space), [tables[figure]], estimate,
        objectives=1, limits=[limit],
    )  # fmt: skip
    thinking = time.perf_counter() - start
    generator = np.random.default_rng(seed)
    proposals = trials - len(observed)
    for _ in range(proposals):
        before, start = cache.seconds, time.perf_counter()
        plan = guide.propose(observed, generator)
        thinking += time.perf_counter() - start - (cache.seconds - before)
        yield plan, tuple(cache.seconds / each)
        observed.append(Observed(plan, scores(plan)[0], (cost(plan),)))
    each = f"{thinking / proposals * 1e3:.0f} ms a proposal, tables included"
    print(f"  thinking {each}; {len(cache.known)} effects", flush=True)


if __name__ == "__main__":
    main()
