"""The tasks that come with the package, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from autocompress.tasks.base import Task
from autocompress.tasks.digits import digits
from autocompress.tasks.fashion_mnist import fashion_mnist

__all__ = ["TASKS", "Task"]

#: Factories by name; their keyword arguments are the options of [task] in a configuration.
TASKS: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {"digits": digits, "fashion_mnist": fashion_mnist}
)
