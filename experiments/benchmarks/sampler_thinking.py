"""How long the guided sampler thinks, by the number of trials, for a network of 57 layers.

    python experiments/benchmarks/sampler_thinking.py [--trials 2000]

ResNet-56 with 146 knobs (keep, w_bits, a_bits); accuracies and effects are made up, since they are
not thinking, and so is the estimate of a file's size.
"""

import argparse
import math
import time

import numpy as np
import torch

from autocompress.cost.estimate import Estimator
from autocompress.models.trace import trace
from autocompress.names import find_space, resolve_space
from autocompress.searching.allocation import total
from autocompress.searching.cost_tables import cost_tables
from autocompress.searching.guide import Guide, Observed
from autocompress.searching.oracle import Oracle
from autocompress.searching.profile import companions_of, groups_of, profile
from autocompress.targets import make_target
from autocompress.tasks.images import make_network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    target = make_target("onnxruntime")
    network = trace(make_network("resnet56").eval(), (torch.randn(1, 1, 28, 28),))
    space = resolve_space(find_space("ptq"), network, target)
    estimator = Estimator(network, target.abilities, target.prepare(network))
    start = time.perf_counter()
    tables = cost_tables(space, estimator, ["size_bytes"])["size_bytes"]
    print(f"{len(space.knobs)} knobs; cost tables in {time.perf_counter() - start:.1f} s")
    generator = np.random.default_rng(0)
    worth = {
        name: dict(zip(values, np.sort(generator.exponential(1, len(values)))[::-1], strict=True))
        for name, values in space.knobs.items()
    }

    def effect(plan) -> float:
        return 1e-3 * sum(worth[n].get(v, 0.0) for n, v in space.choices(plan).items())

    def size(plan) -> float:
        return total(tables, {n: space.knobs[n].index(v) for n, v in space.choices(plan).items()})

    oracle = Oracle(effect)
    known = profile(space, oracle, companions_of(network, space))
    guide = Guide(
        space, oracle, known, groups_of(network, space), [tables],
        lambda plan: (size(plan),), objectives=1, limits=[math.inf],
    )  # fmt: skip
    observed = [
        Observed(p, math.exp(-effect(p)), (size(p),))
        for _, p in space.baselines()
        if space.contains(p)
    ]
    times = []
    while len(observed) < options.trials:
        start = time.perf_counter()
        plan = guide.propose(observed, generator)
        times.append(time.perf_counter() - start)
        observed.append(Observed(plan, math.exp(-effect(plan)), (size(plan),)))
        if len(observed) % (options.trials // 4) == 0:
            recent = np.array(times[-50:]) * 1e3
            print(
                f"after {len(observed)} trials: {np.median(recent):.0f} ms (median of 50), "
                f"{recent.max():.0f} ms at most",
                flush=True,
            )
    print(f"mean of all: {np.mean(times) * 1e3:.0f} ms a trial")


if __name__ == "__main__":
    main()
