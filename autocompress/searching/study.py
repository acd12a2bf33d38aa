"""The study: every score, in memory for the sampler and, once finished, in a journal file."""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autocompress.errors import PlanError, RunError
from autocompress.searching.parameters import Parameters
from autocompress.spec.budget import Budget
from autocompress.spec.plan import Plan
from autocompress.spec.score import OBJECTIVES, Score

__all__ = ["STUDY_NAME", "Study", "driver_lock", "read_study"]

STUDY_NAME = "autocompress"
_TEST = "test:"
_GENERATION = "NSGAIISampler:generation"


@contextlib.contextmanager
def driver_lock(directory: Path) -> Iterator[None]:
    """Make a run directory and hold it for one driver; raise RunError that names another holder.

    The lock belongs to the process: the system releases it however the holder ends.
    """
    (directory / "artifacts").mkdir(parents=True, exist_ok=True)
    note = directory / "driver.txt"
    lock = FileLock(directory / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        holder = note.read_text().strip() if note.exists() else "another process"
        raise RunError(
            f"One driver at a time may work in a run directory: {directory} is held by {holder}. "
            "Wait for it or stop it."
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk; the lock holds without it
            note.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _mend(path: Path) -> None:
    """Cut a torn last line, which a killed driver or machine may have left, and its stale lock."""
    path.with_name(path.name + ".lock").unlink(missing_ok=True)
    if not path.exists():
        return
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        start = content.rfind(b"\n", 0, max(whole - 1, 0)) + 1
        try:
            json.loads(content[start:whole] or b"null")
        except ValueError:
            whole = start
        if whole < len(content):
            file.truncate(whole)


def _storage(path: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(path)))


def _open(path: Path) -> optuna.Study | None:
    """Return the study in a journal file, None where there is none yet."""
    if not path.exists():
        return None
    try:
        storage = _storage(path)
        if STUDY_NAME in optuna.get_all_study_names(storage):
            return optuna.load_study(study_name=STUDY_NAME, storage=storage)
        return None
    except Exception as error:  # Optuna asserts and indexes while it replays the file
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(
        f"A study must be a journal that autocompress wrote: {path} ({repr(error)[:120]}). "
        "Restore it from a copy, or start in another directory."
    )


def _scores(study: optuna.Study, path: Path) -> list[Score]:
    notes = study.user_attrs
    try:
        trials = study.get_trials(deepcopy=False)
        scores = [Score.from_json(trial.user_attrs["score"]) for trial in trials]
    except (KeyError, TypeError, PlanError) as error:
        raise _damaged(path, error) from error
    return [_with_test(score, notes.get(_TEST + score.key)) for score in scores]


def _with_test(score: Score, figures: Any) -> Score:
    if figures is None:
        return score
    mean, low, high = figures
    return replace(score, test_accuracy=mean, test_low=low, test_high=high)


def read_study(path: Path) -> tuple[list[Score], dict[str, Any]]:
    """Return the scores and notes in a journal file, also while another process writes it.

    Raises RunError for a file that is not such a journal.
    """
    study = _open(path)
    return ([], {}) if study is None else (_scores(study, path), study.user_attrs)


class Study:
    """Scores by plan, and the sampler that learns from them.

    The working study lives in memory; each finished trial is appended to the journal file as
    one line, so that nothing unfinished is ever on disk. ``sampler`` is given the number of
    finished trials, to seed it so that a resumed search does not repeat its proposals.
    """

    def __init__(
        self,
        path: Path,
        parameters: Parameters,
        *,
        sampler: Callable[[int], optuna.samplers.BaseSampler],
        objectives: tuple[str, ...],
        budget: Budget,
    ) -> None:
        self.parameters = parameters
        self.objectives = objectives
        self.budget = budget
        up, down = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
        directions = [up if OBJECTIVES[name].maximize else down for name in objectives]
        _mend(path)
        self._journal = _open(path) or optuna.create_study(
            study_name=STUDY_NAME, storage=_storage(path), directions=directions
        )
        self.scores = _scores(self._journal, path)
        self.sampler = sampler(len(self.scores))
        self._memory = optuna.create_study(directions=directions, sampler=self.sampler)
        self._memory.add_trials(
            trial
            for trial in self._journal.get_trials(deepcopy=False)
            if trial.state == TrialState.COMPLETE and self._informs(trial)
        )
        self._by_key = {score.key: score for score in self.scores}

    def _informs(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial has the space's parameters: samplers want all or none."""
        return bool(trial.params) or not self.parameters.distributions

    def answer(self, key: str) -> Score | None:
        """Return the score of an artifact's key if there is one."""
        return self._by_key.get(key)

    @property
    def completed(self) -> int:
        """Return the number of completed scores, baselines included."""
        return sum(score.outcome == "ok" for score in self.scores)

    def nearest_accuracy(self, plan: Plan) -> float:
        """Return the mean accuracy of the five completed plans that are most like a plan."""
        space = self.parameters.space
        span = {name: max(values[-1] - values[0], 1e-9) for name, values in space.knobs.items()}
        wanted = space.choices(plan)
        near = []
        for score in self.scores:
            if score.outcome == "ok":
                found = space.choices(score.plan)
                away = sum(abs(found[n] - wanted[n]) / span[n] for n in wanted)
                near.append((away, score.accuracy))
        closest = [accuracy for _, accuracy in sorted(near)[:5]]
        return sum(closest) / max(len(closest), 1)

    def ask(self, plan: Plan | None = None) -> tuple[Trial, Plan]:
        """Return a running trial, in memory alone, and its plan: the sampler's or the one given."""
        if plan is not None:
            self._memory.enqueue_trial(self.parameters.of(plan) or {})
        trial = self._memory.ask()
        return trial, self.parameters.suggest(trial)

    def repeat(self, trial: Trial, score: Score) -> FrozenTrial:
        """Tell the sampler the score of a plan that it proposed."""
        if score.outcome == "failed":
            return self._memory.tell(trial, state=TrialState.FAIL)
        for name, value in score.constraints(self.budget).items():
            trial.set_constraint(name, value)
        return self._memory.tell(trial, score.values(self.objectives))

    def add(self, score: Score, trial: Trial | None = None) -> Score:
        """Record a finished trial on disk, tell the sampler, and return it with its number."""
        score = replace(score, trial=len(self.scores))
        told = {} if trial is None else self.repeat(trial, score).system_attrs
        # NSGA-II breeds from what has a generation: what it did not propose is of the first
        attrs = {_GENERATION: told.get(_GENERATION, 0)}
        frozen = self._frozen(score, attrs)
        self._journal.add_trial(frozen)
        self.scores.append(score)
        self._by_key[score.key] = score
        if trial is None and score.outcome != "failed" and self._informs(frozen):
            self._memory.add_trial(frozen)
        return score

    def add_test(self, score: Score, figures: Sequence[float]) -> None:
        """Record (mean, low, high) of the test split for a score."""
        self._journal.set_user_attr(_TEST + score.key, [float(figure) for figure in figures])
        self.scores[score.trial] = _with_test(score, figures)

    def note(self, name: str) -> Any:
        """Return a note that was kept with the study, None if there is none."""
        return self._journal.user_attrs.get(name)

    def set_note(self, name: str, value: Any) -> None:
        """Keep plain data with the study under a name."""
        json.dumps(value)
        self._journal.set_user_attr(name, value)

    def check_fingerprints(self, found: Mapping[str, str]) -> None:
        """Record what the study is about, or raise RunError naming what has changed since."""
        stored = self.note("fingerprints")
        if stored is None:
            self.set_note("fingerprints", dict(found))
            return
        changed = [name for name in found if stored.get(name) != found[name]]
        if changed:
            raise RunError(
                "A study can only go on with what it began with; changed since then: "
                f"{', '.join(changed)}. Use another run directory for the new search."
            )

    def _frozen(self, score: Score, attrs: Mapping[str, Any]) -> FrozenTrial:
        params = self.parameters.of(score.plan) or {}
        failed = score.outcome == "failed"
        return create_trial(
            state=TrialState.FAIL if failed else TrialState.COMPLETE,
            values=None if failed else score.values(self.objectives),
            params=params,
            distributions={name: self.parameters.distributions[name] for name in params},
            user_attrs={"score": score.to_json()},
            system_attrs=dict(attrs),
            constraints=None if failed else score.constraints(self.budget),
        )
