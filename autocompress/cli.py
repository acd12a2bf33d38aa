"""The command line: parse, call one function each, print. Heavy imports wait for their command."""

import argparse
import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from autocompress.cli_parser import Parser, make_parser
from autocompress.errors import AutocompressError, InputError, NoModelError, unknown

if TYPE_CHECKING:
    import tqdm

    from autocompress.api import Run
    from autocompress.engine.progress import Progress
    from autocompress.report.front import Front

__all__ = ["main"]


def _parser() -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    return make_parser(
        {
            "search": _search, "resume": _resume, "status": _status_of, "front": _front,
            "pick": _pick, "verify": _verify, "bench": _bench, "fit-latency": _fit_latency,
            "explain": _explain,
        }
    )  # fmt: skip


#: Commands by their names of the version before, which are understood for one release.
_RENAMED = {"calibrate": "fit-latency"}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if arguments and arguments[0] in _RENAMED:
        arguments = [_RENAMED[arguments[0]], *arguments[1:]]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        parser.error(unknown("command", arguments[0], commands))
    parsed, extra = parser.parse_known_args(arguments)
    if extra:
        sub = commands[parsed.command]
        name = extra[0].partition("=")[0]
        if not name.startswith("-"):
            sub.error(f"one argument too many: {name!r}")
        sub.error(unknown("option", name, sub._option_string_actions))
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (by default the process's own) and return its exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the process
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")  # a terminal without "×" gets "?"
    try:
        parsed = _parse(sys.argv[1:] if arguments is None else arguments)
        with _quiet_libraries():
            status: int = parsed.run(parsed)
        sys.stdout.flush()
    except NoModelError as error:
        return _complain(error, 3)
    except AutocompressError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader (head, less) has had enough
            return 0
        return _complain(AutocompressError(f"Output must be writable: {error}."), 2)
    return status


def _complain(error: Exception, status: int) -> int:
    text = " ".join(str(error).split())
    print(f"autocompress: error: {text}", file=sys.stderr)
    return status


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep other libraries' warnings and log lines off the screen, unless -W asks for them."""
    import logging

    previous = logging.root.manager.disable
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)


class _Screen:
    """The progress of a search on stderr: notes, then a bar with the time left.

    A screen that goes away (a closed pipe) ends the display, not the search.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.failed = 0
        self.what = ""
        self.bar: tqdm.tqdm[NoReturn] | None = None

    def __call__(self, progress: "Progress") -> None:
        if self.quiet:
            return
        try:
            self._show(progress)
        except (OSError, ValueError):
            self.quiet = True

    def _show(self, progress: "Progress") -> None:
        if progress.note:
            self.close()
            print(progress.note, file=sys.stderr, flush=True)
            return
        if self.bar is None or self.what != progress.what:
            self.close()
            self.bar, self.what = self._open(progress), progress.what
        score = progress.score
        if score is not None and score.outcome == "failed":
            self.failed += 1
            if self.failed <= 3:
                text = " ".join(score.message.split())
                self.bar.write(f"trial {score.trial} failed: {text}", file=sys.stderr)
        failures = f", {self.failed} failed" if self.failed else ""
        best = f"best {progress.best}" if progress.best else ""
        self.bar.set_postfix_str((best + failures).removeprefix(", "), refresh=False)
        self.bar.update(progress.done - self.bar.n)

    def _open(self, progress: "Progress") -> "tqdm.tqdm[NoReturn]":
        import tqdm

        terminal = sys.stderr.isatty()
        return tqdm.tqdm(
            total=progress.total,
            initial=progress.done,
            desc=progress.what,
            file=sys.stderr,
            mininterval=0.2 if terminal else 15.0,
            dynamic_ncols=terminal,
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar:20}| {elapsed} gone, {remaining} left"
            "{postfix}",
        )

    def close(self) -> None:
        """End the bar's line."""
        if self.bar is not None:
            with contextlib.suppress(OSError, ValueError):
                self.bar.close()
            self.bar = None


