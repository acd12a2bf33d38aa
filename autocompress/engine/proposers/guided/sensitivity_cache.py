"""The cache: divergences of plans on the calibration inputs, each computed once."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autocompress.core.plan import Plan
from autocompress.errors import PlanError, RunError

__all__ = ["Effect", "SensitivityCache"]


@dataclass(frozen=True)
class Effect:
    """A plan's divergence and the seconds that it took, or why it cannot be had."""

    loss: float = math.nan
    seconds: float = 0.0
    trouble: str = ""


class SensitivityCache:
    """Answers what a plan does to the outputs, and keeps the answers in a file, a line each.

    ``effect`` computes a divergence; ``wanted``: plans whose divergence is needed before all
    others, which a scheduler has computed by its workers. ``seconds``: what was spent on answers,
    in this run and in those before that the file tells of; ``trouble``: why what is wanted cannot
    be had, or "". Raises RunError for a file that cannot be read or written.
    """

    def __init__(
        self,
        effect: Callable[[Plan], float],
        path: Path | None = None,
        wanted: Sequence[Plan] = (),
    ) -> None:
        self._effect, self._path, self.wanted, self.trouble = effect, path, wanted, ""
        self.known: dict[Plan, float] = {}
        self.seconds = 0.0
        if path is not None and path.exists():
            try:
                self._read(path)
            except OSError as error:
                raise RunError(f"The profile must be readable: {path} is not ({error}).") from error

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        whole = sum(len(line) for line in lines if line.endswith(b"\n"))
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):  # torn by a kill
                with path.open("r+b") as file:
                    file.truncate(whole)
                break
            try:
                plan, loss, seconds = json.loads(line)
                if not isinstance(plan, dict) or not (loss >= 0 and 0 <= seconds < math.inf):
                    raise ValueError("a plan, its effect and seconds, neither below 0")
                self.known[Plan(plan)] = float(loss)
                self.seconds += float(seconds)
            except (PlanError, ValueError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{path}, line {number}: not a line that autocompress wrote ({error}). "
                    "Delete the file: the profile is then made again."
                ) from error

    def __call__(self, plan: Plan) -> float:
        """Return the divergence of a plan."""
        if plan not in self.known:
            start = time.perf_counter()
            loss = self._effect(plan)
            self.learn(plan, loss, time.perf_counter() - start)
        return self.known[plan]

    def learn(self, plan: Plan, loss: float, seconds: float = 0.0) -> None:
        """Keep an answer, and what was spent on it."""
        if plan not in self.known:
            if self._path is not None:
                self._write(plan, loss, seconds)
            self.known[plan] = loss
            self.seconds += seconds

    def _write(self, plan: Plan, loss: float, seconds: float) -> None:
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([dict(plan.settings), loss, round(seconds, 4)]) + "\n")
        except OSError as error:
            raise RunError(
                f"The profile must be writable: {self._path} is not ({error})."
            ) from error
