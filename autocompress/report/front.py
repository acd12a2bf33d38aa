"""The Pareto front of a study, and picks that leave it as files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from autocompress.core.artifact import Artifact
from autocompress.core.budget import LIMITS
from autocompress.core.files import write_whole
from autocompress.core.plan import Plan
from autocompress.core.results import Results, by_size
from autocompress.core.score import Score
from autocompress.errors import InputError, NoModelError
from autocompress.report.card import card, card_data
from autocompress.report.figures import plot
from autocompress.report.formatting import figures, limits, no_front, no_model
from autocompress.report.tables import COLUMNS, WHOLE, describe, html_table, rows, text_table
from autocompress.targets.check import Verified, verify
from autocompress.targets.checkfile import check_path

if TYPE_CHECKING:
    import pandas

__all__ = ["Front", "Pick"]

_FIELDS: Mapping[str, str] = {
    "max_latency_ms": "latency_ms",
    "max_size_bytes": "max_size_bytes",
    "max_energy_mj": "max_energy_mj",
    "max_memory_bytes": "max_memory_bytes",
}


@dataclass(frozen=True, repr=False)
class Pick:
    """A score with its file; ``reference`` is the uncompressed model's score, if it has one."""

    score: Score
    path: Path
    reference: Score | None = None

    def __str__(self) -> str:
        return describe(self.score, self.path, self.reference)

    def __repr__(self) -> str:
        return f"<Pick of trial {self.score.trial}: {figures(self.score)}, {self.path}>"

    @property
    def plan(self) -> Plan:
        """The plan that the file was made by."""
        return self.score.plan

    @property
    def artifact(self) -> Artifact:
        """The file as it was scored."""
        return replace(self.score.file(Path()), path=self.path)

    def verify(self) -> Verified:
        """Run the file here and tell whether it answers as it did where it was scored.

        Raises InputError where the run has no check of it, ConfigError without its runtime.
        """
        return verify(self.path)

    def export(self, path: str | Path, *, check: bool = True) -> Path:
        """Copy the file to ``path`` with its card beside it, and return the path.

        The card is ``<path>.md`` to read and ``<path>.json`` (plan, figures, sha256) for programs.
        ``check``: with ``<path>.check.npz`` as well, by which ``verify`` tells elsewhere whether
        the file answers as here, if the run has it. Raises ArtifactError if the file is not the one
        that was scored, InputError if the path cannot be written.
        """
        path = Path(path)
        artifact = self.artifact
        artifact.verify()
        write_whole(
            path, self.path.read_bytes(), lambda copy: replace(artifact, path=copy).verify()
        )
        text = card(self.score, self.reference, path.name)
        data = json.dumps(card_data(self.score, self.reference, path.name), indent=2)
        write_whole(path.with_name(path.name + ".md"), text.encode())
        write_whole(path.with_name(path.name + ".json"), f"{data}\n".encode())
        if check and check_path(self.path).exists():
            write_whole(check_path(path), check_path(self.path).read_bytes())
        else:
            check_path(path).unlink(missing_ok=True)  # that of a file that was here before
        return path


