"""Sixty SIGKILLs at random moments, and what is left of the studies.

    python experiments/benchmarks/random_kills.py [--kills 6] [--trials 60] [--seed 0] [--only NAME]

Ten searches, six kills each: of the driver, of workers, of both at once or of the database's
server, in searches in one process, in a process with limits, on Ray, and with the study in
PostgreSQL (left out where there is no server). A driver that was killed is followed by
`autocompress resume`; all else the search must survive by itself. After each kill of a driver: no
process of it is left after ten seconds, and what is stored is what was stored before and more. In
the end: no trial lost, none counted twice, every artifact there by its sha256 and nothing beside
them, and the front is that of all finished trials.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autocompress.api import open_run
from autocompress.core.pareto import non_dominated
from autocompress.core.score import Score
from autocompress.engine.executors.heartbeats import marked
from autocompress.engine.store import finished

TASK = """
import time
import numpy as np, torch
import autocompress as ac

def make():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 24), torch.nn.ReLU(), torch.nn.Linear(24, 16), torch.nn.ReLU(),
        torch.nn.Linear(16, 4),
    ).eval()
    x = torch.randn(200, 6)
    y = net(x).argmax(1).numpy()

    def evaluate(predict):
        time.sleep(0.25)
        return (predict(x.numpy()).argmax(1) == y).astype(float)

    return ac.Task(model=net, example_inputs=(x[:1],), calibration=[(x[:64],)], evaluate=evaluate)
"""
CONFIG = """
[task]
name = "kill_task:make"
[search]
sampler = "random"
trials = {trials}
{storage}
[target]
name = "null"
[run]
{run}
[space.knobs]
"*/keep" = [0.25, 0.5, 0.75, 1.0]
"*/w_bits" = [2, 3, 4, 5, 6, 7, 8]
"""
SERIAL, CHILD, RAY = "", "trial_seconds = 100.0", "workers = 2"
CASES = (
    ("one process", SERIAL, False, ("driver",)),
    ("a process with limits", CHILD, False, ("worker",)),
    ("a process with limits", CHILD, False, ("driver",)),
    ("Ray", RAY, False, ("worker",)),
    ("Ray", RAY, False, ("driver",)),
    ("Ray", RAY, False, ("driver", "worker")),
    ("one process, PostgreSQL", SERIAL, True, ("driver",)),
    ("one process, PostgreSQL", SERIAL, True, ("server",)),
    ("Ray, PostgreSQL", RAY, True, ("driver",)),
    ("Ray, PostgreSQL", RAY, True, ("server", "worker")),
)


def left(token: str) -> list[int]:
    """Return the processes whose environment has a token, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if token.encode() in (path / "environ").read_bytes():
                found.append(int(path.name))
        except OSError:
            continue
    return found


def stored(directory: Path) -> list[dict]:
    return [score.to_json() for score in open_run(directory).scores]


