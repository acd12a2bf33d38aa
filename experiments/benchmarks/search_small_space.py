"""How much of a space must be evaluated to have its front: a four-layer network, all its plans.

    python experiments/benchmarks/search_small_space.py [--seeds 0 1 2]

Every plan of the space (digits, a plain CNN; keep 0.5 or 1, weights of 2, 4 or 8 bits, the
classifier left alone) is built and scored in onnxruntime once; then the guided sampler searches on
that table, its profile counted beside. Hypervolume is of accuracy × log size.
"""

import argparse
import itertools
import math
import tempfile
from pathlib import Path

import numpy as np

from autocompress.core.space import SpaceTemplate
from autocompress.cost.estimate import Estimator
from autocompress.engine.intervals import mean_of
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.guide import Guide, Observed
from autocompress.engine.proposers.guided.sensitivity import companions_of, groups_of, profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.tasks.digits import digits
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.sensitivity import Effects

SPACE = {"*/keep": [0.5, 1.0], "*/w_bits": [2, 4, 8]}


def volume(points: list[tuple[float, int]], reference: int) -> float:
    """Return the area under accuracy over log(reference / size), from chance up."""
    found, best = 0.0, 0.0
    ordered = sorted(((math.log(reference / size), a - 0.1) for a, size in points), reverse=True)
    for (gain, accuracy), (after, _) in itertools.pairwise([*ordered, (0.0, 0.0)]):
        best = max(best, accuracy)
        found += best * (gain - after)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    task, target = digits(), make_target("onnxruntime")
    network = trace(task.model, task.example_inputs)
    template = find_space(SpaceTemplate.of(SPACE, ["classifier"]))
    space = resolve_space(template, network, target)
    compressor = Compressor(network, tuple(task.calibration), target.abilities)
    builder = target.prepare(network)
    estimator = Estimator(network, target.abilities, builder)
    truth = {}
    with tempfile.TemporaryDirectory() as folder:
        names = list(space.knobs)
        plans = [
            space.plan(dict(zip(names, values, strict=True)))
            for values in itertools.product(*space.knobs.values())
        ]
        plans += [plan for _, plan in space.baselines()]
        for plan in plans:
            if plan not in truth:
                artifact = builder.build(compressor.compress(plan), Path(folder) / "a.onnx")
                accuracy = mean_of(task.evaluate(target.open(artifact.path))).mean
                truth[plan] = (accuracy, artifact.size_bytes)
    reference = max(size for _, size in truth.values())
    whole = volume(list(truth.values()), reference)
    uniform = volume([truth[plan] for _, plan in space.baselines()], reference)
    part = round(0.05 * space.size)
    print(f"{space.size} plans, hypervolume {whole:.4f}; uniform plans {uniform / whole:.2%} of it")
    for seed in options.seeds:
        cache = SensitivityCache(Effects(compressor))
        known = profile(space, cache, companions_of(network, space))
        guide = Guide(
            space, cache, known, groups_of(network, space),
            [cost_tables(space, estimator, ["size_bytes"])["size_bytes"]],
            lambda plan: (float(estimator(plan).size_bytes),), objectives=1, limits=[math.inf],
        )  # fmt: skip
        observed = [Observed(p, truth[p][0], (truth[p][1],)) for _, p in space.baselines()]
        generator, shares = np.random.default_rng(seed), []
        while len(observed) < part:
            plan = guide.propose(observed, generator)
            observed.append(Observed(plan, truth[plan][0], (truth[plan][1],)))
            found = volume([truth[entry.plan] for entry in observed], reference)
            shares.append(found / whole)
        enough = next((n for n, share in enumerate(shares) if share >= 0.99), None)
        first = "never" if enough is None else f"{len(observed) - len(shares) + enough + 1}"
        print(f"seed {seed}: {shares[-1]:.2%} after {part} evaluations; 99 % after {first}")


if __name__ == "__main__":
    main()
