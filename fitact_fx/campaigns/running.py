"""The main job of a campaign, top to bottom: plan the cells, open the store, run what is missing, read the result."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from torch import nn

from fitact_fx.ambience import random_states_kept, slow_path, threads_set
from fitact_fx.campaigns.arguments import (
    confidence_level,
    half_width,
    kind_asked,
    measure_named,
    named_metrics,
    named_models,
    side_of,
    texts,
    whole,
)
from fitact_fx.campaigns.environment import environment
from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.executors import completed, workers_for
from fitact_fx.campaigns.job import Job
from fitact_fx.campaigns.kinds import Kind
from fitact_fx.campaigns.lanes import Lane, Lanes
from fitact_fx.campaigns.progress import Progress
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.scoring import Metric
from fitact_fx.campaigns.setup import Setup
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.campaigns.store import Store
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip, FaultModel, Format
from fitact_fx.faults.formats import as_format

_SECONDS_PER_BLOCK = 0.5  # long enough to hide what it costs to hand a block out, short enough to lose
_MOST_PER_BLOCK = 64


def run_campaign(
    variants: Mapping[str, nn.Module],
    data: object,
    fault: Callable[..., FaultModel] | FaultModel = BitFlip,
    rates: Sequence[float] | None = None,
    *,
    kind: Kind | None = None,
    format: str | Format = "q15.16",  # noqa: A002 - the word of the field, and of the public API
    targets: Sequence[str] | None = None,
    at: str | Sequence[str] | None = None,
    where: str = "before",
    permanent: bool = True,
    trials: int | None = None,
    until: float | None = None,
    minimum: int = 30,
    measure: str | None = None,
    confidence: float = 0.95,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    store: str | PathLike[str] | None = None,
    workers: int = 1,
    executor: Any = None,
    threads: int = 1,
    compile: bool = False,  # noqa: A002 - the word of torch, and of the public API
    suffixes: bool = True,
    skip: bool = True,
    suffix_memory: int = 1 << 30,
    progress: bool = True,
    words: Mapping[str, Any] | None = None,
) -> CampaignResult:
    """How much each variant loses under faults, every variant on the same ones; the same call on its store goes on.

    What is asked: `rates` make a rate sweep with `fault`, a fault model such as BitFlip, or `partial(BitFlip,
    bits="exponent")`; `kind` is another question (`SingleFaults`, `Exhaustive`); a fault model that says itself how
    often it strikes, `BitFlip(count=3)`, is one condition. `targets` are as in `FaultModel.draw`. `at` hits
    activations: globs as in `inject`, `where` "before" or "after" the bounds; `permanent` faults hit the same element
    of every sample (a broken unit), others each a sample of its own.

    What is measured: see `campaigns.scoring`. `data`: (inputs, labels), or a re-iterable of batches in a fixed order.
    `metrics`: name -> function(outputs, targets) over all samples, tensors where each batch has one. One that raises
    in a trial is noted there.

    How long: `trials` draws per cell (100, or what the kind plans). With `until`, a cell of a variant stops as soon as,
    at one of a few fixed looks and after `minimum` draws, the mean of `measure` (the accuracy; "sdc1", "sdc5", "due" or
    a metric) is known to +-that, what no draw has shown yet included (see `stopping.StopRule`).

    Where: in this process; in `workers` processes of this machine; or in an `executor`, any concurrent.futures.Executor
    or a dask.distributed Client. Each computes with `threads` threads. The rows do not depend on who ran them.

    How: `compile` shares one compiled network per variant among all trials; `suffixes` re-runs only what depends on a
    fault, from at most `suffix_memory` bytes of kept values per process; `skip` runs nothing where a fault provably
    changes nothing. Without `compile`, all of that gives bitwise the same rows. `words`: JSON values that a new store
    keeps beside all this; the command line resumes from them.

    While a trial runs in this process, its faults are in the variants' shared Parameters; behind it they are not.
    Raises CampaignError for anything that cannot be planned, measured, resumed or stored.
    """
    whole("workers", workers, 1)
    measured = named_metrics(metrics)
    column = measure_named(measure, measured)
    with random_states_kept():  # a DataLoader draws from the global generator when it is iterated
        samples = Samples.read(data)
    asked = Setup(
        variants=named_models(variants),
        samples=samples,
        kind=kind_asked(fault, rates, kind),
        fault=fault,
        format=as_format(format),
        targets=texts(targets),
        at=texts(at),
        where=side_of(where),
        permanent=permanent,
        trials=None if trials is None else whole("trials", trials, 1),
        rule=StopRule(
            half_width(until, measured, column), whole("minimum", minimum, 2), column, confidence_level(confidence)
        ),
        metrics=measured,
        seed=whole("seed", seed, None),
        how=How(compile, suffixes, skip, whole("suffix_memory", suffix_memory, 0)),
        threads=whole("threads", threads, 1),
    )
    # What trials set for themselves is set here too, so that threads of an executor cannot leave it behind.
    stance = torch.compiler.set_stance("default") if compile else nullcontext()
    with threads_set(threads), random_states_kept(), slow_path(), stance, ExitStack() as stack:
        if store is None:
            store = Path(stack.enter_context(TemporaryDirectory(prefix="fitact-fx-"))) / "campaign.db"
        return _run(asked, Path(store), workers, executor, words, shown=progress)


def _run(
    asked: Setup, path: Path, workers: int, executor: Any, words: Mapping[str, Any] | None, *, shown: bool
) -> CampaignResult:
    """Do what the store at `path` lacks."""
    job, settings, conditions = asked.planned()
    with _opened(path, job, settings, conditions, words) as store:
        lanes = _lanes(job, asked.stop_rule, store)
        if any(not lane.finished for lane in lanes.lanes.values()):
            _check_clean(job, store.settings)
            lanes = Lanes(lanes.lanes, _block_sizes(job))
            _work(job, lanes, store, workers, executor, shown=shown)
    return Store.read(path)


@contextmanager
def _opened(
    path: Path, job: Job, settings: dict[str, Any], conditions: Sequence[Condition], words: Mapping[str, Any] | None
) -> Iterator[Store]:
    """The store, made with what was measured without faults, or the one that is there, with its measured costs."""
    if not path.parent.is_dir():
        raise CampaignError(
            f"there is no folder {path.parent} for the store {path.name};\n  make it, or choose another"
        )
    if not Store.is_begun(path):
        _measure(job, settings)
    with Store.create_or_open(path, settings, conditions) as store:
        if store.note("costs") is None:  # new, or its process was killed before the first trial
            store.set_note("words", words)
            store.set_note("costs", {name: job.evaluator(name).costs for name in job.variants})
        job.costs.update(store.note("costs"))
        yield store


def _measure(job: Job, settings: dict[str, Any]) -> None:
    """Run every variant without faults, and write what that gave into the settings."""
    for name in job.variants:
        evaluator = job.evaluator(name)
        settings["variants"][name] |= {"clean": evaluator.clean_values(), "seconds": evaluator.costs["whole"]}


def _check_clean(job: Job, settings: Mapping[str, Any]) -> None:
    """CampaignError if a variant no longer answers as it did when the store was made."""
    for name in job.variants:
        before, now = settings["variants"][name]["clean"], job.evaluator(name).clean_values()
        if before != now:
            raise CampaignError(
                f"without faults, variant {name!r} gives {now} now and gave {before} when the store was made;\n"
                "  its code, the machine or a library changed: use another store"
            )


def _lanes(job: Job, rule: StopRule, store: Store) -> Lanes:
    done: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in store.result().rows:
        done[row.variant, row.cell].append(row)
    lanes = {}
    for number, cell in enumerate(job.cells):
        for variant in job.variants:
            lane = Lane(number, variant, cell.condition.trials, rule)
            lane.take(done[variant, cell.condition.name])
            lanes[number, variant] = lane
    return Lanes(lanes, dict.fromkeys(job.variants, 1))


def _block_sizes(job: Job) -> dict[str, int]:
    """So many trials of each variant take about half a second, if all of the network runs."""
    seconds = {name: max(1e-6, float(job.evaluator(name).costs["whole"])) for name in job.variants}
    return {name: max(1, min(_MOST_PER_BLOCK, int(_SECONDS_PER_BLOCK / each))) for name, each in seconds.items()}


def _work(job: Job, lanes: Lanes, store: Store, workers: int, executor: Any, *, shown: bool) -> None:
    """Hand out blocks and write down what comes back, until every lane is finished."""
    start, trials = perf_counter(), set[tuple[int, int]]()
    store.begin_session(environment(job.threads, workers))
    try:
        with Progress(lanes, job, shown=shown) as bar, workers_for(job, workers=workers, executor=executor) as pool:
            for block, rows in completed(pool, lanes.blocks()):
                store.add(rows)
                trials.update((block.cell, trial) for trial in block.trials)
                bar.show(lanes.take(block, rows), len(rows))
    finally:
        store.end_session(perf_counter() - start, len(trials))
