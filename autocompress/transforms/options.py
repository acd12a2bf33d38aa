"""How a plan is carried out: the choices that hold for every plan of a search."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autocompress.core.config import SETTINGS
from autocompress.errors import InputError, unknown
from autocompress.transforms.importance import IMPORTANCES
from autocompress.transforms.quantize.ranges import METHODS

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How channels are chosen, layers repaired and rounded, ranges found.

    ``importance``: one of IMPORTANCES; ``calibrate``: the way to choose ranges of activations, one
    of METHODS; ``refit``: refit weights in closed form; ``bn``: set biases such that outputs are
    right on average (BatchNorm's shift); ``compensate``: round with the Gram matrix, up to
    ``compensate_bits``, and with ``sweeps`` of coordinate descent at 2 bits; ``ridge``: how
    strongly the refit is drawn to the weights it starts from, in units of the inputs' mean
    variance; ``odd_bits``: widths at which codes are odd (see ``weights.QuantizedWeight``).
    Raises InputError for a value that cannot be.
    """

    importance: str = "energy"
    calibrate: str = "mse"
    refit: bool = True
    bn: bool = True
    compensate: bool = True
    compensate_bits: int = 4
    sweeps: int = 1
    ridge: float = 0.01
    odd_bits: tuple[int, ...] = (2,)

    def __post_init__(self) -> None:
        for name, what, known in (
            ("importance", "importance", IMPORTANCES),
            ("calibrate", "calibration method", METHODS),
        ):
            if getattr(self, name) not in known:
                raise InputError(unknown(what, str(getattr(self, name)), known))
        for name in ("refit", "bn", "compensate"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be true or false, not {getattr(self, name)!r}.")
        if not self.ridge > 0 or self.sweeps < 0:
            raise InputError(
                "ridge must be above 0 and sweeps not negative, not "
                f"{self.ridge!r} and {self.sweeps!r}."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Options":
        """Return the options of a search's settings; raise InputError for an unknown one."""
        for name in settings:
            if name not in SETTINGS:
                raise InputError(unknown("compress option", name, SETTINGS))
        return cls(**settings)
