"""The exceptions that autocompress raises on purpose.

::

    AutocompressError
    ├── InputError            what the user gave cannot be used
    │   ├── ConfigError       a TOML file: unknown key, wrong type, bad syntax
    │   ├── SpaceError        a search space: unknown layer, knob or value
    │   ├── PlanError         a plan that does not fit its network
    │   ├── TaskError         a task: model, example inputs, calibration, evaluate
    │   └── RunError          a run directory: other search, locked, damaged, unwritable
    ├── TraceError            a network that cannot be exported as a graph
    ├── ArtifactError         a file that is missing, truncated or not loadable
    ├── TrialError            one trial failed; the study goes on
    └── NoModelError          nothing meets the constraints

The exit status of the command line is 3 for NoModelError and 2 for all others.
Messages state the rule, then the value, then the fix.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ArtifactError",
    "AutocompressError",
    "ConfigError",
    "InputError",
    "NoModelError",
    "PlanError",
    "RunError",
    "SpaceError",
    "TaskError",
    "TraceError",
    "TrialError",
    "unknown",
]


class AutocompressError(Exception):
    """Any error that autocompress raises on purpose."""


class InputError(AutocompressError):
    """What the user gave cannot be used."""


class ConfigError(InputError):
    """A configuration file has an unknown key, a wrong type or bad syntax."""


class SpaceError(InputError):
    """A search space names an unknown layer, knob or value."""


class PlanError(InputError):
    """A plan does not fit its network."""


class TaskError(InputError):
    """A task's model, inputs, calibration data or evaluation cannot be used."""


class RunError(InputError):
    """A run directory belongs to another search, is locked, damaged or unwritable."""


class TraceError(AutocompressError):
    """A network cannot be exported as a graph."""


class ArtifactError(AutocompressError):
    """A model file is missing, truncated or not loadable."""


class TrialError(AutocompressError):
    """One trial failed; the study goes on."""


class NoModelError(AutocompressError):
    """No model meets the constraints."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the one sentence for a name that does not exist, with the nearest known one."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    guess = f" Did you mean '{near[0]}'?" if near else ""
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"Unknown {kind} '{name}'.{guess} Known: {shown or 'none'}."
