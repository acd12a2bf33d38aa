"""Random networks by the thousand: do torch, the files and their simulations agree?

    python experiments/benchmarks/fuzz_networks.py [--seed 0] [--networks 200] [--plans 20]

What is compared, and how near it must be, is in tests/fuzz_compare.py. Each network's result is a
line of the results file, so that a run that was stopped goes on where it was; failures are counted
by kind, with the seeds that make them again: ``--seed S --networks 1 --again``.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz_compare import check_case


def known(path: Path, plans: int) -> dict[int, list[dict[str, object]]]:
    """Return the failures of networks that were tried with as many plans, by seed."""
    if not path.is_file():
        return {}
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue  # the last line of a run that was stopped
    return {row["seed"]: row["failures"] for row in rows if row["plans"] == plans}


def show(found: dict[int, list[dict[str, object]]], plans: int) -> None:
    """Print how many failed of each kind, with the seeds and plans of the first."""
    kinds: Counter[str] = Counter()
    places: dict[str, list[str]] = defaultdict(list)
    texts: dict[str, str] = {}
    for seed, failures in sorted(found.items()):
        for failure in failures:
            kind = str(failure["kind"])
            kinds[kind] += 1
            places[kind].append(f"{seed}:{failure['plan']}")
            texts.setdefault(kind, str(failure["text"]))
    failed = sum(map(bool, found.values()))
    print(
        f"{len(found)} networks, {len(found) * plans} plans: {kinds.total()} failures, "
        f"in {failed} networks"
    )
    for kind, count in kinds.most_common():
        print(f"{count:6}  {kind}: {texts[kind][:200]}\n        {' '.join(places[kind][:8])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--networks", type=int, default=200)
    parser.add_argument("--plans", type=int, default=20, help="of each network")
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--results", type=Path, default=Path("runs/fuzz_networks.jsonl"))
    parser.add_argument("--again", action="store_true", help="try what was tried")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + options.networks)
    before = {} if options.again else known(options.results, options.plans)
    found = {seed: failures for seed, failures in before.items() if seed in seeds}
    with tempfile.TemporaryDirectory() as folder, options.results.open("a") as file:
        for seed in seeds:
            if seed in found:
                continue
            failures = check_case(seed, options.plans, Path(folder), tuple(options.targets))
            found[seed] = [dataclasses.asdict(failure) for failure in failures]
            row = {"seed": seed, "plans": options.plans, "failures": found[seed]}
            file.write(json.dumps(row) + "\n")
            file.flush()
            for failure in found[seed]:
                print(f"{seed}:{failure['plan']} {failure['kind']}: {failure['text']}", flush=True)
    show(found, options.plans)


if __name__ == "__main__":
    main()
