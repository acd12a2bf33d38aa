"""Train a Fashion-MNIST teacher and keep its weights.

    python experiments/train_teachers.py --network resnet20
    python experiments/train_teachers.py --network mobilenetv2

The best epoch on the validation split is kept; the test split is scored once, at the end. The
file's metadata hold the command, the seed and both accuracies. About 40 s an epoch for ResNet-20
on two cores.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from autocompress.tasks.base import accuracy_of
from autocompress.tasks.fashion_mnist import load
from autocompress.tasks.images import make_network
from autocompress.train.loop import Epoch, TrainConfig, fit


def augment(batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each batch by up to two pixels and mirror half of its images."""
    dx, dy = torch.randint(0, 5, (2,), generator=generator).tolist()
    height, width = batch.shape[-2:]
    edge = float(batch.min())
    padded = F.pad(batch, (2, 2, 2, 2), value=edge)
    shifted = padded[..., dy : dy + height, dx : dx + width]
    mirrored = torch.rand(len(batch), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(-1), shifted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--patience", type=int, default=6, help="epochs without a better score")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=0.15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--bfloat16", action="store_true", help="faster where the CPU has it")
    options = parser.parse_args()
    output = options.output or Path(
        f"experiments/teachers/fashion_mnist_{options.network}.safetensors"
    )
    output.parent.mkdir(parents=True, exist_ok=True)

    images = load(options.data_dir)
    torch.manual_seed(options.seed)
    model = make_network(options.network).to(memory_format=torch.channels_last)

    def score(images_and_labels, model: nn.Module) -> float:
        def predict(x):
            with torch.no_grad():
                return model(torch.from_numpy(x).to(options.device)).float().cpu().numpy()

        return float(accuracy_of(*images_and_labels)(predict).mean())

    start = time.time()

    def show(epoch: Epoch) -> None:
        print(
            f"epoch {epoch.number}/{options.epochs}: loss {epoch.loss:.4f}, validation "
            f"{epoch.score:.4f}, {time.time() - start:.0f} s",
            flush=True,
        )

    best = fit(
        model,
        images.batches(options.batch_size, options.seed, augment),
        TrainConfig(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            patience=options.patience,
            bfloat16=options.bfloat16,
        ),
        validate=lambda m: score(images.validation, m),
        device=options.device,
        progress=show,
    )
    test = score(images.test, model)
    state = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {
        "command": shlex.join(["python", "experiments/train_teachers.py", *sys.argv[1:]]),
        "seed": str(options.seed),
        "validation_accuracy": f"{best:.4f}",
        "test_accuracy": f"{test:.4f}",
    }
    save_file(state, output, metadata)
    print(f"validation {best:.4f}, test {test:.4f}: {output}")


if __name__ == "__main__":
    main()
