"""Configurations: everything that defines a search, as TOML."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from autocompress.core.budget import Budget
from autocompress.core.execution import Execution
from autocompress.core.score import check_objectives
from autocompress.core.space import SpaceTemplate
from autocompress.core.toml import check_keys, line_of, read_toml
from autocompress.errors import ConfigError, InputError

__all__ = ["SETTINGS", "Config"]

#: The choices of ``transforms.options.Options`` that a search takes from its user.
SETTINGS = ("importance", "calibrate", "refit", "bn", "compensate")
_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "search": ("space", "sampler", "trials", "seed", "objectives", "storage", "study"),
    "compress": SETTINGS,
    "budget": tuple(field.name for field in fields(Budget)),
    "target": ("name", "threads", "batch_size", "portable", "hardware"),
    "run": tuple(field.name for field in fields(Execution)),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """A search as data: task (name and options), space, sampler, budget and target.

    ``task`` is None where the task was given in Python. ``space`` is a name, a path or, in a run
    directory, the rules themselves. ``compress`` holds what differs from the defaults of
    ``transforms.options.Options``. ``hardware`` names a hardware file that latency and energy
    are predicted for, "" for this machine. ``portable``: files answer alike on every CPU.
    ``storage``: the URL of the database that keeps the study, under the name ``study``, "" for a
    file in the run directory. Raises InputError for a value that cannot be.
    """

    task: Mapping[str, Any] | None = None
    space: str | SpaceTemplate = "ptq"
    sampler: str = "guided"
    trials: int = 100
    seed: int = 0
    objectives: tuple[str, ...] = ("accuracy", "size")
    compress: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    target: str = "onnxruntime"
    threads: int = 1
    batch_size: int = 1
    portable: bool = True
    hardware: str = ""
    storage: str = ""
    study: str = ""
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("seed", 0), ("threads", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int)
                or not (least <= value <= 2**53)
            ):
                raise InputError(f"{name} must be an integer of at least {least}, not {value!r}.")
        if not isinstance(self.portable, bool):
            raise InputError(f"portable must be true or false, not {self.portable!r}.")
        for name in ("sampler", "target", "hardware", "storage", "study"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} must be a name in quotes, not {getattr(self, name)!r}.")
        object.__setattr__(self, "objectives", check_objectives(self.objectives))
        if self.hardware.endswith(".toml"):  # found again from any folder
            object.__setattr__(self, "hardware", str(Path(self.hardware).absolute()))

    def check_hardware(self) -> None:
        """Raise InputError if energy is limited or improved and no hardware says what it is."""
        if not self.hardware and (self.budget.max_energy_mj or "energy" in self.objectives):
            raise InputError(
                'Energy is predicted for hardware: name it (hardware = "avx2-core" in [target], or '
                "--hardware), or drop the limit and the objective."
            )

    @classmethod
    def read(cls, path: Path, *, frozen: bool = False) -> "Config":
        """Read a TOML file; raise ConfigError that names file and line.

        ``frozen``: that of a run directory, where an older version left out what it did not know:
        its files were not portable.
        """
        table, text = read_toml(path)
        check_keys(table, ("task", *_SECTIONS, "space"), text, path)
        target = table.get("target")
        if isinstance(target, dict) and "device" in target:  # its name in the version before
            target.setdefault("hardware", target.pop("device"))
        for name, section in table.items():
            if not isinstance(section, dict):
                raise ConfigError(f"{path}, line {line_of(text, name)}: [{name}] must be a table.")
            if name in _SECTIONS:
                check_keys(section, _SECTIONS[name], text, path, name)
        task, search = table.get("task"), dict(table.get("search", {}))
        if task is not None and not isinstance(task.get("name"), str):
            raise ConfigError(
                f'{path}: [task] needs name = "…" (a task, or package.module:factory).'
            )
        target = dict(table.get("target", {}))
        if "space" in table:
            if "space" in search:
                raise ConfigError(
                    f"{path}, line {line_of(text, 'space', 'search')}: a space is a name in "
                    "[search] or the tables of [space], one of the two. Drop one."
                )
            search["space"] = SpaceTemplate.from_table(table["space"], text, path, "space")
        elif not isinstance(search.get("space", ""), str):
            raise ConfigError(f"{path}: space must be a name or a path in quotes.")
        if isinstance(search.get("space"), str) and search["space"].endswith(".toml"):
            search["space"] = str(path.parent / search["space"])
        if isinstance(target.get("hardware"), str) and target["hardware"].endswith(".toml"):
            target["hardware"] = str(path.parent / target["hardware"])
        if frozen:
            target.setdefault("portable", False)
        if "name" in target:
            target["target"] = target.pop("name")
        try:
            budget = Budget(**table.get("budget", {}))
            compress = table.get("compress", {})
            execution = Execution(**table.get("run", {}))
            return cls(
                task=task, budget=budget, compress=compress, execution=execution, **search, **target
            )
        except InputError as error:
            raise ConfigError(f"{path}: {error}") from error

    def override(self, **values: Any) -> "Config":
        """Return a copy with other values; fields of the budget and the execution by their names.

        None leaves a value as it is, but those of the execution.
        """
        how = {name: values.pop(name) for name in _SECTIONS["run"] if name in values}
        given = {name: value for name, value in values.items() if value is not None}
        limits = {n: given.pop(n) for n in _SECTIONS["budget"] if n in given}
        budget, execution = replace(self.budget, **limits), self.execution.changed(how)
        return replace(self, budget=budget, execution=execution, **given)

    def to_toml(self) -> str:
        """Return the configuration as TOML; a space that is a template is written out."""
        limits = {name: getattr(self.budget, name) for name in _SECTIONS["budget"]}
        document: dict[str, Any] = {
            **({} if self.task is None else {"task": dict(self.task)}),
            "search": {
                **({"space": self.space} if isinstance(self.space, str) else {}),
                "sampler": self.sampler, "trials": self.trials, "seed": self.seed,
                "objectives": list(self.objectives),
                **({"storage": self.storage, "study": self.study} if self.storage else {}),
            },
            **({"compress": dict(self.compress)} if self.compress else {}),
            "budget": {name: limit for name, limit in limits.items() if limit is not None},
            "target": {
                "name": self.target, "threads": self.threads, "batch_size": self.batch_size,
                "portable": self.portable,
                **({"hardware": self.hardware} if self.hardware else {}),
            },
            "run": {n: v for n, v in asdict(self.execution).items() if v not in (None, "")},
            **({} if isinstance(self.space, str) else {"space": self.space.to_dict()}),
        }  # fmt: skip
        return tomli_w.dumps(document)