class Search:
    """A search in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, run: str, url: str, trials: int) -> None:
        self.folder, self.run = folder, folder / "run"
        folder.mkdir()
        (folder / "kill_task.py").write_text(TASK)
        storage = f'storage = "{url}"' if url else ""
        text = CONFIG.format(trials=trials, storage=storage, run=run)
        (folder / "c.toml").write_text(text)
        self.token = f"AUTOCOMPRESS_KILLS={folder.name}"
        self.process = None
        self.go("search", "c.toml", "--run", "run")

    def go(self, *arguments: str) -> None:
        log = (self.folder / "log").open("a")
        name, value = self.token.split("=")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "autocompress", *arguments], cwd=self.folder,
            env=os.environ | {name: value, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()

    def count(self) -> int:
        return len(stored(self.run)) if (self.run / "config.toml").exists() else 0

    def wait_for(self, count: int, seconds: float = 120) -> bool:
        """Wait until so many trials are stored; return whether the search still runs."""
        end = time.time() + seconds
        while self.process.poll() is None and time.time() < end:
            try:
                if self.count() >= count:
                    return True
            except Exception:  # the database is away
                pass
            time.sleep(0.1)
        return self.process.poll() is None

    def kill_driver(self) -> list[str]:
        """Kill the driver; return what is wrong after that."""
        before = stored(self.run)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        end = time.time() + 10
        while (remain := left(self.token)) and time.time() < end:
            time.sleep(0.1)
        wrong = [f"processes left behind: {remain}"] if remain else []
        after = stored(self.run)
        if after[: len(before)] != before:
            wrong.append("trials were lost or changed by the kill")
        return wrong

    def kill_worker(self, generator: random.Random) -> bool:
        found = [w.pid for w in marked(self.run) if w.pid != self.process.pid]
        if not found:
            return False
        try:
            os.kill(generator.choice(found), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True


def audit(search: Search, trials: int) -> list[str]:
    """Return what is wrong with a finished search."""
    run, wrong = open_run(search.run), []
    place = run.place
    raw = [Score.from_json(t.user_attrs["score"]) for t in finished(place.open())]
    place.close()
    good = [score for score in raw if score.outcome == "ok"]
    if len({score.key for score in good}) != len(good):
        wrong.append("a trial counts twice")
    if len(good) != trials:
        wrong.append(f"{len(good)} trials in place of {trials}")
    files = {path.name for path in (search.run / "artifacts").iterdir()}
    if files != {score.artifact for score in good}:
        wrong.append(f"files and study differ by {files ^ {score.artifact for score in good}}")
    for score in good:
        content = (search.run / "artifacts" / score.artifact).read_bytes()
        if hashlib.sha256(content).hexdigest() != score.sha256:
            wrong.append(f"trial {score.trial}: another file")
    best = non_dominated(good, ("accuracy", "size"))
    front = run.front()
    if {pick.score.trial for pick in front} != {score.trial for score in best}:
        wrong.append("the front is not that of all finished trials")
    if (search.run / "work").exists() or left(search.token):
        wrong.append("something is left behind at the end")
    failed = [score.message for score in raw if score.outcome == "failed"]
    if any("the worker was lost" not in message for message in failed):
        wrong += [f"failed: {message}" for message in failed]
    if failed and not wrong:
        print(f"  ({len(failed)} plans lost two workers, and are recorded as failed)")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.engine.postgres import Server, binaries

    generator, every, bad = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        server = Server(Path(tempfile.gettempdir())) if binaries() else None
        if server is not None:
            server.start()
        for number, (name, run, database, targets) in enumerate(CASES):
            if options.only not in name:
                continue
            if database and server is None:
                print(f"{name}: left out, there is no PostgreSQL server")
                continue
            search = Search(
                Path(place) / f"{number}", run, server.url if database else "", options.trials
            )
            problems, kills, start = [], 0, time.time()
            while kills < options.kills:
                step = max((options.trials - 6) * (kills + 1) // (options.kills + 1), 1)
                if not search.wait_for(step):
                    problems.append(f"it ended by itself with {search.process.returncode}")
                    break
                time.sleep(generator.random() * 0.6)
                if "server" in targets:
                    server.kill()
                    time.sleep(generator.random() * 3)
                    server.start()
                if "worker" in targets and not search.kill_worker(generator):
                    continue
                kills += 1
                if "driver" in targets:
                    problems += search.kill_driver()
                    search.go("resume", "run")
            try:
                search.process.wait(300)
            except subprocess.TimeoutExpired:
                problems.append("it hangs")
                search.process.kill()
            if search.process.returncode:
                problems.append(f"it ended with {search.process.returncode}")
            problems += audit(search, options.trials)
            every, bad = every + kills, bad + len(problems)
            print(
                f"{name}, {' and '.join(targets)} killed {kills} times: "
                f"{'; '.join(problems) or 'nothing lost, nothing twice, nothing left behind'} "
                f"({time.time() - start:.0f} s)",
                flush=True,
            )
            if problems:
                print((search.folder / "log").read_text()[-2000:])
        if server is not None:
            server.close()
    print(json.dumps({"kills": every, "problems": bad}))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
