"""Train a CIFAR-10 network for the experiments; on a GPU where there is one.

    python tools/train_cifar10.py vit --data DIR --out vit-cifar10.safetensors --epochs 30
    python tools/train_cifar10.py resnet50 --data DIR --out resnet50-cifar10.safetensors --epochs 200 --device cuda

DIR/data/cifar10.npz holds the images. Crop and flip, label smoothing, a one-cycle schedule; SGD with Nesterov
momentum for convolutional networks and AdamW for the transformer. The weights of the last epoch are written as float32
safetensors, with accuracy on all test images said each epoch and nothing chosen by it.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx import models

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "alexnet": models.alexnet_cifar,
    "vgg16": models.vgg16_cifar,
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet50": models.resnet50_cifar,
    "vit": models.vit_tiny_cifar,
}
PADDING = 4


def main() -> None:
    """Train, saying the test accuracy after each epoch, and write the weights."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    cifar = models.load_cifar10(options.data / "data" / "cifar10.npz")
    images, labels = (part.to(options.device) for part in cifar.train())
    test = tuple(part.to(options.device) for part in cifar.test())
    model = NETWORKS[options.network]().to(options.device)
    steps = options.epochs * -(-len(labels) // options.batch)
    optimizer, rate = _optimizer(options.network, model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    for epoch in range(options.epochs):
        model.train()
        batches = -(-len(labels) // options.batch)
        for x, y in tqdm(_augmented(images, labels, options.batch), f"epoch {epoch + 1}", batches, leave=False):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
        tqdm.write(f"epoch {epoch + 1}: {100 * _accuracy(model, *test):.2f} % of the test images")
    save_file({name: each.contiguous().cpu() for name, each in model.state_dict().items()}, options.out)


def _optimizer(network: str, model: nn.Module) -> tuple[torch.optim.Optimizer, float]:
    """The optimizer and the greatest learning rate of its cycle."""
    if network == "vit":
        return torch.optim.AdamW(model.parameters(), weight_decay=0.05), 2e-3
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return sgd, 0.05 if network in ("alexnet", "vgg16") else 0.1


def _augmented(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches, each image flipped half of the time and moved by up to 4 pixels."""
    padded = F.pad(images, [PADDING] * 4)
    for places in torch.randperm(len(labels), device=images.device).split(size):
        down, right = (torch.randint(2 * PADDING + 1, (len(places),), device=images.device) for _ in range(2))
        rows = (down[:, None] + torch.arange(32, device=images.device))[:, None, :, None]
        columns = (right[:, None] + torch.arange(32, device=images.device))[:, None, None, :]
        channels = torch.arange(3, device=images.device)[None, :, None, None]
        moved = padded[places[:, None, None, None], channels, rows, columns]
        flipped = torch.rand(len(places), 1, 1, 1, device=images.device) < 0.5
        yield torch.where(flipped, moved.flip(3), moved), labels[places]


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    pairs = zip(images.split(500), labels.split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs) / len(labels)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
