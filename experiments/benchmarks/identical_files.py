"""Are files identical to the byte between two commits? For changes that must not change them.

    python experiments/benchmarks/identical_files.py BEFORE [AFTER] [--plans 24]

BEFORE and AFTER are commits; AFTER is the working tree by default. Each is checked out into a
folder of its own and runs the same searches there, through the public interface alone: the trained
ResNet-20 and MobileNetV2 of ``experiments/teachers`` on random images, both runtimes, all uniform
plans of the space and others that a seeded sampler draws. The sha256 of every plan's file is
compared; exit status 1 if one differs or a plan is only on one side. Both runs are on one machine:
sums of floats differ between CPUs, so that no digest can be kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT / "experiments" / "teachers"
NETWORKS = ("resnet20", "mobilenetv2")
RUNTIMES = ("onnxruntime", "openvino")

#: What runs at each commit: names that are promised to users, and no others.
CHILD = """
import json, sys
import numpy as np, torch
import autocompress as ac
from autocompress.tasks.images import make_network
from safetensors.torch import load_file

network, runtime, plans, folder, teachers = sys.argv[1:]
model = make_network(network)
model.load_state_dict(load_file(f"{teachers}/fashion_mnist_{network}.safetensors"))
torch.manual_seed(0)
images = torch.rand(64, 1, 28, 28)
task = ac.Task(
    model=model.eval(), example_inputs=(images[:1],), calibration=[(images,)],
    evaluate=lambda predict: float(np.mean(predict(images[:8].numpy()))), name="identical",
)
run = ac.search(
    task, target=runtime, sampler="random", trials=int(plans), seed=0, run_dir=folder,
)
print(json.dumps({score.plan.to_json(): score.sha256 for score in run.scores}))
"""


def digests(tree: Path, plans: int) -> dict[str, str]:
    """Return the sha256 of the files of a source tree by network, runtime and plan."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    found: dict[str, str] = {}
    for network in NETWORKS:
        for runtime in RUNTIMES:
            with tempfile.TemporaryDirectory() as folder:
                arguments = [network, runtime, str(plans), folder, str(TEACHERS)]
                done = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", CHILD, *arguments],
                    env=environment, cwd=tree, check=True, stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
            own = json.loads(done.stdout.splitlines()[-1])
            found |= {f"{network} {runtime} {plan}": digest for plan, digest in own.items()}
            print(f"{tree.name}: {network} on {runtime}, {len(own)} files", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", default="")
    parser.add_argument("--plans", type=int, default=24, help="of each network and runtime")
    options = parser.parse_args()
    found = []
    for commit in (options.before, options.after):
        if not commit:
            found.append(digests(ROOT, options.plans))
            continue
        with tempfile.TemporaryDirectory() as folder:
            tree = Path(folder) / "tree"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
            try:
                found.append(digests(tree, options.plans))
            finally:
                subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    before, after = found
    wrong = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    for key in wrong:
        print(f"{key}: {before.get(key, 'none')[:12]} before, {after.get(key, 'none')[:12]} after")
    print(f"{len(before)} files before, {len(after)} after, {len(wrong)} of them not identical")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
