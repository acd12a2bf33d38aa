"""What names, paths and mappings become."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.core.space import SpaceTemplate
from autocompress.errors import AutocompressError, ConfigError, InputError, SpaceError, TaskError
from autocompress.models.trace import trace
from autocompress.registry import find_space, make_task, resolve_space, spaces_directory
from autocompress.targets import TARGETS, make_target
from autocompress.tasks.base import Task

SHIPPED = sorted(path.stem for path in spaces_directory().glob("*.toml"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, and what is imported from it is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("mine", "typo"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def test_a_space_is_a_name_a_path_a_mapping_or_itself(tmp_path: Path) -> None:
    assert SHIPPED == ["bits", "prune", "ptq"]
    mapping = {"*/w_bits": [8, 4], "fc/keep": (0.5, 1.0)}
    template = find_space(mapping)
    assert template == SpaceTemplate((("*/w_bits", (4, 8)), ("fc/keep", (0.5, 1.0))))
    assert mapping == {"*/w_bits": [8, 4], "fc/keep": (0.5, 1.0)}
    assert find_space(template) is template
    path = tmp_path / "mine.toml"
    path.write_text('exclude = ["fc"]\n[knobs]\n"*/w_bits" = [4]\n')
    for given in (path, str(path)):
        assert find_space(given) == SpaceTemplate((("*/w_bits", (4,)),), ("fc",))
    assert find_space("prune") == find_space(spaces_directory() / "prune.toml")


@pytest.mark.parametrize(
    ("space", "error", "text"),
    [
        ("ptg", InputError, r"Did you mean 'ptq'\?.* A path ends in \.toml"),
        (Path("ptq/more"), InputError, "Unknown search space"),
        ("no/such.toml", ConfigError, "such.toml"),
        (None, InputError, "a path or a mapping, not NoneType"),
        (["*/w_bits"], InputError, "not list"),
        ({"*/w_bit": [4]}, SpaceError, "w_bits"),
    ],
)
def test_what_is_no_space_is_refused(space, error, text) -> None:
    with pytest.raises(error, match=text):
        find_space(space)


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_suit_every_target(name: str, target: str) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    network = trace(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), (torch.randn(1, 6),)
    )
    space = resolve_space(find_space(name), network, make_target(target))
    units, layers = {"0/keep"}, {f"{n}/{k}" for n in ("0", "2") for k in ("w_bits", "a_bits")}
    wanted = {"prune": units, "bits": layers, "ptq": units | layers}
    assert set(space.knobs) == wanted[name]
    with pytest.raises(SpaceError, match=r"'1/w_bits' matches nothing"):
        resolve_space(find_space({"1/w_bits": [4]}), network, make_target(target))


MINE = """
import torch
from autocompress import Task

def task(classes, scale=1.0):
    model = torch.nn.Linear(3, classes).eval()
    x = torch.full((2, 3), scale)
    return Task(model=model, example_inputs=(x[:1],), calibration=[(x,)], evaluate=lambda _: 1.0)

def broken():
    raise ValueError('no data')

def nothing():
    return None
"""


def test_a_factory_of_ones_own_is_found_in_the_current_folder(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)
    options = {"name": "mine:task", "classes": 4, "scale": 2.0}
    task = make_task(options)
    assert isinstance(task, Task)
    assert task.model.out_features == 4
    assert float(task.example_inputs[0][0, 0]) == 2.0
    assert options == {"name": "mine:task", "classes": 4, "scale": 2.0}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "mine:broken"}, "ValueError: no data"),
        ({"name": "mine:broken", "size": 3}, "does not take these options"),
        ({"name": "mine:task"}, "does not take these options: .*'classes'"),
        ({"name": "mine:nothing"}, r"must return an autocompress\.Task; mine:nothing did not"),
        ({"name": "mine:absent"}, r"AttributeError: .*absent"),
        ({"name": "typo:broken"}, "SyntaxError"),
        ({"name": ":"}, "must be importable"),
        ({"name": ".x:y"}, "must be importable"),
        ({"name": "os:sep"}, "must be importable"),
        ({"name": "digit"}, r"'digits'\?.* Your own is package\.module:factory"),
        ({"name": "digits", "seed": -1}, "seed must be"),
        ({"name": "digits", "network": ["a"]}, "network"),
    ],
)
def test_factories_that_cannot_be_used(folder: Path, options, text) -> None:
    (folder / "mine.py").write_text(MINE)
    (folder / "typo.py").write_text("def broken(:\n")
    with pytest.raises(TaskError, match=text):
        make_task(options)


def test_what_a_factory_raises_on_purpose_is_handed_on(folder: Path) -> None:
    (folder / "mine.py").write_text(
        "from autocompress.errors import TraceError\n"
        "def task():\n    raise TraceError('cannot be traced')\n"
    )
    with pytest.raises(AutocompressError, match=r"^cannot be traced$"):
        make_task({"name": "mine:task"})
