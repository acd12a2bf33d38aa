"""What the package promises as a whole: its names, its wheel, its command."""

import graphlib
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import grimp
import pytest

import autocompress as ac
from autocompress.cost.hardware import hardware_names

ROOT = Path(__file__).parent.parent


def test_every_exported_name_is_there_and_none_is_a_submodule() -> None:
    assert list(ac.__all__) == sorted(ac.__all__)
    modules = {module.name for module in pkgutil.iter_modules(ac.__path__)}
    for name in ac.__all__:
        assert name not in modules
        assert getattr(ac, name).__doc__
    with pytest.raises(AttributeError, match="serch"):
        _ = ac.serch


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, autocompress; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, ROOT],
        capture_output=True, check=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_carries_spaces_licence_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    spaces = {path.name for path in (ROOT / "search_spaces").glob("*.toml")}
    assert {f"autocompress/search_spaces/{name}" for name in spaces} <= set(names)
    assert {f"autocompress/cost/devices/{name}.toml" for name in hardware_names()} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests/", "experiments/")) for name in names)


def test_the_wheel_searches_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """In an environment with the dependencies and the wheel, and nothing of the checkout."""
    place = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    # the dependencies come from this environment's folder: .pth lines of editable installs in it
    # are not read through PYTHONPATH
    installed = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site,) = place.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        version = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        assert b"Requires-Dist: optuna" in archive.read(version)
    pip = [place / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    assert (site / "autocompress").is_dir()
    (tmp_path / "digits.toml").write_text(
        '[task]\nname = "digits"\nepochs = 1\n[search]\nspace = "ptq"\nsampler = "random"\n'
        "trials = 3\n"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{site}:{installed}"}

    def command(*arguments: str) -> str:
        return subprocess.run(
            [place / "bin/autocompress", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip

    assert "search" in command("--help")
    found = command("search", "digits.toml", "--quiet")
    assert "uncompressed" in found
    assert (tmp_path / "runs/digits/front.csv").is_file()
    code = "import autocompress; print(autocompress.__file__)"
    python = subprocess.run(
        [place / "bin/python", "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(python.stdout.strip()).is_relative_to(site)


def test_the_command_is_on_the_path_and_knows_its_version() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        assert "autocompress" in tomllib.load(file)["project"]["scripts"]
    command = shutil.which("autocompress", path=str(Path(sys.executable).parent))
    assert command is not None
    for given in ([command], [sys.executable, "-m", "autocompress"]):
        done = subprocess.run([*given, "--version"], capture_output=True, text=True, check=True)
        assert ac.__version__ in done.stdout


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Imports for type checking and inside functions count too."""
    graph = grimp.build_graph("autocompress", exclude_type_checking_imports=False, cache_dir=None)
    imported = {m: graph.find_modules_directly_imported_by(m) for m in graph.modules}
    assert sum(map(len, imported.values())) > 500
    graphlib.TopologicalSorter(imported).prepare()  # raises CycleError, which names the files
