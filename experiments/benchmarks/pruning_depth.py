"""Pruning alone, without training, of a deep network: ResNet-56 on Fashion-MNIST.

    python experiments/benchmarks/pruning_depth.py [--shares 0.7 0.5 0.3] [--network resnet56]

At each share of the MACs three plans are built and scored in onnxruntime, validation and test:
uniform (one keep for all units, or for those alone that are inside a residual block: the better of
the two), additive (effects of single values on the outputs, as they are, summed and solved), and
the guide's allocation. All are repaired alike, from 192 unlabelled images. Rows go to
experiments/results/pruning_depth.csv.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from results import RESULTS, replace_rows

from autocompress.core.plan import Plan
from autocompress.core.space import SpaceTemplate
from autocompress.cost.estimate import Estimator
from autocompress.engine.intervals import mean_of
from autocompress.engine.proposers.guided.allocation import solve
from autocompress.engine.proposers.guided.cost_tables import cost_tables
from autocompress.engine.proposers.guided.guide import Guide
from autocompress.engine.proposers.guided.sensitivity import companions_of, groups_of, profile
from autocompress.engine.proposers.guided.sensitivity_cache import SensitivityCache
from autocompress.models.trace import trace
from autocompress.registry import find_space, resolve_space
from autocompress.targets import make_target
from autocompress.tasks.fashion_mnist import fashion_mnist
from autocompress.transforms.compressor import Compressor
from autocompress.transforms.sensitivity import Effects

KEEPS = [k / 8 for k in range(1, 9)]
FINE = [k / 32 for k in range(32, 0, -1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.7, 0.5, 0.3])
    parser.add_argument("--network", default="resnet56")
    options = parser.parse_args()
    task, target = fashion_mnist(network=options.network), make_target("onnxruntime")
    network = trace(task.model, task.example_inputs)
    space = resolve_space(find_space(SpaceTemplate.of({"*/keep": KEEPS})), network, target)
    builder = target.prepare(network)
    estimator = Estimator(network, target.abilities, builder)
    compressor = Compressor(network, tuple(task.calibration), target.abilities)
    cache = SensitivityCache(Effects(compressor))
    start = time.perf_counter()
    alone = profile(space, cache, companions_of(network, space))
    costs = cost_tables(space, estimator, ["macs"])["macs"]
    guide = Guide(
        space, cache, alone, groups_of(network, space), [costs],
        lambda plan: (float(estimator(plan).macs),), objectives=1, limits=[math.inf],
    )  # fmt: skip
    print(
        f"{len(space.knobs)} units; profile of {len(cache.known)} effects and cost tables: "
        f"{time.perf_counter() - start:.0f} s"
    )
    whole = estimator(Plan()).macs

    def scores(plan: Plan) -> tuple[float, float]:
        with tempfile.TemporaryDirectory() as folder:
            artifact = builder.build(compressor.compress(plan), Path(folder) / "a.onnx")
            session = target.open(artifact.path)
            return mean_of(task.evaluate(session)).mean, mean_of(task.test(session)).mean

    def uniform(limit: float, names: list[str]) -> Plan:
        plans = (Plan({name: keep for name in names if keep < 1}) for keep in FINE)
        return next(plan for plan in plans if estimator(plan).macs <= limit)

    producers = {f"{unit.name}/keep": len(unit.producers) for unit in network.units}
    inside = [name for name in space.knobs if producers[name] == 1]
    rows = []

    def show(name: str, share: float, plan: Plan, seconds: float = 0.0) -> None:
        validation, test = scores(plan)
        macs, effect = estimator(plan).macs / whole, cache(plan)
        print(
            f"{share:.0%} of the MACs, {name}: {macs:.1%}, divergence {effect:.4f}, "
            f"validation {validation:.2%}, test {test:.2%}; {seconds:.0f} s",
            flush=True,
        )
        rows.append(
            {"network": options.network, "share": share, "plan": name, "macs": round(macs, 4),
             "divergence": round(effect, 5), "validation": validation, "test": test}
        )  # fmt: skip

    show("uncompressed", 1.0, Plan())
    for share in options.shares:
        limit = share * whole
        show("uniform", share, uniform(limit, list(space.knobs)))
        show("uniform inside blocks", share, uniform(limit, inside))
        single = guide.losses.tables()[: len(guide.losses.knobs)]
        chosen = solve(single, [costs], [limit])
        values = {name: space.knobs[name][place] for name, place in chosen.items()}
        show("additive", share, space.plan(values))
        start = time.perf_counter()
        plan = guide.allocate([limit], np.random.default_rng(0))
        show("guided", share, plan, time.perf_counter() - start)
    replace_rows(RESULTS / "pruning_depth.csv", rows, ("network", "share", "plan"))


if __name__ == "__main__":
    main()
