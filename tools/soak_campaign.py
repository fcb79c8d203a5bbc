"""The campaign that tools/soak.py kills: a user's script, small enough to be started a hundred times.

python tools/soak_campaign.py STORE [--workers 2 | --dask 2] [--trials 300]
"""

import argparse
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.faults import BitFlip


def networks() -> tuple[dict[str, nn.Module], tuple[Tensor, Tensor]]:
    """One network in three variants, and data on which it is always right."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = torch.randn(40, 1, 6, 6)
    variants: dict[str, nn.Module] = {"plain": model}
    for granularity in ("layer", "neuron"):
        hard = fitact_fx.harden(model, granularity)
        fitact_fx.calibrate(hard, [images])
        variants[granularity] = hard
    with torch.no_grad():
        return variants, (images, model(images).argmax(1))


def largest(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001  the signature of a metric
    """The largest score, which may be infinite or a NaN."""
    return outputs.max()


def main() -> None:
    """Run what the store lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dask", type=int, metavar="WORKERS")
    parser.add_argument("--trials", type=int, default=300)
    options = parser.parse_args()
    variants, data = networks()
    where: dict[str, Any] = {"workers": options.workers}
    with ExitStack() as stack:
        if options.dask:
            from distributed import Client, LocalCluster

            cluster = LocalCluster(n_workers=options.dask, threads_per_worker=1, dashboard_address=":0")
            where = {"executor": stack.enter_context(Client(stack.enter_context(cluster)))}
        result = fitact_fx.run_campaign(
            variants,
            data,
            BitFlip,
            [1e-4, 1e-3],
            trials=options.trials,
            until=0.025,
            metrics={"largest": largest},
            store=options.store,
            **where,
        )
    print(result.table())


if __name__ == "__main__":
    main()
