"""README and docs are true: snippets run, commands exist, links lead somewhere."""

import argparse
import re
from pathlib import Path

import pytest

from autocompress import cli
from autocompress.core.config import Config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
EVERY = "\n".join(TEXTS.values())


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EVERY, re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks("python")
    assert len(found) == 3
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model.onnx.md").is_file()
    printed = capsys.readouterr().out
    assert "uncompressed" in printed
    assert printed.splitlines()[-2:] == ["(1, 10)", "(1, 10)"]
    reference = names["run"].front().reference
    assert reference.accuracy > 0.8  # it has learned something


def test_the_configuration_is_read(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    config = Config.read(path)
    assert config.task is not None
    assert config.budget
    assert config.compress


def test_every_command_and_option_is_there() -> None:
    parser, commands = cli._parser()
    for name, command in commands.items():
        assert f"autocompress {name}" in EVERY
        for action in command._actions:
            if isinstance(action, argparse._HelpAction) or action.help == argparse.SUPPRESS:
                continue
            for option in action.option_strings:
                assert option in EVERY, f"{name} {option}"
    assert parser.prog == "autocompress"


def test_the_readme_is_short() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= 160


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [
        link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXTS[page]) if "://" not in link
    ]
    for link in links:
        assert (page.parent / link).exists(), link
    for script in re.findall(r"experiments/[\w/.]+\.\w+", TEXTS[page]):
        assert (ROOT / script).exists(), script
    for script in re.findall(r"`(\w+\.py)`", TEXTS[page]):
        assert (ROOT / "experiments" / "benchmarks" / script).exists(), script


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in TEXTS[ROOT / "README.md"]
