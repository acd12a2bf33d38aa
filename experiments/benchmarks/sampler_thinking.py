"""How long the guided sampler thinks, by the number of trials, for a network of 57 layers.

    python experiments/benchmarks/sampler_thinking.py [--trials 2000]

ResNet-56 with 146 knobs (keep, w_bits, a_bits); accuracies and effects are made up, since they are
not thinking, and so is the estimate of a file's size.
"""

import argparse
import math
import time

import numpy as np
from made_up import made_up

from autocompress.engine.proposers.guided.guide import Observed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    start = time.perf_counter()
    space, guide, effect, size = made_up("resnet56")
    print(f"{len(space.knobs)} knobs; ready in {time.perf_counter() - start:.1f} s")
    generator = np.random.default_rng(0)
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
