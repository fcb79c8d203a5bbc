"""Part `overhead`: what a campaign costs beyond its forwards."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from campaign_sides import NEVER, VARIANT, Inside, Plan, Times, timed
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.executors import completed, workers_for
from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.kinds import RateSweep
from fitact_fx.campaigns.lanes import Lane, Lanes
from fitact_fx.campaigns.progress import Progress
from fitact_fx.campaigns.running import _block_sizes
from fitact_fx.campaigns.store import Store

RATES = (1e-6, 1e-5)
TRIALS = {256: 60, 32: 480}  # images -> trials at each rate: about ten seconds of forwards
QUICK = {16: 24, 4: 48}


def measure(plan: Plan) -> dict[str, Any]:
    """A campaign asked for one block of trials at a time; between two blocks, as many bare forwards."""
    model, cases = plan.network("ResNet-20"), []
    for images, trials in (QUICK if plan.quick else TRIALS).items():
        inputs, labels = plan.images(images)
        inside = Inside.of(model, (inputs, labels), RateSweep(RATES), How(True, False, False), trials=trials)
        bare = _bare(model, inputs)
        sizes = {"images": images, "trials": trials}
        cases += [{**sizes, **_case(inside, number, bare)} for number in range(len(RATES))]
    return {"cases": cases}


def _bare(model: nn.Module, inputs: Tensor) -> Callable[[int], None]:
    """What a user would write: the model compiled, so many forwards, nothing else."""
    compiled = torch.compile(model, fullgraph=True, dynamic=False)

    def forwards(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                compiled(inputs)

    forwards(2)
    return forwards


def _case(inside: Inside, number: int, bare: Callable[[int], None]) -> dict[str, Any]:
    """One rate: both sides in turn, then what the pieces of a trial take."""
    ours, theirs = Times(), Times()
    condition = inside.conditions[number]
    with TemporaryDirectory(prefix="campaign-") as folder, tqdm(total=condition.trials, desc=condition.name) as bar:
        blocks = _blocks(inside, number, Path(folder) / "campaign.db")
        next(blocks)  # the store is made
        while True:
            count, spent = timed(next, blocks, 0)
            if not count:
                break
            ours.add(spent, count)
            theirs.add(timed(bare, count)[1], count)
            bar.update(count)
    return {
        "rate": condition.name,
        "campaign": ours.told(),
        "bare": theirs.told(),
        "pieces": _pieces(inside, number, bare),
    }


def _blocks(inside: Inside, number: int, path: Path) -> Iterator[int]:
    """The loop of `run_campaign` behind its set-up, which stops at each block: how many trials that had."""
    job = inside.job
    lane = Lane(number, VARIANT, inside.conditions[number].trials, NEVER)
    lanes = Lanes({(number, VARIANT): lane}, _block_sizes(job))
    with (
        Store.create_or_open(path, inside.settings, inside.conditions) as store,
        workers_for(job) as pool,
        Progress(lanes, job, shown=False) as bar,
    ):
        yield 0
        for block, rows in completed(pool, lanes.blocks()):
            store.add(rows)
            bar.show(lanes.take(block, rows), len(rows))
            yield len(rows)


def _pieces(inside: Inside, number: int, bare: Callable[[int], None], repeats: int = 20) -> dict[str, float]:
    """Seconds of what a trial does besides its forward, each piece right behind one, whose caches it finds."""
    job, found = inside.job, {}
    evaluator, cell = job.evaluator(VARIANT), job.cells[number]

    def drawn(trial: int) -> Any:
        return cell.faults(evaluator.memory, job.format, job.seed, trial, None)

    def applied(faults: Any) -> None:
        with faults.applied(evaluator.memory):
            pass

    lists = [drawn(trial) for trial in range(repeats)]
    outputs = [golden.output for golden in evaluator.scoring.golden]
    (row,) = job.run(Block(number, VARIANT, (0,)))
    for name, work, given in (
        ("draw the faults", drawn, range(repeats)),
        ("put them in and out", applied, lists),
        ("judge the outputs", evaluator.scoring.scores, [outputs] * repeats),
    ):
        times = Times()
        for each in given:
            bare(1)
            with torch.inference_mode():
                times.add(timed(work, each)[1])
        found[name] = times.told()["cpu"]
    return found | {"write a row": _writing(inside, row, bare, repeats)}


def _writing(inside: Inside, row: Any, bare: Callable[[int], None], repeats: int) -> float:
    """A block of the campaign's own size in one transaction, by the row."""
    times, size = Times(), _block_sizes(inside.job)[VARIANT]
    with (
        TemporaryDirectory(prefix="campaign-") as folder,
        Store.create_or_open(Path(folder) / "campaign.db", inside.settings, inside.conditions) as store,
    ):
        for turn in range(repeats):
            rows = [replace(row, trial=turn * size + trial) for trial in range(size)]
            bare(1)
            times.add(timed(store.add, rows)[1], size)
    return times.told()["cpu"]
