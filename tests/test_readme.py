"""The README is true: its snippets run, its commands exist, its links lead somewhere."""

import argparse
import re
from pathlib import Path

import pytest

from autocompress import cli
from autocompress.core.config import Config

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks("python")
    assert len(found) == 2
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model.onnx.md").is_file()
    printed = capsys.readouterr().out
    assert "uncompressed" in printed
    assert printed.splitlines()[-1] == "(1, 10)"


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
        assert f"autocompress {name}" in README
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            for option in action.option_strings:
                assert option in README, f"{name} {option}"
    assert parser.prog == "autocompress"


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
    for script in re.findall(r"experiments/[\w/.]+\.\w+", README):
        assert (ROOT / script).exists(), script
