import csv
import io
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from autocompress import api, cli
from autocompress.errors import ArtifactError, ConfigError, RunError, TaskError, TraceError
from autocompress.report.front import Front
from autocompress.searching.driver import Progress
from autocompress.spec.budget import Budget
from autocompress.targets.timing import Timing
from tests.report.made_up import failure, files, front, study


@dataclass
class FakeRun:
    directory: Path
    scores: list = field(default_factory=lambda: study(30))
    budget: Budget = field(default_factory=Budget)
    note: str = ""
    calls: list = field(default_factory=list)
    during: object = None

    def front(self) -> Front:
        return front(self.scores, self.directory, budget=self.budget)

    def resume(self, trials=None, progress=None):
        self.calls.append(trials)
        if self.during is not None:
            self.during(progress)
        return self


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Stand for the only run there is, whatever is opened or searched."""
    made = FakeRun(tmp_path / "my run")
    files(made.scores, made.directory)
    (made.directory / "config.toml").write_text("")

    def search_config(path, *, run_dir=None, overrides=None, progress=None):
        made.calls.append((path, run_dir, overrides))
        if made.during is not None:
            made.during(progress)
        return made

    monkeypatch.setattr(api, "open_run", lambda directory, task=None: made)
    monkeypatch.setattr(api, "search_config", search_config)
    return made


def one_error_line(captured, text=""):
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("autocompress: error: ")
    assert text in lines[0]
    assert captured.out == ""


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = ["torch", "optuna", "onnx", "onnxruntime", "pandas", "matplotlib", "numpy", "tqdm"]
    code = f"import sys, autocompress.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], *([c] for c in ("search", "resume", "front", "pick"))])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = {
        "search": "--run --trials --latency-budget --max-size --sampler --target --workers --seed "
        "--quiet",
        "resume": "--trials --quiet",
        "front": "--format",
        "pick": "--max-latency --max-size --min-accuracy --output",
        "": "search resume front pick bench --version",
    }[command[0] if command else ""]
    assert all(option in text for option in options.split())


def test_search_hands_over_what_was_given(run, capsys):
    arguments = (
        "search some/digits.toml --run there --trials 7 --latency-budget 1.5 --max-size 300000 "
        "--sampler nsga2 --target null --workers 1 --seed 0"
    )
    assert cli.main(arguments.split()) == 0
    (call,) = run.calls
    assert call == (
        Path("some/digits.toml"),
        Path("there"),
        {
            "trials": 7, "latency_ms": 1.5, "max_size_bytes": 300_000, "sampler": "nsga2",
            "target": "null", "seed": 0,
        },
    )  # fmt: skip
    capsys.readouterr()
    assert cli.main(["search", "some/digits.toml"]) == 0
    assert run.calls[1] == (Path("some/digits.toml"), Path("runs/digits"), {})


def test_search_prints_the_front_the_picture_and_the_way_to_export(run, capsys):
    (run.directory / "front.png").write_text("")
    assert cli.main(["search", "digits.toml"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(run.front()))
    assert f"picture: {run.directory / 'front.png'}\n" in out
    assert f"run directory: {run.directory}\n" in out
    assert f"autocompress pick '{run.directory}' --output model.onnx\n" in out


def progress_of(run):
    def during(report):
        report(Progress(0, 30, note="tracing the model"))
        report(Progress(2, 30))
        report(Progress(3, 30, run.scores[3], "7.1× smaller, -0.3 points"))
        for number in range(5):
            report(Progress(3, 30, failure(number, f"broken\n{number}"), "7.1× smaller"))
        report(Progress(30, 30, run.scores[4], "8.0× smaller"))
        report(Progress(30, 30, note="scoring the front on the test split"))

    return during


@pytest.mark.parametrize("command", [["search", "digits.toml"], ["resume", "run"]])
def test_progress_goes_to_stderr_and_quiet_leaves_the_result(command, run, capsys):
    run.during = progress_of(run)
    run.note = "the search ended after 30 trials: all had been scored"
    assert cli.main(command) == 0
    loud = capsys.readouterr()
    assert cli.main([*command, "--quiet"]) == 0
    silent = capsys.readouterr()
    assert silent.err == ""
    assert silent.out == loud.out
    assert "tracing the model …" in loud.err
    assert "trials 2/30" in loud.err
    assert "trials 30/30" in loud.err
    assert "best 8.0× smaller, 5 failed" in loud.err
    assert "left" in loud.err
    assert "trial 2 failed: broken 2" in loud.err
    assert "broken 3" not in loud.err  # three are enough
    assert "note: the search ended" in loud.err


def test_resume_hands_over_the_number_of_trials(run):
    assert cli.main(["resume", "run", "--trials", "5", "--quiet"]) == 0
    assert cli.main(["resume", "run", "--quiet"]) == 0
    assert run.calls == [5, None]


def interrupt(progress):
    progress(Progress(3, 30))
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["search", "resume"])
@pytest.mark.parametrize("quiet", [True, False])
def test_an_interruption_says_how_to_go_on(command, quiet, run, tmp_path, capsys):
    run.during = interrupt
    run.scores.append(failure(30))
    given = ["search", "c.toml", "--run"] if command == "search" else ["resume"]
    assert cli.main([*given, str(run.directory), *(["--quiet"] * quiet)]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == (
        f"interrupted; 30 trials are kept; continue with: autocompress resume '{run.directory}'"
    )


def test_an_interruption_before_the_first_trial_is_not_resumable(run, tmp_path, capsys):
    run.during = interrupt
    assert cli.main(["search", "c.toml", "--run", str(tmp_path / "new")]) == 130
    assert "start again with the same command" in capsys.readouterr().err


def test_a_second_interruption_ends_the_counting(run, monkeypatch, capsys):
    run.during = interrupt

    def damaged(directory, task=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "open_run", damaged)
    assert cli.main(["search", "c.toml", "--run", str(run.directory), "--quiet"]) == 130
    assert "the finished trials are kept" in capsys.readouterr().err
    assert cli.main(["front", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", ["search", "resume", "front"])
def test_a_front_beyond_the_budget_is_status_3_with_the_closest_miss(command, run, capsys):
    run.budget = Budget(latency_ms=0.01)
    assert cli.main([command, "x.toml"]) == 3
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "The closest miss is trial 15: accuracy 0.8300" in line
    assert "closest miss" in captured.out
    assert "export one" not in captured.out


def test_the_front_as_a_table(run, capsys):
    assert cli.main(["front", "x"]) == 0
    assert capsys.readouterr().out == f"{run.front()}\n"


@pytest.mark.parametrize("latency", [None, 0.01])
def test_csv_and_json_alone_are_on_stdout(latency, run, capsys):
    run.budget = Budget(latency_ms=latency)
    status = 0 if latency is None else 3
    assert cli.main(["front", "x", "--format", "csv"]) == status
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert cli.main(["front", "x", "--format", "json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert [int(row["trial"]) for row in rows] == [row["trial"] for row in found]
    assert [int(row["trial"]) for row in rows][: len(run.front())] == [
        pick.score.trial for pick in run.front()
    ]


def test_a_front_without_trials_is_status_3(run, capsys):
    run.scores.clear()
    assert cli.main(["front", "x"]) == 3
    one_error_line(capsys.readouterr(), "completed trial")


def test_pick_prints_the_figures_and_exports(run, tmp_path, capsys):
    limits = ["--max-latency", "0.9", "--max-size", "260000", "--min-accuracy", "0.7"]
    wanted = run.front().pick(max_latency_ms=0.9, max_size_bytes=260_000, min_accuracy=0.7)
    wanted = wanted.score
    sizes = {s.trial: (run.directory / "artifacts" / s.artifact).stat().st_size for s in run.scores}
    assert sizes[wanted.trial] > 0
    output = tmp_path / "out" / "model.onnx"
    assert cli.main(["pick", "x", *limits, "--output", str(output)]) == 0
    out = capsys.readouterr().out
    assert f"{wanted.accuracy:.4f}" in out
    assert wanted.sha256 in out
    assert f"written: {output}\n" in out
    assert output.exists()
    assert json.loads(Path(f"{output}.json").read_text())["trial"] == wanted.trial
    assert cli.main(["pick", "x", *limits]) == 0
    assert "written" not in capsys.readouterr().out


def test_pick_without_a_model_is_status_3(run, tmp_path, capsys):
    output = tmp_path / "model.onnx"
    assert cli.main(["pick", "x", "--max-size", "10", "--output", str(output)]) == 3
    one_error_line(capsys.readouterr(), "size at most 10 bytes")
    assert not output.exists()


def test_pick_of_a_truncated_file_is_status_2(run, tmp_path, capsys):
    pick = run.front().pick()
    pick.path.write_bytes(pick.path.read_bytes()[:5])
    assert cli.main(["pick", "x", "--output", str(tmp_path / "model.onnx")]) == 2
    one_error_line(capsys.readouterr(), "sha256")


def test_bench_prints_the_interval_and_the_reference(monkeypatch, capsys):
    calls = []

    def bench(path, *, threads=1, reference=None, runtime="onnxruntime"):
        calls.append((path, threads, reference, runtime))
        return Timing(0.65149, 0.64, 0.67, 1.06, 0.6146, "cpu", True, ())

    monkeypatch.setattr(api, "bench", bench)
    assert cli.main(["bench", "a.onnx"]) == 0
    text = capsys.readouterr().out
    assert text == "latency: 0.6515 ms (95 %: 0.64 to 0.67), CPU clock, threads: 1\n"
    assert cli.main(["bench", "a.onnx", "--reference", "b.onnx", "--threads", "2"]) == 0
    assert "reference: 1.06 ms; the file takes 0.615 times that" in capsys.readouterr().out
    assert calls == [
        (Path("a.onnx"), 1, None, "onnxruntime"),
        (Path("a.onnx"), 2, Path("b.onnx"), "onnxruntime"),
    ]


@pytest.mark.parametrize(
    "error", [ConfigError, RunError, TaskError, TraceError, ArtifactError], ids=lambda e: e.__name__
)
def test_bad_input_is_one_line_and_status_2(error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error("The rule:\n  the value.\nThe fix.")

    for name in ("search_config", "open_run", "bench"):
        monkeypatch.setattr(api, name, fail)
    for command in ("search", "resume", "front", "pick", "bench"):
        assert cli.main([command, "x"]) == 2
        one_error_line(capsys.readouterr(), "The rule: the value. The fix.")


def test_other_errors_are_not_hidden(monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(api, "open_run", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["front", "x"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("serach x.toml", "Did you mean 'search'?"),
        ("search x.toml --trails 3", "Did you mean '--trials'?"),
        ("search x.toml --trial 3", "Did you mean '--trials'?"),  # no silent abbreviations
        ("search x.toml y.toml", "one argument too many: 'y.toml'"),
        ("search x.toml --trials 0", "at least 1, not '0'"),
        ("search x.toml --trials 1.5", "an integer of at least 1, not '1.5'"),
        ("resume d --trials -3", "at least 1, not '-3'"),
        ("search x.toml --latency-budget nan", "above 0, not 'nan'"),
        ("search x.toml --max-size 0", "above 0, not '0'"),
        (f"search x.toml --trials {10**400}", "an integer of at least 1"),
        ("search x.toml --seed -1", "at least 0, not '-1'"),
        ("pick d --min-accuracy inf", "a number, not 'inf'"),
        ("front d --format xml", "invalid choice: 'xml'"),
        ("front", "required: DIR"),
        ("", "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(arguments, text, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    one_error_line(capsys.readouterr(), text)


def test_more_than_one_worker_is_refused(run, capsys):
    assert cli.main(["search", "x.toml", "--workers", "2"]) == 2
    one_error_line(capsys.readouterr(), "--workers must be 1")
    assert run.calls == []


def test_missing_files_end_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["search", "no.toml"], ["resume", "no"], ["front", "no"], ["pick", "no"]):
        assert cli.main(command) == 2
        one_error_line(capsys.readouterr(), "no")
    assert list(tmp_path.iterdir()) == []


def test_libraries_stay_off_the_screen(run, capsys):
    def during(_):
        warnings.warn("noise", UserWarning, stacklevel=1)
        logging.getLogger("some.library").warning("more noise")

    run.during = during
    before = logging.root.manager.disable
    assert cli.main(["search", "x.toml"]) == 0
    assert "noise" not in capsys.readouterr().err
    assert logging.root.manager.disable == before


def test_a_reader_that_leaves_ends_quietly():
    code = (
        "import sys; from autocompress import cli, api; from tests.test_cli import FakeRun\n"
        "from pathlib import Path\n"
        "api.open_run = lambda d: FakeRun(Path(d))\n"
        "sys.exit(cli.main(['front', 'x', '--format', 'json']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    child.stdout.close()
    error = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait() == 0
    assert error == ""


def child_of(arguments, tmp_path, **streams):
    """Start a whole search on digits in a process of its own."""
    config = tmp_path / "c.toml"
    config.write_text(
        '[task]\nname = "digits"\nepochs = 1\n[search]\nspace = "bits"\nsampler = "random"\n'
        'trials = 3\n[target]\nname = "null"\n'
    )
    command = [sys.executable, "-m", "autocompress", "search", str(config), "--run", "run"]
    return subprocess.Popen([*command, *arguments], cwd=tmp_path, **streams)


def test_a_screen_that_goes_away_does_not_end_the_search(tmp_path):
    pipe = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    child = child_of([], tmp_path, **pipe)
    child.stderr.close()
    assert child.wait(timeout=120) == 0
    assert (tmp_path / "run" / "front.csv").exists()


def test_closed_streams_do_not_end_the_search(tmp_path):
    child = child_of([], tmp_path, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert child.wait(timeout=120) == 0
    assert (tmp_path / "run" / "front.csv").exists()


def test_quiet_shows_the_result_alone(tmp_path):
    child = child_of(["--quiet"], tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = child.communicate(timeout=120)
    assert error == b""
    assert b"uncompressed" in out
    assert child.returncode == 0
