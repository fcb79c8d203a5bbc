"""What the guard over parameters costs and what it holds: `python tools/measure_guard.py --data DIR`.

DIR holds `models/<name>-cifar10.safetensors` and `data/cifar10.npz`. Writes tools/results/guard.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fitact_fx
from fitact_fx.faults import BitFlip
from fitact_fx.guarded import guard_bytes
from fitact_fx.models import alexnet_cifar, load_cifar10, load_weights, resnet20

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {"resnet20": resnet20, "alexnet": alexnet_cifar}
RATES = (1e-5, 3e-5, 1e-4)
RESULTS = Path(__file__).parent / "results" / "guard.md"


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and a 95 % bootstrap interval of it."""
    draws = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    return statistics.median(values), float(low), float(high)


def seconds(run: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, the mean of so many, in this thread's own time: what else the machine does counts less."""
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return (time.thread_time() - start) / repeats


def in_turns(runs: list[Callable[[], Any]], rounds: int, repeats: int) -> np.ndarray:
    """Seconds of each call, (rounds, runs): in a round one right after the other, in turns which goes first."""
    found = np.empty((rounds, len(runs)))
    for number in range(rounds):
        order = range(len(runs)) if number % 2 else reversed(range(len(runs)))
        for place in order:
            found[number, place] = seconds(runs[place], repeats)
    return found


def cost_rows(name: str, model: torch.nn.Module, batches: list[int], rounds: int) -> list[str]:
    """One row per batch size and way: the ratio with its interval."""
    rows = []
    for batch in batches:
        x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        plain, guarded = fitact_fx.trace(model), fitact_fx.guard(model)
        torch.compiler.reset()
        ways = {
            "eager": (plain, guarded),
            "compiled": (torch.compile(plain, fullgraph=True), fitact_fx.lower(guarded, x)),
        }
        for way, pair in ways.items():
            with torch.inference_mode():
                runs = [lambda run=run, x=x: run(x) for run in pair]
                for run in runs:
                    run()
                taken = in_turns(runs, rounds, 20 if batch == 1 else 1)
            once = 1e3 * float(np.median(taken[:, 0]))
            median, low, high = interval(list(taken[:, 1] / taken[:, 0]))
            rows.append(f"| {name} | {batch} | {way} | {once:.2f} | {median:.3f} | {low:.3f} to {high:.3f} |")
    return rows


def scrub_row(name: str, model: torch.nn.Module, rounds: int) -> str:
    """How long a scrub takes that finds nothing, and as a share of an inference of 1 and of 128 images."""
    plain, guarded = fitact_fx.trace(model), fitact_fx.guard(model)
    inputs = [torch.randn(batch, 3, 32, 32) for batch in (1, 128)]
    with torch.inference_mode():
        runs = [lambda: fitact_fx.scrub(guarded), *(lambda x=x: plain(x) for x in inputs)]
        for run in runs:
            run()
        taken = in_turns(runs, max(5, rounds), 1)
    median, low, high = interval(list(1e3 * taken[:, 0]))
    one, many = (float(np.median(taken[:, 0] / taken[:, place])) for place in (1, 2))
    return f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) | {one:.0%} | {many:.1%} |"


def byte_rows(name: str, model: torch.nn.Module) -> list[str]:
    """Bytes of the limits, all three copies."""
    parameters = sum(each.numel() * each.element_size() for each in model.parameters())
    sizes = {limits: guard_bytes(fitact_fx.guard(model, limits)) for limits in ("channel", "tensor")}
    return [f"| {name} | {limits} | {size:,} | {size / parameters:.2%} |" for limits, size in sizes.items()]


def accuracy_rows(name: str, model: torch.nn.Module, folder: Path, images: int, trials: int) -> list[str]:
    """Accuracy under the same faults without a guard, and with each kind of limits."""
    data = load_cifar10(folder / "data" / "cifar10.npz")
    batches = [data.test(min(100, images - start), start) for start in range(0, images, 100)]
    variants = {"none": model, **{limits: fitact_fx.guard(model, limits) for limits in ("channel", "tensor")}}
    result = fitact_fx.run_campaign(
        variants, batches, fault=BitFlip, rates=list(RATES), format="q15.16", trials=trials, seed=0
    )
    table = result.to_pandas().groupby(["variant", "rate"], sort=False)["accuracy"].agg(["mean", "min"])
    return [
        f"| {name} | {variant} | {rate:g} | {row['mean']:.2%} | {row['min']:.2%} |"
        for (variant, rate), row in table.iterrows()
    ]


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/ and models/")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 128])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # of whose time alone a thread can tell
    costs, scrubs, sizes, held = [], [], [], []
    for name in asked.networks:
        file = asked.data / "models" / f"{name}-cifar10.safetensors"
        model = load_weights(NETWORKS[name](), file).eval()
        costs += cost_rows(name, model, asked.batches, asked.rounds)
        scrubs.append(scrub_row(name, model, asked.rounds))
        sizes += byte_rows(name, model)
        held += accuracy_rows(name, model, asked.data, asked.images, asked.trials)
        print(*costs, *scrubs, *sizes, *held, sep="\n")
    page = f"""# The guard over parameters: cost and effect

`python tools/measure_guard.py {" ".join("DIR" if each == str(asked.data) else each for each in sys.argv[1:])}`

torch {torch.__version__}, {torch.get_num_threads()} thread(s) of the CPU, in that thread's own time. Ratios are medians
over {asked.rounds} pairs, each pair measured one right after the other, with a 95 % bootstrap interval of the median.

| network | batch | way | without, ms | guarded / without | interval |
| --- | ---: | --- | ---: | ---: | --- |
{chr(10).join(costs)}

A scrub that finds nothing to repair:

| network | ms | of an inference of 1 image | of 128 images |
| --- | --- | ---: | ---: |
{chr(10).join(scrubs)}

The limits' memory, all three copies:

| network | limits | bytes | of the parameters |
| --- | --- | ---: | ---: |
{chr(10).join(sizes)}

Accuracy on {asked.images} test images in Q15.16, {asked.trials} draws, the same faults for each row; parameters and
limits are hit:

| network | limits | bit error rate | mean accuracy | worst draw |
| --- | --- | ---: | ---: | ---: |
{chr(10).join(held)}
"""
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
