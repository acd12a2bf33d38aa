"""Searches where parts of Linux are missing, as on macOS and Windows."""

import getpass
import json
import math
import os
import socket
import subprocess
import sys

import pytest

import autocompress as ac
from autocompress.engine.executors.heartbeats import marked, work_folder
from autocompress.engine.executors.reaper import reaped
from autocompress.run import locks
from autocompress.targets.timing import _host_lock

# Takes parts away, runs command lines, and prints their exit statuses and what they said.
CODE = """
import contextlib, io, json, os, signal, subprocess, sys

def away(*_, **__):
    raise OSError("not on this system")

def without_proc(function):
    def guarded(path, *more, **named):
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)
        return function(path, *more, **named)
    return guarded

windows = sys.argv[1] == "windows"
io.open = without_proc(io.open)
for name in ("listdir", "open", "scandir", "stat"):
    setattr(os, name, without_proc(getattr(os, name)))
del os.sched_getaffinity, os.sched_setaffinity
if windows:
    for name in ("fcntl", "grp", "pwd", "resource", "termios"):
        sys.modules[name] = None
    for name in ("fork", "getpgid", "getpgrp", "getuid", "killpg", "setsid"):
        delattr(os, name)
    del signal.SIGKILL, signal.SIGHUP, signal.SIGUSR1
    os.kill = os.symlink = subprocess.Popen.__init__ = away

from autocompress import cli

for line in json.loads(sys.argv[2]):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        status = cli.main(line.split())
    print(json.dumps([status, out.getvalue(), error.getvalue()]))
"""
CONFIG = """
[task]
name = "digits"
epochs = 1
[search]
space = "bits"
sampler = "random"
trials = 3
"""
SECONDS = ("--trial-seconds", "9.5", "trial_seconds = 9.5")
MEMORY = ("--trial-memory", "1000", "trial_memory_bytes = 1,000")


@pytest.fixture
def on(tmp_path):
    """Return a function that runs command lines on another system."""
    (tmp_path / "c.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "tmp").mkdir()  # locks are others there
    named = {name: value for name, value in os.environ.items() if name not in ("USER", "LOGNAME")}

    def run(system: str, *lines: str) -> list[tuple[int, str, str]]:
        done = subprocess.run(
            [sys.executable, "-c", CODE, system, json.dumps(lines)], cwd=tmp_path,
            env=named | {"TMPDIR": str(tmp_path / "tmp")}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


@pytest.mark.parametrize(
    ("system", "targets", "more", "refused"),
    [
        ("windows", ("null", "onnxruntime"), "", (SECONDS, MEMORY)),
        ("macos", ("null",), "--trial-seconds 600", (MEMORY,)),
    ],
)
def test_a_search_finds_what_it_finds_on_linux(on, tmp_path, system, targets, more, refused):
    """A limit that cannot be kept is refused, and ``status`` tells what is missing."""
    lines = [
        line
        for target in targets
        for line in (
            f"search c.toml --run {target} --target {target} --quiet {more}",
            f"resume {target} --trials 1 --quiet",
            f"status {target}",
        )
    ]
    limits = [f"search c.toml --run other {option} {value}" for option, value, _ in refused]
    said = on(system, *lines, *limits)
    lost = ["the peak memory of loading", "measuring on one core", *(each[0] for each in refused)]
    for place, target in enumerate(targets):
        done = said[3 * place : 3 * place + 3]
        assert [(code, error) for code, _, error in done] == [(0, "")] * 3
        status = done[2][1]
        assert "4 of 4 completed" in status
        assert status.splitlines()[-1] == f"missing on this system: {', '.join(lost)}"
        here = ac.search_config(
            tmp_path / "c.toml", run_dir=tmp_path / "here" / target, overrides={"target": target}
        )
        here.resume(trials=1)
        there = ac.open_run(tmp_path / target)
        found, wanted = (
            [(score.plan, score.outcome, score.accuracy, score.sha256) for score in run.scores]
            for run in (there, here)
        )
        assert found == wanted
        assert len(found) == 4
        assert all(math.isnan(score.peak_memory_bytes) for score in there.scores)
    for (option, _, named), (code, out, error) in zip(refused, said[len(lines) :], strict=True):
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert f"{named} cannot be kept on this one. Take it off ({option} 0)." in error
    assert not (tmp_path / "other").exists()


def test_processes_are_not_asked_where_that_would_end_them(tmp_path, monkeypatch):
    def interrupted(*given):
        raise AssertionError("signal 0 is Ctrl-C there")

    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(os, "kill", interrupted)
    me = f"process 999999999 on {socket.gethostname()}"
    assert locks._alive(me, 30.0)
    assert not locks._alive(me, 90.0)
    with work_folder(tmp_path) as folder:
        (folder / f"{socket.gethostname()}-999999999.json").write_text("{}", encoding="utf-8")
        assert [worker.pid for worker in marked(tmp_path)] == [999999999]


def test_nothing_is_reaped_without_groups(monkeypatch):
    monkeypatch.delattr(os, "killpg")
    monkeypatch.setattr(subprocess, "Popen", None)
    with reaped("mark"):
        pass


def test_a_user_without_a_name_has_a_lock(monkeypatch):
    def nameless():
        raise ModuleNotFoundError("No module named 'pwd'")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert _host_lock().lock_file.endswith("autocompress-timing-user.lock")
