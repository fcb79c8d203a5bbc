"""What the process that runs a campaign can take: bytes sent and stored, rows written per second, blocks handed out.

    python tools/measure_coordinator.py [--rows 400000]

Copies of the rows of real trials. Speeds of this process are per second of its own processor time, so that they hardly
depend on what else the machine does; Dask's are by the clock: its scheduler, this process and two workers share the
machine. Prints the table of docs/campaigns.md.
"""

import argparse
import pickle
import tracemalloc
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

import fitact_fx
from fitact_fx.campaigns import CampaignResult, Store
from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.executors import Workers, completed, workers_for
from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.kinds import RateSweep
from fitact_fx.campaigns.lanes import Lane, Lanes
from fitact_fx.campaigns.payload import as_bytes
from fitact_fx.campaigns.progress import Progress
from fitact_fx.campaigns.rows import Row
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.setup import Setup
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.faults import BitFlip
from fitact_fx.faults.formats import as_format
from fitact_fx.models import resnet20

RATES = (1e-7, 1e-6, 1e-5, 1e-4)
LARGE = 64  # trials of a block
TASKS = 2000
RULE = StopRule(None, 30, "accuracy", 0.95)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000, help="in the large store (default: 400,000)")
    count = parser.parse_args().rows
    with TemporaryDirectory(prefix="coordinator-") as folder:
        found = _campaign(Path(folder) / "small.db")
        lines = [
            ("job of ResNet-20, 2 variants, 500 images", f"{_job_bytes():,} B"),
            *_sent(found.rows[-1]),
            *_stored(found, Path(folder), count),
            *_displayed(found),
            *_handed_out(found.rows[0]),
        ]
    print(tabulate(lines, ("what", "measured"), tablefmt="github", colalign=("left", "right")))


