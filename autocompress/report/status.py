"""The status of a run, for people and for programs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Running", "Status", "Step", "status_json", "status_text"]


@dataclass(frozen=True)
class Running:
    """A worker: where it is, what it evaluates ("" for nothing), and for how many seconds."""

    worker: str
    what: str
    seconds: float


@dataclass(frozen=True)
class Step:
    """The hypervolume after so many completed trials and hours, as a share of what it is now."""

    trials: int
    hours: float
    share: float


@dataclass(frozen=True)
class Status:
    """Where a run stands.

    ``driver``: who drives it, "" if nobody does. ``outcomes``: numbers of trials by outcome;
    ``completed`` of ``wanted`` have a file. ``an_hour``: completed trials an hour, lately, pauses
    left out, NaN while unknown. ``silent``: seconds since the last trial was recorded, NaN if none
    was. ``steps``: the hypervolume over time, of accuracy × log costs. ``lost``: what
    is missing on this system, and is there on Linux.
    """

    directory: Path
    driver: str
    wanted: int
    outcomes: Mapping[str, int]
    baselines: int
    workers: tuple[Running, ...]
    an_hour: float
    silent: float
    best: str
    steps: tuple[Step, ...]
    lost: tuple[str, ...] = ()

    @property
    def completed(self) -> int:
        """Trials with a file."""
        return self.outcomes.get("ok", 0)


def status_json(status: Status) -> str:
    """Return the status as JSON; what is not known is null."""
    data = asdict(status) | {"directory": str(status.directory), "completed": status.completed}
    for name in ("an_hour", "silent"):
        data[name] = None if data[name] != data[name] else data[name]
    return json.dumps(data, indent=2) + "\n"


def status_text(status: Status) -> str:
    """Return the status in words, a line each."""
    counts = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in status.outcomes.items())
    lines = [
        f"{status.directory}: {f'driven by {status.driver}' if status.driver else 'no driver'}",
        f"trials: {status.completed:,} of {status.wanted:,} completed, {status.baselines} of them "
        f"baselines ({counts or 'none recorded'})",
    ]
    if status.best:
        lines.append(f"best: {status.best}")
    if status.silent == status.silent:
        lines.append(f"last recorded: {_ago(status.silent)} ago")
    if status.an_hour == status.an_hour:
        left = max(status.wanted - status.completed, 0) / status.an_hour * 3600
        more = f", {_ago(left)} to go" if status.driver and left else ""
        lines.append(f"speed: {status.an_hour:,.0f} trials an hour{more}")
    if status.driver:
        busy = [worker for worker in status.workers if worker.what]
        lines.append(f"workers: {len(status.workers)} alive, {len(busy)} evaluate")
        lines += [f"  {w.worker}: {w.what}, for {_ago(w.seconds)}" for w in busy]
    if status.steps:
        lines.append("hypervolume, as a share of what it is now:")
        lines += [
            f"  {step.share:7.1%} after {step.trials:,} trials, {_ago(3600 * step.hours)}"
            for step in status.steps
        ]
    if status.lost:
        lines.append(f"missing on this system: {', '.join(status.lost)}")
    return "\n".join(lines)


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return "{} min {} s".format(*divmod(int(seconds), 60))
    return f"{seconds / 3600:.1f} h"
