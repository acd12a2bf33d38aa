"""What an executor is: the way in which a scheduler's jobs are evaluated."""

from typing import TYPE_CHECKING, Protocol

from autocompress.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from autocompress.engine.evaluator import Evaluator

__all__ = ["Executor"]


class Executor(Protocol):
    """Evaluates what a scheduler gives out, until it has nothing more."""

    def run(self, scheduler: Scheduler, evaluator: "Evaluator") -> None:
        """Take jobs, have them evaluated, and hand their scores back.

        Ctrl-C once: no more jobs are taken, those that are out are finished and recorded, and
        KeyboardInterrupt is raised; twice: it is raised at once.
        """