def _drive(directory: Path, quiet: bool, start: Callable[[_Screen], "Run"]) -> int:
    """Search under a progress bar, print the result and return the exit status."""
    screen = _Screen(quiet)
    try:
        run = start(screen)
    except KeyboardInterrupt:
        screen.close()
        print(f"interrupted; {_kept(directory)}", file=sys.stderr)
        return 130
    finally:
        screen.close()
    if run.note and not quiet:
        print(f"note: {run.note}", file=sys.stderr)
    return _result(run)


def _kept(directory: Path) -> str:
    """Return the sentence about the trials that are on disk and how to go on."""
    kept = "the finished trials are kept"
    with contextlib.suppress(Exception, KeyboardInterrupt):  # a second Ctrl-C ends the counting
        from autocompress import api

        count = sum(score.outcome == "ok" for score in api.open_run(directory).scores)
        kept = "1 trial is kept" if count == 1 else f"{count} trials are kept"
    if not (directory / "config.toml").exists():
        return "nothing was finished yet; start again with the same command"
    return f"{kept}; continue with: autocompress resume {shlex.quote(str(directory))}"


def _result(run: "Run") -> int:
    front, place = run.front(), shlex.quote(str(run.directory))
    print(front)
    picture = run.directory / "front.png"
    if picture.exists():
        print(f"picture: {picture}")
    print(f"run directory: {run.directory}")
    if front.feasible:
        suffix = front[0].path.suffix
        print(f"export one: autocompress pick {place} --output model{suffix}")
    return _status(front)


def _status(front: "Front") -> int:
    """Return 0, or 3 with the closest miss on stderr where nothing meets the budget."""
    return 0 if front.feasible else _complain(NoModelError(front.message), 3)


