"""Part `workers`: two processes against one, and a Dask cluster of two; the rows are the same."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from campaign_sides import Plan, answers
from torch import Tensor, nn
from tqdm import tqdm

from fitact_fx import run_campaign
from fitact_fx.campaigns.result import CampaignResult

RATE = 1e-5
SECONDS = 20.0  # of each run behind its set-up
ROUNDS = 3


def measure(plan: Plan) -> dict[str, Any]:
    """The same campaign again and again, in one process and in two; what the store says its trials took counts."""
    images, rounds = (8, 1) if plan.quick else (256, ROUNDS)
    model, data = plan.network("ResNet-20"), plan.images(images)

    def run(trials: int, **where: Any) -> CampaignResult:
        return run_campaign({"plain": model}, data, rates=[RATE], trials=trials, progress=False, **where)

    first = run(8)
    trials = 16 if plan.quick else round(SECONDS * 8 / _seconds(first))
    times: dict[str, list[float]] = {"one": [], "two": [], "dask": []}
    rows: dict[str, Any] = {}
    for _ in tqdm(range(rounds), desc="workers", unit="round"):
        for name, where in (("one", {"workers": 1}), ("two", {"workers": 2})):
            found = run(trials, **where)
            times[name].append(_seconds(found))
            _check(name, answers(found.rows), rows)
    bare = _bare(model, data[0], trials // 2, rounds)
    # Behind the others: a client has threads, and processes that have threads are better not forked.
    with _dask() as client:
        for _ in range(0 if client is None else rounds):
            found = run(trials, executor=client)
            times["dask"].append(_seconds(found))
            _check("dask", answers(found.rows), rows)
    return {
        "images": images,
        "rate": f"{RATE:g}",
        "trials": trials,
        "rounds": rounds,
        "runs": times,
        "bare": bare,
    }


def _check(name: str, now: Any, rows: dict[str, Any]) -> None:
    if now != rows.setdefault("one", now):
        raise SystemExit(f"the rows of {name!r} are others: a wrong result has no speed")


def _seconds(found: CampaignResult) -> float:
    """Of everything behind the set-up, starting the workers and stopping them included."""
    return float(found.sessions[-1]["seconds"])


@contextmanager
def _dask() -> Iterator[Any]:
    """A client of a cluster of two processes on this machine; None where dask is not installed."""
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        yield None
        return
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _bare(model: nn.Module, inputs: Tensor, forwards: int, rounds: int) -> dict[str, list[float]]:
    """What the machine itself gives: so many plain forwards in one process, and as many in each of two at once."""
    context = multiprocessing.get_context("fork")

    def loop(ready: Any) -> None:
        torch.set_num_threads(1)
        ready.wait()
        with torch.inference_mode():
            for _ in range(forwards):
                model(inputs)

    def seconds(count: int) -> float:
        ready = context.Barrier(count + 1)
        processes = [context.Process(target=loop, args=(ready,)) for _ in range(count)]
        for process in processes:
            process.start()
        ready.wait()
        start = perf_counter()
        for process in processes:
            process.join()
        return perf_counter() - start

    found: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(rounds):
        for name, count in (("one", 1), ("two", 2)):
            found[name].append(seconds(count))
    return found
