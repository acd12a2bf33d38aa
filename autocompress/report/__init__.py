"""Front, tables, figures and cards: pure functions of scores. No torch."""

from autocompress.report.front import Front, Pick

__all__ = ["Front", "Pick"]