def _search(parsed: argparse.Namespace) -> int:
    if parsed.device is not None:
        raise InputError(
            f"Hardware to predict for is named by --hardware: --device {parsed.device} "
            f"is kept for torch devices. Write --hardware {parsed.device}."
        )
    given = {
        "trials": parsed.trials,
        "latency_ms": parsed.latency_budget,
        "max_size_bytes": parsed.max_size,
        "max_energy_mj": parsed.max_energy,
        "max_memory_bytes": parsed.max_memory,
        "hardware": parsed.hardware,
        "sampler": parsed.sampler,
        "target": parsed.target,
        "seed": parsed.seed,
        "storage": parsed.storage,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    overrides |= _execution(parsed) | ({"portable": False} if parsed.no_portable else {})
    directory = parsed.run_dir or Path("runs") / parsed.config.stem

    def start(screen: _Screen) -> "Run":
        from autocompress import api

        return api.search_config(
            parsed.config, run_dir=directory, overrides=overrides,
            start_from=parsed.start_from, until_converged=parsed.until_converged, progress=screen,
        )  # fmt: skip

    return _drive(directory, parsed.quiet, start)


def _execution(parsed: argparse.Namespace) -> dict[str, object]:
    """Return how the search is to be carried out, as far as the command line says."""
    given = {
        "workers": 0 if parsed.ray_address and parsed.workers is None else parsed.workers,
        "ray_address": parsed.ray_address,
    }
    limits = {"trial_seconds": parsed.trial_seconds, "trial_memory_bytes": parsed.trial_memory}
    said = {name: value for name, value in (given | limits).items() if value is not None}
    return said | {name: None for name in limits if said.get(name) == 0}


def _resume(parsed: argparse.Namespace) -> int:
    def start(screen: _Screen) -> "Run":
        from autocompress import api

        return api.open_run(parsed.directory, storage=parsed.storage or "").resume(
            trials=parsed.trials, progress=screen, sampler=parsed.sampler,
            until_converged=parsed.until_converged, execution=_execution(parsed),
        )  # fmt: skip

    return _drive(parsed.directory, parsed.quiet, start)


def _status_of(parsed: argparse.Namespace) -> int:
    from autocompress import api
    from autocompress.report.status import status_json, status_text

    status = api.status(parsed.directory)
    sys.stdout.write(status_json(status) if parsed.format == "json" else status_text(status) + "\n")
    return 0


def _front(parsed: argparse.Namespace) -> int:
    from autocompress import api
    from autocompress.report.tables import text_table, to_csv, to_json

    front = api.open_run(parsed.directory).front()
    if parsed.format != "table":
        sys.stdout.write(to_csv(front) if parsed.format == "csv" else to_json(front))
    elif front.members:
        print(text_table(front))
    return _status(front)


def _pick(parsed: argparse.Namespace) -> int:
    from autocompress import api
    from autocompress.targets.checkfile import check_path

    pick = (
        api.open_run(parsed.directory)
        .front()
        .pick(
            max_latency_ms=parsed.max_latency,
            max_size_bytes=parsed.max_size,
            max_energy_mj=parsed.max_energy,
            max_memory_bytes=parsed.max_memory,
            min_accuracy=parsed.min_accuracy,
        )
    )
    checked = not parsed.no_check
    written = None if parsed.output is None else pick.export(parsed.output, check=checked)
    print(pick)
    if written is not None:
        print(f"written: {written}\ncard: {written}.md, {written}.json")
        check = check_path(written)
        if check.exists():
            print(f"check: {check} (autocompress verify {shlex.quote(str(written))})")
        elif checked:
            print("check: none; the run has none of this file")
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from autocompress.targets.check import verified_json, verified_text, verify

    found = verify(parsed.file, parsed.check)
    text = verified_json(found) if parsed.format == "json" else verified_text(found)
    print(text)
    return 0 if found.alike else 3


def _bench(parsed: argparse.Namespace) -> int:
    from autocompress.report.timings import side_by_side, timing_text
    from autocompress.run import bench

    options = {"threads": parsed.threads, "reference": parsed.reference}
    if parsed.runtime == "all":
        found = bench.bench_all(parsed.file, **options)
        print(side_by_side(found))
        if any(not isinstance(timing, Exception) for timing in found.values()):
            return 0
        rule = "A file must run in one runtime at least"
        return _complain(AutocompressError(f"{rule}: {parsed.file} runs in none."), 2)
    timing = bench.bench(parsed.file, runtime=parsed.runtime, **options)
    print(timing_text(timing, parsed.threads, beside=parsed.reference is not None))
    return 0


def _fit_latency(parsed: argparse.Namespace) -> int:
    import tqdm

    from autocompress.report.timings import calibration_text
    from autocompress.run import bench

    with contextlib.ExitStack() as screen:
        bars: list[tqdm.tqdm[NoReturn]] = []

        def show(part: float) -> None:
            if not bars:  # what cannot be used has been refused by now
                bar = tqdm.tqdm(
                    total=100, desc="calibrating", file=sys.stderr, disable=parsed.quiet,
                    bar_format="{desc} {percentage:3.0f} % |{bar:20}| {elapsed} gone",
                )  # fmt: skip
                bars.append(screen.enter_context(bar))
            bars[0].update(int(100 * part) - bars[0].n)

        made = bench.fit_latency_config(
            parsed.config,
            target=parsed.target,
            threads=parsed.threads,
            seconds=parsed.seconds,
            progress=show,
        )
        show(1.0)
    if made.note:
        print(f"note: {made.note}", file=sys.stderr)
    print(calibration_text(made.plans, made.errors.tolist(), made.path))
    return 0


def _explain(parsed: argparse.Namespace) -> int:
    from autocompress import api
    from autocompress.report.receipt import receipt_json, receipt_text

    receipt = api.open_run(parsed.directory).explain(parsed.trial)
    sys.stdout.write(
        receipt_json(receipt) if parsed.format == "json" else receipt_text(receipt) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