def _campaign(path: Path) -> CampaignResult:
    """A real one, of two variants at four rates."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
    images = torch.randn(100, 64)
    hard = fitact_fx.harden(model, "layer")
    fitact_fx.calibrate(hard, [images])
    labels = model(images).argmax(1)
    return fitact_fx.run_campaign(
        {"plain": model, "fitact": hard}, (images, labels), BitFlip, RATES, store=path, trials=200
    )


def _job_bytes() -> int:
    """What each worker is sent once; the variants share their Parameters there, too."""
    model, images = resnet20(), torch.randn(500, 3, 32, 32)
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [images])
    setup = Setup(
        variants={"plain": model, "fitact": hard},
        samples=Samples.read((images, torch.zeros(500, dtype=torch.int64))),
        kind=RateSweep(RATES),
        fault=BitFlip,
        format=as_format("q15.16"),
        targets=None,
        at=None,
        where="before",
        permanent=True,
        trials=None,
        rule=RULE,
        metrics={},
        seed=0,
        how=How(),
        threads=1,
    )
    return len(as_bytes(setup.planned()[0]))


def _sent(row: Row) -> Iterator[tuple[str, str]]:
    for trials in (1, LARGE):
        request = ("0" * 32, None, Block(3, row.variant, tuple(range(10**6, 10**6 + trials))), 0)
        yield f"request for a block of {trials}, pickled", f"{len(pickle.dumps(request)):,} B"
        answer = pickle.dumps([replace(row, trial=10**6 + trial, checksum=f"{trial:032x}") for trial in range(trials)])
        yield f"its rows, pickled, {trials}", f"{len(answer):,} B"


def _stored(found: CampaignResult, folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """A large store, written in blocks of one size after another."""
    for size, rows in ((1, count // 20), (8, count // 4), (LARGE, count)):
        path = folder / f"{size}.db"
        with Store.create_or_open(path, found.settings, _conditions(found, rows)) as store:
            store.begin_session({})
            seconds = _seconds(store, _blocks(found, rows, size))
        yield f"rows written in blocks of {size}", f"{rows / seconds:,.0f} rows/s"
    yield f"the store, of {count:,} rows", f"{path.stat().st_size / count:.0f} B/row"
    start = process_time()
    rows = len(Store.read(path).rows)
    yield "reading it, as at the start of a campaign", f"{rows / (process_time() - start):,.0f} rows/s"
    tracemalloc.start()
    rows = len(Store.read(folder / "1.db").rows)
    yield "memory that it takes then", f"{tracemalloc.get_traced_memory()[1] / rows:,.0f} B/row"
    tracemalloc.stop()
    yield from _loop(found, folder / "loop.db", count)


def _seconds(store: Store, blocks: Iterator[tuple[Block, list[Row]]]) -> float:
    """Of `Store.add` alone."""
    spent = 0.0
    for _, rows in blocks:
        start = process_time()
        store.add(rows)
        spent += process_time() - start
    return spent


def _loop(found: CampaignResult, path: Path, count: int) -> Iterator[tuple[str, str]]:
    """All that the process of a campaign does with the rows of a block: store, progress, stop rule."""
    conditions = _conditions(found, count)
    cells = _shown(conditions)
    lanes = Lanes(
        {
            (number, variant): Lane(number, variant, each.trials, RULE)
            for number, each in enumerate(conditions)
            for variant in found.variants
        },
        dict.fromkeys(found.variants, LARGE),
    )
    spent = 0.0
    with (
        Store.create_or_open(path, found.settings, conditions) as store,
        Progress(lanes, cells, shown=False) as bar,
    ):
        store.begin_session({})
        for block, rows in _blocks(found, count, LARGE):
            start = process_time()
            store.add(rows)
            bar.show(lanes.take(block, rows), len(rows))
            spent += process_time() - start
    yield f"written and looked at, blocks of {LARGE}", f"{count / spent:,.0f} rows/s"


def _displayed(found: CampaignResult) -> Iterator[tuple[str, str]]:
    """What is told of a cell after each of its blocks, on a terminal or not."""
    variant, values = found.variants[0], found.values(found.variants[0], found.conditions[0].name)
    for trials in (10_000, 100_000):
        lane = Lane(0, variant, trials + 1, RULE, dict(enumerate(np.resize(values, trials).tolist())))
        with Progress(Lanes({(0, variant): lane}, {variant: 1}), _shown(found.conditions), shown=False) as bar:
            start = process_time()
            for _ in range(20):
                bar.show(lane, LARGE)
            yield (
                f"progress display, {trials:,} trials in a cell",
                f"{(process_time() - start) / 20 * 1e3:.2f} ms/block",
            )


def _shown(conditions: Sequence[Any]) -> Any:
    """As much of a job as the progress display asks for."""
    return SimpleNamespace(cells=[SimpleNamespace(condition=each) for each in conditions])


def _handed_out(row: Row) -> Iterator[tuple[str, str]]:
    """Blocks that take no time: what is left is what handing them out costs."""
    from distributed import Client, LocalCluster

    for name, trials, threads in (
        ("2 processes", 1, 0),
        ("Dask, 2 processes of 64 threads", 1, 64),
        ("Dask, 2 processes of 64 threads", LARGE, 64),
    ):
        with ExitStack() as stack:
            where: dict[str, Any] = {"workers": 2}
            if threads:
                cluster = LocalCluster(n_workers=2, threads_per_worker=threads, dashboard_address=":0", silence_logs=50)
                where = {"executor": stack.enter_context(Client(stack.enter_context(cluster)))}
            workers = stack.enter_context(workers_for(Instant(row), **where))
            speed = _speed(workers, Block(0, row.variant, tuple(range(trials))))
        yield f"empty blocks of {trials} through {name}", f"{speed:,.0f} blocks/s"
    with Echo(1000) as echo:
        speed = _speed(echo, Block(0, row.variant, (0,)))
    yield "empty blocks through nothing, 2,000 under way", f"{speed:,.0f} blocks/s"


def _speed(workers: Workers, block: Block) -> float:
    """Blocks per second, once everything is loaded."""
    for _ in completed(workers, iter([block] * 4 * workers.slots)):
        pass
    start = perf_counter()
    done = sum(1 for _ in completed(workers, iter([block] * TASKS * 2)))
    return done / (perf_counter() - start)


class Echo:
    """So many workers that need no time: a thread that answers one block after another, a little later."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pool = ThreadPoolExecutor(1)

    def submit(self, block: Block) -> "Future[list[Row]]":
        return self._pool.submit(_nothing, block)

    def __enter__(self) -> "Echo":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()


def _nothing(block: Block) -> list[Row]:  # noqa: ARG001  as a job has it
    return []


@dataclass(frozen=True)
class Instant:
    """Rows at once."""

    row: Row
    threads: int = 1

    def run(self, block: Block) -> list[Row]:
        return [replace(self.row, trial=trial) for trial in block.trials]


def _conditions(found: CampaignResult, rows: int) -> list[Any]:
    trials = -(-rows // (len(found.variants) * len(RATES)))
    return [replace(each, trials=trials) for each in found.conditions]


def _blocks(found: CampaignResult, rows: int, size: int) -> Iterator[tuple[Block, list[Row]]]:
    """As the lanes hand them out: one of each cell and variant in turn."""
    lanes: Sequence[tuple[int, list[Row]]] = [
        (number, [row for row in found.rows if (row.cell, row.variant) == (each.name, variant)])
        for number, each in enumerate(found.conditions)
        for variant in found.variants
    ]
    each = rows // len(lanes)
    for start in range(0, each, size):
        for number, real in lanes:
            trials = tuple(range(start, min(each, start + size)))
            made = [
                replace(real[trial % len(real)], trial=trial, checksum=_checksum(number, trial)) for trial in trials
            ]
            yield Block(number, real[0].variant, trials), made


def _checksum(number: int, trial: int) -> str:
    return blake2b(f"{number} {trial}".encode(), digest_size=16).hexdigest()


if __name__ == "__main__":
    main()
