import csv
import io
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from autocompress import api, cli
from autocompress.core.budget import Budget
from autocompress.cost.fit_latency import Calibration
from autocompress.engine.progress import Progress
from autocompress.errors import (
    ArtifactError,
    ConfigError,
    RunError,
    TaskError,
    TraceError,
    TrialError,
)
from autocompress.report.front import Front
from autocompress.report.receipt import Receipt
from autocompress.run import bench as benchmarks
from autocompress.run.bench import Calibrated
from autocompress.targets.checkfile import Check
from autocompress.targets.timing import Timing
from tests.report.made_up import failure, files, front, score, study
from tests.report.test_receipt import LINES
from tests.run.test_bench import write
from tests.test_api import SPACE
from tests.waiting import FAR


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

    def explain(self, trial):
        self.calls.append(trial)
        return Receipt(score=self.scores[trial], reference=self.scores[0], lines=LINES)

    def resume(
        self, trials=None, progress=None, *, sampler=None, until_converged=False, execution=None
    ):
        more = tuple(given for given in (sampler, execution) if given)
        self.calls.append((trials, *more) if more else trials)
        if self.during is not None:
            self.during(progress)
        return self


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Stand for the only run there is, whatever is opened or searched."""
    made = FakeRun(tmp_path / "my run")
    files(made.scores, made.directory)
    (made.directory / "config.toml").write_text("")

    def search_config(
        path, *, run_dir=None, overrides=None, start_from=None, until_converged=False, progress=None
    ):
        more = (start_from, until_converged) if start_from or until_converged else ()
        made.calls.append((path, run_dir, overrides, *more))
        if made.during is not None:
            made.during(progress)
        return made

    monkeypatch.setattr(api, "open_run", lambda directory, task=None, storage="": made)
    monkeypatch.setattr(api, "search_config", search_config)
    return made


def one_error_line(captured, text=""):
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("autocompress: error: ")
    assert text in lines[0]
    assert captured.out == ""


def test_importing_the_command_line_imports_nothing_heavy():
    heavy = [
        "torch", "optuna", "onnx", "onnxruntime", "openvino", "pandas", "matplotlib", "numpy",
        "scipy", "tqdm",
    ]  # fmt: skip
    code = f"import sys, autocompress.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


COMMANDS = (
    "search", "resume", "status", "front", "pick", "verify", "bench", "fit-latency", "explain",
)  # fmt: skip


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)])
def test_help_names_every_option(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = {
        "search": "--run --trials --latency-budget --max-size --max-energy --max-memory --hardware "
        "--sampler --from --target --seed --until-converged --quiet --workers --ray-address "
        "--storage --trial-seconds --trial-memory",
        "resume": "--trials --sampler --until-converged --quiet --workers --ray-address --storage "
        "--trial-seconds --trial-memory",
        "status": "--format",
        "front": "--format",
        "pick": "--max-latency --max-size --max-energy --max-memory --min-accuracy --output "
        "--no-check",
        "verify": "--check --format",
        "bench": "--reference --threads --runtime",
        "fit-latency": "--target --threads --seconds --quiet",
        "explain": "--trial --format",
        "": " ".join((*COMMANDS, "--version")),
    }[command[0] if command else ""]
    assert [option for option in options.split() if option not in text] == []


def test_the_commands_are_all_there_are():
    assert tuple(cli._parser()[1]) == COMMANDS


def test_search_hands_over_what_was_given(run, capsys):
    arguments = (
        "search some/digits.toml --run there --trials 7 --latency-budget 1.5 --max-size 300000 "
        "--max-energy 0.25 --max-memory 64000 --hardware cortex-m7 --sampler nsga2 --target null "
        "--workers 3 --seed 0 --storage sqlite:///x.db --trial-seconds 9.5 --trial-memory 1000"
    )
    assert cli.main(arguments.split()) == 0
    (call,) = run.calls
    assert call == (
        Path("some/digits.toml"),
        Path("there"),
        {
            "trials": 7, "latency_ms": 1.5, "max_size_bytes": 300_000, "max_energy_mj": 0.25,
            "max_memory_bytes": 64_000, "hardware": "cortex-m7", "sampler": "nsga2",
            "target": "null", "seed": 0, "storage": "sqlite:///x.db", "workers": 3,
            "trial_seconds": 9.5, "trial_memory_bytes": 1000,
        },
    )  # fmt: skip
    capsys.readouterr()
    assert cli.main(["search", "some/digits.toml"]) == 0
    assert run.calls[1] == (Path("some/digits.toml"), Path("runs/digits"), {})
    assert cli.main(["search", "digits.toml", "--from", "old", "--until-converged"]) == 0
    assert run.calls[2] == (Path("digits.toml"), Path("runs/digits"), {}, Path("old"), True)


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
    assert "tracing the model\n" in loud.err
    assert "trials 2/30" in loud.err
    assert "trials 30/30" in loud.err
    assert "best 8.0× smaller, 5 failed" in loud.err
    assert "left" in loud.err
    assert "trial 2 failed: broken 2" in loud.err
    assert "broken 3" not in loud.err  # three are enough
    assert "note: the search ended" in loud.err


def test_resume_hands_over_the_number_of_trials_and_the_sampler(run):
    assert cli.main(["resume", "run", "--trials", "5", "--quiet"]) == 0
    assert cli.main(["resume", "run", "--quiet"]) == 0
    assert cli.main(["resume", "run", "--trials", "2", "--sampler", "tpe", "--quiet"]) == 0
    assert run.calls == [5, None, (2, "tpe")]


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
    assert "check: none; the run has none of this file\n" in out
    check = run.directory / "artifacts" / f"{wanted.artifact}.check.npz"
    check.write_bytes(b"a check")
    assert cli.main(["pick", "x", *limits, "--output", str(output)]) == 0
    assert f"check: {output}.check.npz (autocompress verify {output})\n" in capsys.readouterr().out
    assert cli.main(["pick", "x", *limits, "--output", str(output), "--no-check"]) == 0
    assert "check" not in capsys.readouterr().out
    assert not Path(f"{output}.check.npz").exists()
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


def test_pick_hands_over_every_limit(run, capsys):
    run.scores = [
        score(0, 0.9, energy_mj=2.0, activation_bytes=100.0, baseline="uncompressed"),
        score(1, 0.8, energy_mj=1.0, activation_bytes=200.0),
    ]
    for limits, wanted in (
        ("--max-energy 2", 0), ("--max-energy 1.5", 1), ("--max-memory 150", 0),
        ("--max-energy 1.5 --max-memory 250", 1),
    ):  # fmt: skip
        assert cli.main(["pick", "x", *limits.split()]) == 0
        assert f"trial                  {wanted}" in capsys.readouterr().out
    assert cli.main(["pick", "x", "--max-energy", "1.5", "--max-memory", "150"]) == 3
    one_error_line(capsys.readouterr(), "energy at most 1.5 mJ, activations at most 150 bytes")


BLOCKS = ((0.6, 1.0, 0.7, 1.1),) * 12


def timing_of(ms=0.65149, clock="cpu", agree=True):
    return Timing(ms, 0.64, 0.67, 1.06, 0.6146, clock, agree, 0.75, BLOCKS)


def test_bench_prints_the_interval_and_the_reference(monkeypatch, capsys):
    calls = []

    def bench(path, *, threads=1, reference=None, runtime="onnxruntime"):
        calls.append((path, threads, reference, runtime))
        return timing_of() if threads == 1 else timing_of(clock="wall")

    monkeypatch.setattr(benchmarks, "bench", bench)
    assert cli.main(["bench", "a.onnx"]) == 0
    text = capsys.readouterr().out
    assert text == (
        "latency: 0.6515 ms (95 %: 0.64 to 0.67), CPU clock, threads: 1, openings: 1, "
        "12 blocks, 75% of them calm\n"
    )
    given = "bench a.onnx --reference b.onnx --threads 2 --runtime openvino"
    assert cli.main(given.split()) == 0
    text = capsys.readouterr().out
    assert "wall clock, threads: 2" in text
    assert "reference: 1.06 ms; the file takes 0.615 times that" in text
    assert calls == [
        (Path("a.onnx"), 1, None, "onnxruntime"),
        (Path("a.onnx"), 2, Path("b.onnx"), "openvino"),
    ]
    monkeypatch.setattr(benchmarks, "bench", lambda *_, **__: timing_of(agree=False))
    assert cli.main(["bench", "a.onnx"]) == 0
    assert "clocks disagree: other threads work too" in capsys.readouterr().out


def test_bench_lays_all_runtimes_side_by_side(monkeypatch, capsys):
    calls = []
    found = {
        "onnxruntime": timing_of(0.5), "openvino": timing_of(1.25),
        "other": ConfigError("The target other\nneeds a package."),
    }  # fmt: skip

    def bench_all(path, *, threads=1, reference=None):
        calls.append((path, threads, reference))
        return found

    monkeypatch.setattr(benchmarks, "bench_all", bench_all)
    given = "bench a.onnx --runtime all --threads 2 --reference b.onnx"
    assert cli.main(given.split()) == 0
    assert calls == [(Path("a.onnx"), 2, Path("b.onnx"))]
    assert capsys.readouterr().out.splitlines() == [
        "onnxruntime  0.5 ms (95 %: 0.64 to 0.67), 1.00 × the fastest, CPU clock",
        "openvino     1.25 ms (95 %: 0.64 to 0.67), 2.50 × the fastest, CPU clock",
        "other        The target other needs a package.",
    ]
    del found["onnxruntime"], found["openvino"]
    assert cli.main(["bench", "a.onnx", "--runtime", "all"]) == 2
    assert "a.onnx runs in none" in capsys.readouterr().err


def short_bench(monkeypatch):
    """Let the real benchmarks take a moment."""
    for name in ("bench", "bench_all"):
        whole = getattr(benchmarks, name)
        monkeypatch.setattr(
            benchmarks, name, lambda *a, w=whole, **k: w(*a, **{"seconds": 0.02, **k})
        )


def test_bench_of_real_runtimes_one_of_which_refuses(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openvino")
    short_bench(monkeypatch)
    both = write(tmp_path / "both.onnx")
    assert cli.main(["bench", str(both), "--runtime", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["onnxruntime", "openvino"]
    assert all("× the fastest" in line for line in lines)
    one = write(tmp_path / "one.onnx", "Det", out=("n",))
    assert cli.main(["bench", str(one), "--runtime", "all"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "1.00 × the fastest" in first
    assert second.startswith("openvino     A model file must load in OpenVINO")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "autocompress.targets.openvino", raising=False)
    assert cli.main(["bench", str(both), "--runtime", "all"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "1.00 × the fastest" in first
    assert second.startswith("openvino     The target openvino needs the package openvino")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_bench_of_what_cannot_be_opened_is_one_line(tmp_path, capsys, runtime):
    pytest.importorskip(runtime)
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    for path, said in ((text, "A model file must load in"), (tmp_path / "none.onnx", "a file")):
        assert cli.main(["bench", str(path), "--runtime", runtime]) == 2
        one_error_line(capsys.readouterr(), said)
    assert cli.main(["bench", str(text), "--runtime", "all"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["onnxruntime", "openvino"]
    assert cli.main(["bench", str(text), "--runtime", "onnx"]) == 2
    one_error_line(capsys.readouterr(), "Did you mean 'onnxruntime'?")


def test_calibrate_prints_the_errors_and_the_place(monkeypatch, capsys):
    calls = []

    def fit_latency_config(path, *, target, threads, seconds, progress):
        calls.append((path, target, threads, seconds))
        for part in (0.0, 0.5, 1.0):
            progress(part)
        errors = np.linspace(-0.1, 0.1, 41)
        return Calibrated(
            Path("cache/x.json"), 41, errors, "the latency calibration was of another"
        )

    monkeypatch.setattr(benchmarks, "fit_latency_config", fit_latency_config)
    given = "fit-latency c.toml --target openvino --threads 2 --seconds 7.5"
    assert cli.main(given.split()) == 0
    captured = capsys.readouterr()
    assert captured.out == (
        "latency model of 41 measured plans; held out in turn, half of them are predicted within "
        "5.0% and 95 % within 9.5%\nkept in: cache/x.json\n"
    )
    assert "calibrating 100 %" in captured.err
    assert captured.err.endswith("note: the latency calibration was of another\n")
    assert cli.main(["calibrate", "c.toml", "--quiet"]) == 0
    assert "calibrating" not in capsys.readouterr().err
    assert calls == [(Path("c.toml"), "openvino", 2, 7.5), (Path("c.toml"), None, None, 120.0)]


def test_explain_prints_the_receipt(run, capsys):
    assert cli.main(["explain", "x", "--trial", "3"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].startswith("layer        kind")
    assert "18,560 → 1,520" in text
    assert cli.main(["explain", "x", "--trial", "4", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["trial"], len(data["lines"])) == (4, len(LINES))
    assert run.calls == [3, 4]


@pytest.mark.parametrize(
    "error", [ConfigError, RunError, TaskError, TraceError, ArtifactError], ids=lambda e: e.__name__
)
def test_bad_input_is_one_line_and_status_2(error, monkeypatch, capsys):
    def fail(*_, **__):
        raise error("The rule:\n  the value.\nThe fix.")

    for name in ("search_config", "open_run", "status"):
        monkeypatch.setattr(api, name, fail)
    for name in ("bench", "bench_all", "fit_latency_config"):
        monkeypatch.setattr(benchmarks, name, fail)
    monkeypatch.setattr("autocompress.targets.check.verify", fail)
    for command in COMMANDS:
        more = ["--trial", "1"] if command == "explain" else []
        assert cli.main([command, "x", *more]) == 2
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
        ("search x.toml --max-energy -1", "above 0, not '-1'"),
        ("search x.toml --max-energy inf", "above 0, not 'inf'"),
        ("search x.toml --max-memory 1.5", "an integer (bytes) above 0, not '1.5'"),
        ("search x.toml --hardvare m7", "Did you mean '--hardware'?"),
        ("pick d --max-energy 0", "above 0, not '0'"),
        ("pick d --max-memory x", "above 0, not 'x'"),
        ("bench f --threads 0", "at least 1, not '0'"),
        ("fit-latency c.toml --seconds 0", "above 0, not '0'"),
        ("fit-latency c.toml --second 3", "Did you mean '--seconds'?"),
        ("fit-latency", "required: CONFIG.toml"),
        ("explain d", "required: --trial"),
        ("explain d --trial -1", "at least 0, not '-1'"),
        ("explain d --trial 1 --format csv", "invalid choice: 'csv'"),
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


def test_an_existing_cluster_is_used_as_a_whole_unless_told_otherwise(run):
    assert cli.main(["search", "c.toml", "--ray-address", "auto"]) == 0
    assert cli.main(["search", "c.toml", "--ray-address", "auto", "--workers", "4"]) == 0
    assert cli.main(["resume", "run", "--workers", "2"]) == 0
    assert [call[2] for call in run.calls[:2]] == [
        {"workers": 0, "ray_address": "auto"},
        {"workers": 4, "ray_address": "auto"},
    ]
    assert run.calls[2] == (None, {"workers": 2})


def test_the_package_that_more_workers_need_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text('[task]\nname = "digits"\n[target]\nname = "null"\n')
    for name in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "autocompress.engine.executors.ray_tune", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(["search", "c.toml", "--workers", "2"]) == 2
    one_error_line(capsys.readouterr(), "pip install 'autocompress[ray]'")
    assert not Path("runs").exists()


@pytest.mark.parametrize("kind", ["table", "json"])
def test_status_tells_where_a_run_stands(tmp_path, capsys, kind):
    (tmp_path / "config.toml").write_text("[search]\ntrials = 7\n")
    assert cli.main(["status", str(tmp_path), "--format", kind]) == 0
    out = capsys.readouterr().out
    if kind == "json":
        assert json.loads(out)["wanted"] == 7
    else:
        assert "trials: 0 of 7 completed" in out
    assert cli.main(["status", str(tmp_path / "none")]) == 2
    one_error_line(capsys.readouterr(), "has none")


def test_missing_files_end_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["search", "no.toml"], ["resume", "no"], ["front", "no"], ["pick", "no"],
        ["bench", "no.onnx"], ["calibrate", "no.toml"], ["explain", "no", "--trial", "0"],
    ):  # fmt: skip
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


CONFIG = f"""
[task]
name = "tests.test_api:small_task"
[search]
sampler = "random"
trials = 12
[target]
name = "null"
[space.knobs]
{"".join(f'"{pattern}" = {values}' + chr(10) for pattern, values in SPACE.items())}
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(Front, "plot", lambda front, path: path.touch())
    path = tmp_path / "small.toml"
    path.write_text(CONFIG)
    return str(path)


