"""What stopping early costs in confidence: how often the interval at which a cell stops holds the true mean.

    python tools/measure_stopping.py [--repeats 400]

Cells of made-up draws whose mean is known, run under the stop rule of `run_campaign` (minimum 30, at most 1,000 trials,
95 %). `fixed` is the share for as many trials without a stop rule.
"""

import argparse

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.statistics import bootstrap_mean, stopping_interval

MOST = 1000
# Share of draws that ruin something, and between which accuracies those lie; all others are at 0.95.
CELLS = {
    "every draw between 0.2 and 0.9": (1.0, 0.2, 0.9),
    "one draw in four between 0.1 and 0.9": (0.25, 0.1, 0.9),
    "one draw in 20 between 0.1 and 0.9": (0.05, 0.1, 0.9),
    "one draw in 100 at 0.1": (0.01, 0.1, 0.1),
}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    rows = [
        [name, until, *_shares(cell, until, repeats)]
        for name, cell in CELLS.items()
        for until in ((0.02, 0.05) if cell[0] > 0.01 else (0.01, 0.02))
    ]
    print(tabulate(rows, ("cell", "until", "trials", "stopped", "fixed"), tablefmt="github"))


def _shares(cell: tuple[float, float, float], until: float, repeats: int) -> tuple[str, str, str]:
    """Trials in the middle, and the shares of intervals that hold the mean, with a stop rule and without."""
    share, low, high = cell
    truth = 0.95 - share * (0.95 - (low + high) / 2)
    rule, chance = StopRule(until, 30, "accuracy", 0.95), np.random.default_rng(0)
    stopped, fixed, trials = 0, 0, []
    for _ in range(repeats):
        values = _draws(cell, chance)
        look = rule.first_look(MOST)
        while look < MOST and not rule.is_met(values[:look].tolist()):
            look = rule.next_look(look, MOST, values[:look].tolist())
        trials.append(look)
        found, other = stopping_interval(values[:look]), bootstrap_mean(_draws(cell, chance)[:look])
        stopped += found.low <= truth <= found.high
        fixed += other.low <= truth <= other.high
    return f"{int(np.median(trials))}", f"{stopped / repeats:.1%}", f"{fixed / repeats:.1%}"


def _draws(cell: tuple[float, float, float], chance: np.random.Generator) -> NDArray[np.float64]:
    share, low, high = cell
    return np.where(chance.random(MOST) < share, chance.uniform(low, high, MOST), 0.95)


if __name__ == "__main__":
    main()
