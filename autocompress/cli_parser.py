"""The arguments of the command line: every command, its options, and what they may be."""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from autocompress._version import __version__

__all__ = ["Parser", "make_parser"]

_EXIT = """exit status: 0; 2 for input that cannot be used; 3 when no model meets the limits, or a
verified file answers otherwise; 130 when interrupted (the study is kept)"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and end with status 2."""
        self.exit(2, f"autocompress: error: {message} (see {self.prog} --help)\n")


def _number(
    kind: type[int] | type[float], above: float = 0, words: str = ""
) -> Callable[[str], Any]:
    """Return an argparse type for a finite number above a bound."""
    rule = f"must be {'an integer' if kind is int else 'a number'}{words}"

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not above < value <= 2**53:  # NaN, infinities and slips of the keyboard
            raise argparse.ArgumentTypeError(f"{rule}, not {text!r}")
        return value

    return parse


_COUNT = _number(int, 0, " of at least 1")
_SEED = _MEMORY = _number(int, -1, " of at least 0")
_SECONDS = _number(float, math.nextafter(0, -1), " of at least 0")
_LIMIT = _number(float, 0, " above 0")
_BYTES = _number(int, 0, " (bytes) above 0")
_ANY = _number(float, -math.inf)


def make_parser(
    runs: Mapping[str, Callable[[argparse.Namespace], int]],
) -> tuple[Parser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of its commands by name; ``runs``: what each command calls."""
    parser = Parser(
        prog="autocompress",
        description="Search per-layer pruning and bit widths of a trained PyTorch network for "
        "small files that a stock runtime loads.",
        epilog=_EXIT,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    made: dict[str, argparse.ArgumentParser] = {}

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made[name] = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
        )
        made[name].set_defaults(run=runs[name])
        return made[name]

    def quiet(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--quiet", action="store_true", help="show nothing but the result")

    def execution(sub: argparse.ArgumentParser) -> None:
        add = sub.add_argument
        add("--storage", metavar="URL", help="database of the study, e.g. postgresql+psycopg://…")
        add("--workers", type=_COUNT, metavar="N", help="processes of Ray; 1: trials in turn")
        add("--ray-address", metavar="ADDR", help="use the Ray cluster that runs there")
        add("--trial-seconds", type=_SECONDS, metavar="S", help="time limit per trial (0: none)")
        add(
            "--trial-memory", type=_MEMORY, metavar="BYTES", help="memory limit per trial (0: none)"
        )

    def sampler(sub: argparse.ArgumentParser, text: str) -> None:
        sub.add_argument("--sampler", metavar="NAME", help=text)

    def until_converged(sub: argparse.ArgumentParser) -> None:
        text = "end when next to nothing is still to gain"
        sub.add_argument("--until-converged", action="store_true", help=text)

    sub = command("search", "search as a configuration file says")
    sub.add_argument("config", type=Path, metavar="CONFIG.toml", help="task, space, target, …")
    sub.add_argument(
        "--run", type=Path, dest="run_dir", metavar="DIR", help="run directory (runs/<config>)"
    )
    sub.add_argument("--trials", type=_COUNT, metavar="N", help="completed trials to reach")
    sub.add_argument("--latency-budget", type=_LIMIT, metavar="MS", help="limit, milliseconds")
    sub.add_argument("--max-size", type=_BYTES, metavar="BYTES", help="limit on the file's size")
    sub.add_argument("--max-energy", type=_LIMIT, metavar="MJ", help="limit, mJ (with --hardware)")
    sub.add_argument("--max-memory", type=_BYTES, metavar="BYTES", help="limit on peak activations")
    sub.add_argument(
        "--hardware",
        metavar="NAME",
        help="predict latency and energy for avx2-core, "
        "cortex-a76, cortex-m7, bit-fusion or a hardware file (path) instead",
    )
    sub.add_argument("--device", help=argparse.SUPPRESS)  # the old name, refused with the new one
    sampler(sub, "guided (default), tpe, nsga2, gp or random")
    sub.add_argument(
        "--from",
        type=Path,
        dest="start_from",
        metavar="DIR",
        help="take profile and scores over from another run of the same model",
    )
    sub.add_argument("--target", metavar="NAME", help="runtime: onnxruntime or openvino")
    sub.add_argument(
        "--no-portable",
        action="store_true",
        help="8-bit weights take their whole range: right on CPUs with VNNI or of ARM alone",
    )
    sub.add_argument("--seed", type=_SEED, metavar="N", help="of the sampler")
    execution(sub)
    until_converged(sub)
    quiet(sub)

    sub = command("resume", "go on with an interrupted or finished search")
    sub.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    sub.add_argument("--trials", type=_COUNT, metavar="N", help="more trials")
    sampler(sub, "another one goes on from now on")
    execution(sub)
    until_converged(sub)
    quiet(sub)

    sub = command("status", "say where a search stands, also while it runs elsewhere")
    sub.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    sub.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    sub = command("front", "print the Pareto front and the baselines")
    sub.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    sub.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="default: table"
    )

    sub = command("pick", "pick the most accurate file within limits and export it")
    sub.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    sub.add_argument("--max-latency", type=_LIMIT, metavar="MS", help="upper end, milliseconds")
    sub.add_argument("--max-size", type=_BYTES, metavar="BYTES", help="limit on the file's size")
    sub.add_argument("--max-energy", type=_LIMIT, metavar="MJ", help="limit, millijoules")
    sub.add_argument("--max-memory", type=_BYTES, metavar="BYTES", help="limit on peak activations")
    sub.add_argument(
        "--min-accuracy", type=_ANY, metavar="A", help="as in the front; alone: the smallest file"
    )
    sub.add_argument("--output", type=Path, metavar="FILE", help="export to this file")
    sub.add_argument(
        "--no-check", action="store_true", help="leave out FILE.check.npz, which 'verify' reads"
    )

    sub = command("verify", "tell whether a file answers here as it did where it was chosen")
    sub.add_argument("file", type=Path, metavar="FILE", help="a file that 'pick' exported")
    sub.add_argument("--check", type=Path, metavar="CHECK", help="default: FILE.check.npz")
    sub.add_argument("--format", choices=("table", "json"), default="table", help="default: table")

    sub = command("bench", "measure one file by the timing protocol")
    sub.add_argument("file", type=Path, metavar="FILE", help="an ONNX file")
    sub.add_argument("--reference", type=Path, metavar="FILE", help="time it beside another file")
    sub.add_argument(
        "--threads",
        type=_COUNT,
        default=1,
        metavar="N",
        help="1: on the CPU clock; else wall clock",
    )
    sub.add_argument(
        "--runtime",
        default="onnxruntime",
        metavar="NAME",
        help="onnxruntime, openvino, or all of them side by side",
    )

    sub = command("fit-latency", "fit this machine's latency model to a model's layers")
    sub.add_argument("config", type=Path, metavar="CONFIG.toml", help="its task, space, target")
    sub.add_argument("--target", metavar="NAME", help="runtime: onnxruntime or openvino")
    sub.add_argument("--threads", type=_COUNT, metavar="N", help="threads of the runtime")
    sub.add_argument(
        "--seconds", type=_LIMIT, default=120.0, metavar="S", help="time to measure (120)"
    )
    quiet(sub)

    sub = command("explain", "show layer by layer what a trial costs and why")
    sub.add_argument("directory", type=Path, metavar="DIR", help="run directory")
    sub.add_argument(
        "--trial",
        type=_SEED,
        required=True,
        metavar="N",
        help="its number, in the front or the study",
    )
    sub.add_argument("--format", choices=("table", "json"), default="table", help="default: table")
    return parser, made