def test_a_budget_that_nothing_meets_is_status_3_with_miss_and_floor(config, tmp_path, capsys):
    place = str(tmp_path / "run")
    assert cli.main(["search", config, "--run", place, "--max-size", "100"]) == 3
    captured = capsys.readouterr()
    note, error = captured.err.splitlines()[-2:]
    assert note == (
        "note: the search ended after 5 trials: no plan is predicted to meet max_size_bytes"
    )
    assert error.startswith(
        "autocompress: error: No model meets the limits (size at most 100 bytes). The closest "
        "miss is trial 2: accuracy"
    )
    assert "The predicted floor of this search space: size 2," in error
    assert "closest miss; nothing meets the budget" in captured.out
    assert cli.main(["front", place]) == 3
    assert capsys.readouterr().err == error + "\n"
    # a pick may be of another limit
    assert cli.main(["pick", place, "--max-size", "3000"]) == 0
    assert "keep 0.5" in capsys.readouterr().out


def test_limits_of_the_command_line_hold(config, tmp_path, capsys):
    place = tmp_path / "run"
    given = ["--max-size", "2700", "--max-memory", "5000", "--trials", "14", "--quiet"]
    assert cli.main(["search", config, "--run", str(place), *given]) == 0
    out = capsys.readouterr().out
    assert "budget: size at most 2,700 bytes, activations at most 5,000 bytes" in out
    assert "predicted over budget, not built" in out
    run = api.open_run(place)
    assert run.config.budget == Budget(max_size_bytes=2700, max_memory_bytes=5000)
    assert all(pick.score.size_bytes <= 2700 for pick in run.front())
    over = next(score for score in run.scores if score.outcome == "over_budget")
    assert cli.main(["explain", str(place), "--trial", str(over.trial)]) == 0
    assert "(predicted, not built)" in capsys.readouterr().out