@dataclass(frozen=True, repr=False)
class Front(Results):
    """The non-dominated scores that meet the budget, in ascending order of size.

    A sequence of :class:`Pick`.
    """

    @cached_property
    def members(self) -> tuple[Pick, ...]:
        """The front in ascending size; the closest miss alone where nothing meets the budget."""
        return self._picks(self.best)

    @cached_property
    def baselines(self) -> tuple[Pick, ...]:
        """The measured baselines in ascending size, those on the front too."""
        return self._picks(self.uniform)

    @property
    def picks(self) -> tuple[Pick, ...]:
        """All measured files in ascending size."""
        return self._picks(by_size(self.measured))

    @property
    def message(self) -> str:
        """The sentence with the closest miss where nothing meets the budget, else empty."""
        return no_front(self)

    def _picks(self, scores: Sequence[Score]) -> tuple[Pick, ...]:
        return tuple(map(self._pick, scores))

    def _pick(self, score: Score) -> Pick:
        return Pick(score, score.file(self.directory).path, self.reference)

    def __iter__(self) -> Iterator[Pick]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @overload
    def __getitem__(self, index: int) -> Pick: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Pick, ...]: ...
    def __getitem__(self, index: int | slice) -> Pick | tuple[Pick, ...]:
        return self.members[index]

    def __str__(self) -> str:
        return text_table(self)

    def __repr__(self) -> str:
        state = "" if self.feasible else ", closest miss only"
        return f"<Front of {len(self)} from {len(self.scores)} scores in {self.directory}{state}>"

    def _repr_html_(self) -> str:
        return html_table(self)

    def to_pandas(self, baselines: bool = False) -> "pandas.DataFrame":
        """Return one row a member, and with ``baselines`` one for each that is not on the front.

        Accuracies and intervals are fractions, sizes bytes, times milliseconds; ``smaller`` is the
        uncompressed size over the file's. What was not measured is NaN or NA.
        """
        import pandas

        frame = pandas.DataFrame(rows(self, baselines), columns=list(COLUMNS))
        for name in COLUMNS:
            if name in WHOLE:
                frame[name] = frame[name].astype("Int64")
            elif name in ("on_front", "meets_budget"):
                frame[name] = frame[name].astype(bool)
            elif name not in ("differs", "baseline", "artifact", "sha256"):
                frame[name] = frame[name].astype(float)
        return frame

    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        max_size_bytes: float | None = None,
        max_energy_mj: float | None = None,
        max_memory_bytes: float | None = None,
        min_accuracy: float | None = None,
    ) -> Pick:
        """Return the file of highest validation accuracy within limits; of equals the smallest.

        Every measured score is a candidate. A limit that is not given is the budget's; latency is
        the upper end of its interval. With ``min_accuracy`` alone, the smallest file that reaches
        it is returned. Raises NoModelError naming the closest miss, InputError for a limit that
        cannot be.
        """
        given = {
            "max_latency_ms": max_latency_ms, "max_size_bytes": max_size_bytes,
            "max_energy_mj": max_energy_mj, "max_memory_bytes": max_memory_bytes,
        }  # fmt: skip
        wanted: dict[str, Any] = {_FIELDS[n]: v for n, v in given.items() if v is not None}
        budget = replace(self.budget, **wanted)
        if min_accuracy is not None and not math.isfinite(min_accuracy):
            raise InputError(f"min_accuracy must be a finite number, not {min_accuracy!r}.")
        floor = -math.inf if min_accuracy is None else min_accuracy

        def excess(score: Score) -> float:
            misses = list(score.constraints(budget).values())
            if min_accuracy is not None:
                misses.append((floor - score.accuracy) / max(abs(floor), 1e-9))
            return max(misses, default=0.0)

        for name, figure in LIMITS.items():
            lacking = all(math.isnan(score.figure(figure)) for score in self.measured)
            if name in wanted and self.measured and lacking:
                raise InputError(
                    f"A limit can be set on what the run has: it has no {figure}. Energy needs a "
                    "search with a device."
                )
        within = [s for s in self.measured if s.meets(budget) and s.accuracy >= floor]
        if not within:
            miss = min(self.measured, key=excess, default=None)
            raise NoModelError(no_model(limits(budget, min_accuracy), miss))
        smallest = min_accuracy is not None and not wanted

        def rank(score: Score) -> tuple[float, ...]:
            size, loss = score.size_bytes, -score.accuracy
            first = (size, loss) if smallest else (loss, size)
            return (*first, score.latency_ms, score.trial)

        return self._pick(min(within, key=rank))

    def plot(self, path: str | Path) -> Path:
        """Draw size against accuracy into a .png or .svg file and return its path.

        Raises InputError for another suffix or a path that cannot be written.
        """
        return plot(self, Path(path))
