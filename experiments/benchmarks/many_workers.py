"""How busy the guided sampler keeps 32 workers whose trials take 10 seconds.

    python experiments/benchmarks/many_workers.py [--workers 32] [--trials 400] [--seconds 10]

Real processes of Ray, on however few cores: their trials sleep. The guide's are the knobs and cost
tables of ResNet-20 on Fashion-MNIST's input; effects are made up, as in sampler_thinking.py. Busy
is the time that trials took over workers times the time from when all had begun to when the last
trial was given out. Counted too: proposals that were out or had been scored already.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from made_up import made_up
from sleeping import Sleeper

from autocompress.core.budget import Budget
from autocompress.core.execution import Execution
from autocompress.engine.executors.ray_tune import Tuned
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.store import Place
from autocompress.engine.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    space, guide, _, _ = made_up("resnet20")
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            Place(Path(folder) / "study.log"), Parameters(space),
            sampler=lambda finished: make_sampler("guided", finished),
            objectives=("accuracy", "size"), budget=Budget(),
        )  # fmt: skip
        study.sampler.attach(lambda: guide, study, ["size_bytes"])
        thinking, asked, ask = [], [], study.ask

        def timed(plan=None):
            start = time.perf_counter()
            found = ask(plan)
            thinking.append(time.perf_counter() - start)
            asked.append(found[1])
            return found

        study.ask = timed
        executor = Tuned(Execution(workers=options.workers))
        drive(study, Sleeper(Path(folder), options.seconds), options.trials, lambda _: None,
              executor=executor)  # fmt: skip
        spans = [(s.seconds["start"], s.seconds["end"], s.seconds["pid"]) for s in study.scores]
    firsts = {}
    for start, _, pid in sorted(spans):
        firsts.setdefault(pid, start)
    begun, last = max(firsts.values()), max(start for start, *_ in spans)
    busy = sum(max(min(end, last) - max(start, begun), 0.0) for start, end, _ in spans)
    share = busy / (options.workers * (last - begun))
    print(
        f"{options.workers} workers, {len(firsts)} processes, {len(spans)} trials: "
        f"{share:.1%} busy over {last - begun:.0f} s; all had begun after "
        f"{begun - min(start for start, *_ in spans):.0f} s; thinking "
        f"{1e3 * float(np.median(thinking)):.0f} ms (median), {1e3 * max(thinking):.0f} ms at "
        f"most; "
        f"{len(asked) - len(set(asked))} proposals twice"
    )


if __name__ == "__main__":
    main()
