"""Results of benchmarks as CSV: what is measured again takes the place of what was there."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "replace_rows"]

RESULTS = Path(__file__).parents[1] / "results"


def replace_rows(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Write rows beside those of a file, if there is one, that differ from all in ``keys``."""
    kept: list[dict[str, Any]] = []
    if path.exists():
        new = {tuple(str(row[key]) for key in keys) for row in rows}
        with path.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if tuple(r[key] for key in keys) not in new]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, *rows])
