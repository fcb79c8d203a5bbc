"""The whole way on one network: train, harden three ways, flip bits, compare.

Everything is drawn from one seed, so the same seed gives the same numbers, apart from run times.
Calibration and post-training see training images only, accuracy is measured on test images only.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.fx import GraphModule

from fitact_fx import models
from fitact_fx.ambience import threads_set
from fitact_fx.bounded import bounded_sites
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.run_time import fastest_runs
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.errors import FitactError, known
from fitact_fx.faults import BitFlip
from fitact_fx.hardening import calibrate, harden, post_train
from fitact_fx.lowered import lower
from fitact_fx.reports.comparison import Comparison
from fitact_fx.reports.figure import draw_accuracies
from fitact_fx.saving import save
from fitact_fx.schemes import Scheme
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.schemes.ranger import Ranger
from fitact_fx.traced import TracedModule

FORMAT = "q15.16"
UNPROTECTED = "none"
STORE = "campaign.db"
WIDTH = 110
NEXT = "Next, with a model of yours: fitact-fx inspect package.module:factory --input 1,3,224,224"


@dataclass(frozen=True)
class Options:
    """What can be asked of the demo; None takes the network's own. `data` holds the files of a trained network."""

    model: str = "digits"
    data: Path | None = None
    trials: int | None = None
    images: int | None = None
    seed: int = 0
    out: Path = Path("fitact-demo")
    run_time: bool = True


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, the data to harden it with (`batch` images at a time), and what it is tested on."""

    title: str
    model: nn.Module
    training: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    rates: tuple[float, ...]
    trials: int
    batch: int
    threads: int


@dataclass(frozen=True)
class Protection:
    """One row of the table: how the network is hardened, and the name of the file that keeps its bounds."""

    scheme: Scheme
    file: str


PROTECTIONS = {
    "Ranger layer": Protection(Ranger(), "ranger-layer.safetensors"),
    "FitAct layer": Protection(FitAct("layer"), "fitact-layer.safetensors"),
    "FitAct neuron": Protection(FitAct("neuron"), "fitact-neuron.safetensors"),
}


@dataclass(frozen=True, eq=False)
class Result:
    """What a run of the demo found, and where it left what."""

    task: Task
    options: Options
    comparison: Comparison
    files: tuple[str, ...] = ()

    def text(self) -> str:
        """The table, what it shows, and what lies where."""
        images, trials = len(self.task.test[1]), self.task.trials
        about = (
            f"{self.task.title}: accuracy in % on {images} test images. At each rate, bits flip in the memory of "
            f"parameters and bounds ({FORMAT.upper()}); the mean over {trials} fault draws, the same for every row, "
            "with its 95 % interval."
        )
        written = f"In {self.options.out}/: {', '.join(self.files)}." if self.files else ""
        paragraphs = (fill(about, WIDTH), self.comparison.table(), fill(self.comparison.sentences(), WIDTH))
        return "\n\n".join(filter(None, (*paragraphs, fill(written, WIDTH), NEXT)))

    def as_json(self) -> dict[str, Any]:
        """The same for programs, with every draw."""
        return {
            "network": self.options.model,
            "images": len(self.task.test[1]),
            "trials": self.task.trials,
            "seed": self.options.seed,
            "format": FORMAT,
            "torch": torch.__version__,
            "protections": self.comparison.as_json(),
        }


def run(options: Options) -> Result:
    """Do it all, telling on stderr what is being done. Raises FitactError for options that make no sense."""
    if options.model not in NETWORKS:
        raise FitactError(known("network", options.model, NETWORKS))
    options.out.mkdir(parents=True, exist_ok=True)  # before the long work, so that a wrong folder shows at once
    task = NETWORKS[options.model](options)
    with threads_set(task.threads):
        _say(f"2/4 hardening it three ways with {len(task.training[1])} training images")
        hardened = {name: _hardened(task, name, options.seed) for name in PROTECTIONS}
        campaign = _campaign(task, hardened, options)
        times = _run_times(task, hardened) if options.run_time else {}
    memory = {UNPROTECTED: 0} | {name: _bound_bytes(hard) for name, hard in hardened.items()}
    result = Result(task, options, Comparison(campaign, memory, times))
    return replace(result, files=_written(result, hardened))


def _digits(options: Options) -> Task:
    """The small network, trained here and now."""
    _say("1/4 training a small convolutional network on scikit-learn's handwritten digits")
    data = models.load_digits_data()
    model = models.train_digits(options.seed, progress=sys.stderr.isatty())
    training = _joined(data.train, data.calibration)
    test = data.test[0][: options.images], data.test[1][: options.images]
    # Tensors this small gain nothing from a second thread.
    rates = (1e-6, 1e-5, 1e-4, 1e-3)
    return Task("Handwritten digits", model, training, test, rates, options.trials or 60, batch=128, threads=1)


def _resnet20(options: Options) -> Task:
    """The trained ResNet-20 and CIFAR-10, from files."""
    if options.data is None:
        raise FitactError("the demo of resnet20 needs its files;\n  give --data DIR, the folder with models/ and data/")
    weights = _file(options.data, "models", "resnet20-cifar10.safetensors")
    images = _file(options.data, "data", "cifar10.npz")
    _say(f"1/4 loading {weights} and {images}")
    model = models.load_weights(models.resnet20(), weights)
    data = models.load_cifar10(images)
    rates = (1e-6, 3e-6, 1e-5, 3e-5)
    test = data.test(options.images or 500)
    threads = torch.get_num_threads()
    trials = options.trials or 16
    return Task("ResNet-20 on CIFAR-10", model, data.train(4096), test, rates, trials, batch=64, threads=threads)


NETWORKS: Mapping[str, Callable[[Options], Task]] = {"digits": _digits, "resnet20": _resnet20}


def _file(folder: Path, inside: str, name: str) -> Path:
    for path in (folder / inside / name, folder / name):
        if path.is_file():
            return path
    raise FitactError(f"there is no {name} in {folder / inside} nor in {folder}")


def _hardened(task: Task, name: str, seed: int) -> TracedModule:
    batches = list(zip(*(part.split(task.batch) for part in task.training), strict=True))
    hard = harden(task.model, scheme=PROTECTIONS[name].scheme)
    calibrate(hard, batches)
    if any(bounded.spec.learned for bounded in bounded_sites(hard).values()):
        start = perf_counter()
        record = post_train(hard, batches, seed=seed)
        _say(f"    {name}: {record} ({perf_counter() - start:.0f} s)")
    return hard


def _campaign(task: Task, hardened: Mapping[str, TracedModule], options: Options) -> CampaignResult:
    """Accuracy under bit flips; the store stays in the folder, in place of one that an earlier demo left there."""
    variants: dict[str, nn.Module] = {UNPROTECTED: task.model, **hardened}
    draws = f"{task.trials} draws at each of {len(task.rates)} rates"
    _say(f"3/4 flipping bits: {draws}, {len(variants)} networks, {len(task.test[1])} test images")
    for ending in ("", "-wal", "-shm"):
        (options.out / f"{STORE}{ending}").unlink(missing_ok=True)
    return run_campaign(
        variants,
        task.test,
        BitFlip,
        task.rates,
        format=FORMAT,
        trials=task.trials,
        seed=options.seed,
        threads=task.threads,
        store=options.out / STORE,
    )


def _bound_bytes(hard: GraphModule) -> int:
    held = [each for site in bounded_sites(hard).values() for each in site.memory.values()]
    return sum(each.numel() * each.element_size() for each in held)


def _run_times(task: Task, hardened: Mapping[str, TracedModule]) -> dict[str, float]:
    """Seconds per run of each variant compiled; empty, with the reason told, where compiling does not work."""
    x = task.test[0][:128]
    _say(f"4/4 compiling {len(hardened) + 1} networks and timing them on {len(x)} images")
    try:
        plain: Any = torch.compile(task.model, fullgraph=True)
        compiled = {UNPROTECTED: plain} | {name: lower(hard, (x,)) for name, hard in hardened.items()}
        return fastest_runs(compiled, x)
    except Exception as error:  # noqa: BLE001  a machine without a C++ compiler still gets its table
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _say(f"    no run times: torch.compile does not work here ({type(error).__name__}: {reason})")
        return {}


def _written(result: Result, hardened: Mapping[str, TracedModule]) -> tuple[str, ...]:
    """Leave everything in the folder; the names of the files."""
    out, task = result.options.out, result.task
    (out / "table.txt").write_text(result.text() + "\n", "utf-8")
    (out / "results.json").write_text(json.dumps(result.as_json(), indent=2) + "\n", "utf-8")
    save_model(task.model, str(out / "model.safetensors"))
    for name, hard in hardened.items():
        save(hard, out / PROTECTIONS[name].file)
    files = ["table.txt", "results.json", STORE, "model.safetensors", *(each.file for each in PROTECTIONS.values())]
    if draw_accuracies(result.comparison, task.title, out / "accuracy.png"):
        files.append("accuracy.png")
    return tuple(files)


def _joined(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
