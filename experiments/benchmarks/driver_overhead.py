"""What the driver adds to a trial, one after another and with Ray, at 50 parameters.

    python experiments/benchmarks/driver_overhead.py [--trials 60] [--seconds 1.0]

Trials that sleep, random sampler, journal file. Serial: wall time beyond the sleep, a trial. With
Ray on one and on two workers: wall time between the first trial's start and the last one's end,
times workers, over trials, less the sleep; and the throughput of two over that of one, and of no
Ray at all. At last, trials of three rungs in turn, which take one, two and four CPUs: how many
processes they took.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from sleeping import Sleeper, space_of

from autocompress.core.budget import Budget
from autocompress.core.execution import Execution
from autocompress.core.plan import Recipe
from autocompress.engine.executors import Serial
from autocompress.engine.executors.ray_tune import Tuned
from autocompress.engine.loop import drive
from autocompress.engine.parameters import Parameters
from autocompress.engine.proposers import make_sampler
from autocompress.engine.scheduler import Scheduler
from autocompress.engine.store import Place
from autocompress.engine.study import Study


def searched(executor, trials: int, seconds: float):
    """Search in a folder of its own; return the scores and the whole wall time."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            Place(Path(folder) / "study.log"), Parameters(space_of(50)),
            sampler=lambda finished: make_sampler("random", finished),
            objectives=("accuracy", "size"), budget=Budget(),
        )  # fmt: skip
        start = time.perf_counter()
        drive(study, Sleeper(Path(folder), seconds), trials, lambda _: None, executor=executor)
        return study.scores, time.perf_counter() - start


def span(scores) -> float:
    """Return the seconds from the first trial's start to the last one's end."""
    return max(s.seconds["end"] for s in scores) - min(s.seconds["start"] for s in scores)


class Rungs(Scheduler):
    """Gives out recipes of three rungs in turn."""

    rungs = (0, 1, 2)

    def _give(self, job):
        count = len(self.study.scores) + len(self.study.running)
        job.recipe = replace(Recipe(seed=job.recipe.seed), rung=count % 3)
        return super()._give(job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    n, sleep = options.trials, options.seconds
    _, wall = searched(Serial(), n, sleep)
    print(f"serial: {1e3 * (wall / n - sleep):.1f} ms a trial")
    rates = {0: n / wall}
    for workers in (1, 2):
        scores, wall = searched(Tuned(Execution(workers=workers)), n, sleep)
        rates[workers] = n / span(scores)
        over = workers * span(scores) / n - sleep
        processes = len({score.seconds["pid"] for score in scores})
        print(
            f"Ray, {workers} workers: {over:.3f} s a trial, {wall - span(scores):.1f} s to start "
            f"and to end, {processes} processes",
            flush=True,
        )
    print(
        f"two workers do {rates[2] / rates[1]:.2f} × what one does, "
        f"{rates[2] / rates[0]:.2f} × what is done without Ray"
    )
    import autocompress.engine.loop as driver

    driver.Scheduler = Rungs
    scores, _ = searched(Tuned(Execution(workers=2)), n, sleep / 4)
    rungs = {r: sum(score.recipe.rung == r for score in scores) for r in (0, 1, 2)}
    processes = len({score.seconds["pid"] for score in scores})
    print(f"rungs in turn, {rungs}: {processes} processes for {len(scores)} trials on two workers")


if __name__ == "__main__":
    main()
