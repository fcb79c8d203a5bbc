"""scikit-learn's handwritten digits (8x8 pixels) and a small network that learns them within seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.errors import FitactError

EPOCHS = 12
BATCH = 32
PEAK_RATE = 0.01  # the top of the one-cycle schedule


@dataclass(frozen=True, eq=False)
class Digits:
    """Three parts that share no image, each (images (N, 1, 8, 8) float32 in [0, 1], classes (N,) int64)."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


class DigitsCNN(nn.Module):
    """Three convolutions with BatchNorm, two linear layers; its ReLUs are a module, calls and a method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(256, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) to logits (N, 10)."""
        x = self.relu1(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        logits: Tensor = self.fc2(self.fc1(x.flatten(1)).relu())
        return logits


def digits_cnn() -> nn.Module:
    """The network of the demo, with random weights and in evaluation mode."""
    return DigitsCNN().eval()


def load_digits_data() -> Digits:
    """The 1,797 digits, always in the same parts: 1,028 to train, 257 to calibrate, 512 to test.

    Raises:
        FitactError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise FitactError("the digits are scikit-learn's; install it with: pip install 'fitact-fx[demo]'") from error
    bunch: Any = load_digits()
    x = torch.from_numpy(bunch.images).to(torch.float32).div(16).unsqueeze(1)
    y = torch.from_numpy(bunch.target).to(torch.int64)
    # Every seventh image rather than a random draw: each part sees every writer, and no generator is needed.
    lot = torch.arange(len(x)) % 7
    train, calibration, test = lot < 4, lot == 4, lot > 4
    return Digits((x[train], y[train]), (x[calibration], y[calibration]), (x[test], y[test]))


def train_digits(seed: int = 0, progress: bool = False) -> nn.Module:
    """Train `digits_cnn` on the training part in a few seconds; the same seed gives the same weights.

    `progress` shows a bar on stderr. The global random state and the number of threads are left as they were.

    Raises:
        FitactError: scikit-learn is not installed.
    """
    x, y = load_digits_data().train
    shuffling = torch.Generator().manual_seed(seed)
    with _initialised_from(seed):
        model = digits_cnn().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    with _one_thread():
        for _ in tqdm(range(EPOCHS), desc="training on digits", unit="epoch", disable=not progress):
            for batch in torch.randperm(len(x), generator=shuffling).split(BATCH):
                loss = F.cross_entropy(model(_shifted(x[batch], shuffling)), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def _shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """The whole batch moved by up to one pixel: with so few images, the place must not matter."""
    row, column = torch.randint(3, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1))[:, :, row : row + 8, column : column + 8]


@contextmanager
def _initialised_from(seed: int) -> Iterator[None]:
    # Modules draw their first weights from the global generator, and take no other.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, lose a lot on a busy machine, and round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
