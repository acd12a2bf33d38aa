"""One plan after another, in this process or, under limits, in a child of it."""

import contextlib
import secrets
from typing import TYPE_CHECKING

from autocompress.core.execution import Execution
from autocompress.engine.executors.heartbeats import Marker
from autocompress.engine.executors.interrupts import deferred
from autocompress.engine.executors.reaper import reaped
from autocompress.engine.scheduler import Job, Scheduler

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator
    from autocompress.engine.executors.child import Child

__all__ = ["Serial"]


class Serial:
    """Evaluates in this process or, where a trial has limits, in a child, which can be ended."""

    def __init__(self, execution: Execution | None = None) -> None:
        self.execution = execution or Execution()
        self._child: Child | None = None
        self._marker: Marker | None = None

    def run(self, scheduler: Scheduler, evaluator: "Evaluator") -> None:
        """Evaluate until the scheduler gives out nothing more."""
        evaluate = self._in_child if self.execution.limited else self._here
        with contextlib.ExitStack() as ours:
            if self.execution.limited:
                self._mark = secrets.token_hex(8)
                ours.enter_context(reaped(self._mark))
            ours.callback(self._close)
            while (job := scheduler.next()) is not None:
                with deferred(scheduler.interrupted):
                    evaluate(scheduler, evaluator, job)

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def _here(self, scheduler: Scheduler, evaluator: "Evaluator", job: Job) -> None:
        if self._marker is None:
            self._marker = Marker(evaluator.directory)
        with self._marker.busy(job):
            found = evaluator.effect(job.plan) if job.question else evaluator(*job.arguments)
        scheduler.done(job, found)

    def _in_child(self, scheduler: Scheduler, evaluator: "Evaluator", job: Job) -> None:
        from autocompress.engine.executors.child import Child, LostError, TimeLimitError
        from autocompress.engine.executors.worker import pack, receive

        if self._child is None:
            self._child = Child(
                pack(evaluator, self.execution.trial_memory_bytes),
                self.execution.trial_seconds,
                self._mark,
            )
        try:
            answer = self._child(job)
        except LostError as error:
            self._child = None
            scheduler.lost(job, str(error))
        except TimeLimitError as error:
            self._child = None
            scheduler.failed(job, str(error))
        else:
            scheduler.done(job, receive(evaluator, job, answer))
