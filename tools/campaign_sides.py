"""What the parts of tools/measure_campaigns.py share: networks and images, the inside of a campaign, the clock."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache

from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.job import Job
from fitact_fx.campaigns.kinds import Kind
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.setup import Setup
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.faults import BitFlip, find_format
from fitact_fx.models import load_cifar10, load_weights, resnet20, resnet50_cifar

VARIANT = "plain"
NEVER = StopRule(None, 30, "", 0.95)


class Seconds(NamedTuple):
    """What something took: on the wall, and of this process's processor time, which a busy machine disturbs less."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Plan:
    """What was asked of the whole measurement. `limit`: seconds that one run to the end may take."""

    data: Path
    quick: bool
    limit: float

    def network(self, name: str) -> nn.Module:
        """By name: the trained ones from the folder, torchvision's ResNet-18 with random weights."""
        if name == "ResNet-18":
            torch.manual_seed(0)
            return torchvision.models.resnet18(num_classes=10).eval()
        made, file = {"ResNet-20": (resnet20, "resnet20"), "ResNet-50": (resnet50_cifar, "resnet50")}[name]
        return load_weights(made(), self.data / "models" / f"{file}-cifar10.safetensors")

    def images(self, count: int) -> tuple[Tensor, Tensor]:
        """The first test images of CIFAR-10 and their classes."""
        return load_cifar10(self.data / "data" / "cifar10.npz").test(count)


@dataclass
class Times:
    """The seconds of one side, one entry per turn."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def add(self, spent: Seconds, count: int = 1) -> None:
        """What `count` pieces of work took together, as seconds of one."""
        self.wall.append(spent.wall / count)
        self.cpu.append(spent.cpu / count)

    def told(self) -> dict[str, float]:
        """What the page shows."""
        found = {}
        for clock, seconds in (("wall", self.wall), ("cpu", self.cpu)):
            found |= {clock: median(seconds), f"least {clock}": min(seconds)}
        return found | {"turns": len(self.wall)}


@dataclass(frozen=True)
class Inside:
    """What `run_campaign` makes of its arguments before it runs the first trial."""

    job: Job
    settings: dict[str, Any]
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, model: nn.Module, data: object, kind: Kind, how: How, **asked: Any) -> "Inside":
        """`asked`: format, targets and trials, as in `run_campaign`. Behind this, all set-up is done."""
        setup = Setup(
            variants={VARIANT: model},
            samples=Samples.read(data),
            kind=kind,
            fault=BitFlip,
            format=find_format(asked.get("format", "q15.16")),
            targets=asked.get("targets"),
            at=None,
            where="before",
            permanent=True,
            trials=asked.get("trials"),
            rule=NEVER,
            metrics={},
            seed=0,
            how=how,
            threads=1,
        )
        made = cls(*setup.planned())
        made.job.evaluator(VARIANT)
        return made


def timed(work: Callable[..., Any], *args: Any) -> tuple[Any, Seconds]:
    """What it gives, and what it took."""
    wall, cpu = perf_counter(), process_time()
    found = work(*args)
    return found, Seconds(perf_counter() - wall, process_time() - cpu)


def answers(rows: Sequence[Row]) -> list[tuple[object, ...]]:
    """Rows as far as they must not depend on how or by whom they were found."""
    return [
        (r.variant, r.cell, r.trial, r.faults, r.checksum, r.accuracy, r.sdc1, r.sdc5, r.due, r.error) for r in rows
    ]


@contextmanager
def cold_compiler() -> Iterator[None]:
    """Inside, nothing is compiled yet that an earlier run left: the first compilation costs what it costs."""
    torch.compiler.reset()
    with fresh_cache():
        yield
    torch.compiler.reset()


def about() -> dict[str, Any]:
    """When, and on what."""
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def written(path: Path, parts: Mapping[str, Any]) -> dict[str, Any]:
    """These parts in the file, beside those that it has from earlier runs."""
    earlier = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found = {**earlier, **parts}
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found