def test_a_search_for_a_device_says_what_is_predicted(config, tmp_path, capsys):
    given = ["--hardware", "cortex-m7", "--max-energy", "1", "--trials", "2", "--quiet"]
    assert cli.main(["search", config, "--run", str(tmp_path / "run"), *given]) == 0
    assert "on cortex-m7: predicted from its device file" in capsys.readouterr().out
    assert cli.main(["search", config, "--run", str(tmp_path / "b"), *given[2:]]) == 2
    one_error_line(capsys.readouterr(), "--hardware")
    given[1] = "cortex"
    assert cli.main(["search", config, "--run", str(tmp_path / "b"), *given]) == 2
    one_error_line(capsys.readouterr(), "Did you mean 'cortex-")
    assert not (tmp_path / "b").exists()


def test_an_exported_pick_is_verified(config, tmp_path, capsys):
    place, output = str(tmp_path / "run"), tmp_path / "model.null"
    assert cli.main(["search", config, "--run", place, "--trials", "8", "--quiet"]) == 0
    assert cli.main(["pick", place, "--output", str(output)]) == 0
    capsys.readouterr()
    assert cli.main(["verify", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "32 of 32" in captured.out
    moved = Path(f"{output}.check.npz").rename(tmp_path / "elsewhere.npz")
    assert cli.main(["verify", str(output)]) == 2
    one_error_line(capsys.readouterr(), "must lie beside the model")
    known = Check.read(moved)
    values = [replace(a, values=a.values + np.float32(a.unit)) for a in known.answers]
    moved.write_bytes(replace(known, answers=tuple(values)).to_bytes())
    assert cli.main(["verify", str(output), "--check", str(moved)]) == 3
    assert "answers otherwise here" in capsys.readouterr().out
    assert cli.main(["verify", str(output), "--check", str(moved), "--format", "json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["alike"] is False
    assert found["largest_difference"] == pytest.approx(1, rel=1e-2)


def test_names_of_the_version_before(monkeypatch, capsys):
    monkeypatch.setattr(benchmarks, "fit_latency_config", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["calibrate", "c.toml", "--quiet"])
    assert cli.main(["search", "c.toml", "--device", "cortex-m7"]) == 2
    one_error_line(capsys.readouterr(), "Write --hardware cortex-m7.")
    with pytest.raises(SystemExit):
        cli.main(["search", "--help"])
    assert "--device" not in capsys.readouterr().out


def test_calibrate_and_explain_from_end_to_end(config, tmp_path, capsys):
    place = str(tmp_path / "run")
    assert cli.main(["search", config, "--run", place, "--trials", "4", "--quiet"]) == 0
    assert cli.main(["explain", place, "--trial", "2"]) == 0
    capsys.readouterr()
    assert cli.main(["explain", place, "--trial", "2"]) == 0
    before = capsys.readouterr().out
    assert "autocompress fit-latency makes one" in before
    assert "predicted" not in before
    assert cli.main(["calibrate", config, "--seconds", "0.01"]) == 0
    captured = capsys.readouterr()
    assert "calibrating 100 %" in captured.err
    assert "latency model of 40 measured plans" in captured.out
    (line,) = (line for line in captured.out.splitlines() if line.startswith("kept in: "))
    assert len(Calibration.read(Path(line.removeprefix("kept in: "))).samples) == 40
    assert cli.main(["explain", place, "--trial", "2"]) == 0
    after = capsys.readouterr().out
    assert "predicted ms: 0.0" in after
    assert "8×32 → 8×16" in after
    assert "32 → 8" in after
    assert cli.main(["explain", place, "--trial", "2", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    parts = [line["after"]["predicted_ms"] or 0.0 for line in data["lines"]]
    assert data["predicted_ms"] == pytest.approx(math.fsum(parts))
    assert data["outcome"] == "ok"
    assert cli.main(["explain", place, "--trial", "99"]) == 2
    one_error_line(capsys.readouterr(), "(0 to 3, failed ones excluded), not 99.")


def test_explain_of_a_failed_trial_is_one_line(config, tmp_path, monkeypatch, capsys):
    from autocompress.engine.evaluator import Evaluator

    figures, calls = Evaluator._figures, []

    def fail_once(*given):
        calls.append(1)
        if len(calls) == 2:
            raise TrialError("it broke")
        return figures(*given)

    monkeypatch.setattr(Evaluator, "_figures", fail_once)
    place = str(tmp_path / "run")
    assert cli.main(["search", config, "--run", place, "--trials", "2", "--quiet"]) == 0
    assert [score.outcome for score in api.open_run(place).scores] == ["ok", "failed", "ok"]
    capsys.readouterr()
    assert cli.main(["explain", place, "--trial", "1"]) == 2
    one_error_line(capsys.readouterr(), "failed ones excluded), not 1.")


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
    assert child.wait(timeout=FAR) == 0
    assert (tmp_path / "run" / "front.csv").exists()


def test_closed_streams_do_not_end_the_search(tmp_path):
    child = child_of([], tmp_path, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert child.wait(timeout=FAR) == 0
    assert (tmp_path / "run" / "front.csv").exists()


def test_quiet_shows_the_result_alone(tmp_path):
    child = child_of(["--quiet"], tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = child.communicate(timeout=FAR)
    assert error == b""
    assert b"uncompressed" in out
    assert child.returncode == 0
