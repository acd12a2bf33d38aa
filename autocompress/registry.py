"""Names become objects here: tasks, search spaces, and the knobs that a space has on a network."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autocompress.core.space import SearchSpace, SpaceTemplate
from autocompress.errors import AutocompressError, InputError, TaskError, unknown
from autocompress.models.network import Network
from autocompress.targets import Target
from autocompress.tasks import TASKS
from autocompress.tasks.base import Task

__all__ = ["find_space", "make_task", "resolve_space", "spaces_directory"]


def spaces_directory() -> Path:
    """Return the folder of the search spaces that come with the package."""
    package = Path(__file__).parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def find_space(space: str | Path | Mapping[str, Any] | SpaceTemplate) -> SpaceTemplate:
    """Return the template of a name, a path or a mapping of patterns to values."""
    if isinstance(space, SpaceTemplate):
        return space
    if isinstance(space, Mapping):
        return SpaceTemplate.of(space)
    if not isinstance(space, (str, Path)):
        raise InputError(f"A space is a name, a path or a mapping, not {type(space).__name__}.")
    path = Path(space)
    if path.suffix == ".toml":
        return SpaceTemplate.read(path)
    known = {file.stem: file for file in spaces_directory().glob("*.toml")}
    if str(space) not in known:
        raise InputError(unknown("search space", str(space), known) + " A path ends in .toml.")
    return SpaceTemplate.read(known[str(space)])


def make_task(options: Mapping[str, Any]) -> Task:
    """Return the task of a name, or of ``package.module:factory``, and its options.

    A module is also looked for in the current folder. Raises TaskError for an unknown name, a
    factory that cannot be imported or raises, or an unknown option.
    """
    values = dict(options)
    name = values.pop("name")
    factory = _factory(name)
    try:
        inspect.signature(factory).bind(**values)
    except TypeError as error:
        raise TaskError(f"Task '{name}' does not take these options: {error}.") from error
    try:
        task = factory(**values)
    except AutocompressError:
        raise
    except Exception as error:  # the user's code raises what it likes
        raise TaskError(
            f"A task factory must return a task: {name} raised {type(error).__name__}: {error}."
        ) from error
    if not isinstance(task, Task):
        raise TaskError(f"A task factory must return an autocompress.Task; {name} did not.")
    return task


def _factory(name: str) -> Callable[..., Task]:
    if ":" not in name:
        if name not in TASKS:
            raise TaskError(unknown("task", name, TASKS) + " Your own is package.module:factory.")
        return TASKS[name]
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        factory: Callable[..., Task] = getattr(importlib.import_module(module), attribute)
        inspect.signature(factory)
    except Exception as error:  # importing runs the user's code
        raise TaskError(
            f"A task factory must be importable, as package.module:factory: {name} is not "
            f"({type(error).__name__}: {error})."
        ) from error
    return factory


def resolve_space(template: SpaceTemplate, network: Network, target: Target) -> SearchSpace:
    """Return what a template leaves to search of a network on a target; raise SpaceError."""
    layers = [layer.name for layer in network.layers]
    units = [unit.name for unit in network.units]
    return template.resolve(layers, units, target.abilities)
