"""Search one threshold per site, by what it does to the accuracy under faults.

After FT-ClipAct (DATE 2020, arXiv 1912.00941): site by site, the interval from 0 to the profiled
maximum is split in parts, each edge is scored by the area under accuracy against fault rate, the
neighbours of the best edge are the next interval, and so on. What is fixed here:

- The area is taken over log10 of the rates, so that every decade counts alike.
- Every edge meets the same fault lists and the same samples, so what differs is the edge.
- A site that has been searched keeps its threshold while the next ones are.
- An edge that costs more clean accuracy on held-out samples than allowed is not chosen.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Any

from torch import nn
from tqdm import tqdm

from fitact_fx.bounded import bounded_sites, exchanged
from fitact_fx.budget import Search
from fitact_fx.clean_accuracy import check_max_drop, too_costly, within
from fitact_fx.confined import only_bounds_change
from fitact_fx.errors import CalibrationError
from fitact_fx.faults import BitFlip
from fitact_fx.holdout import Holdout
from fitact_fx.new_samples import warn_of_new_samples
from fitact_fx.policies import Pass
from fitact_fx.probe import Probe, picked
from fitact_fx.statistics import area_under
from fitact_fx.thresholds import Threshold

_HELD_OUT = 0.2  # of the samples at most
_FIRST_TRIAL = 10**9  # campaigns count their trials from 0: none is scored on faults that a search has seen


@dataclass(frozen=True)
class Searched:
    """What a search did. Accuracies and drops are shares of the held-out samples.

    `before` and `after`: site name -> its threshold, the greatest finite bound it has. The areas are the mean
    accuracy over log10 of the rates, under the very fault lists and on the very images that were searched on:
    `area_after` flatters. `evaluations` is how often an area was measured, `injections` how many fault lists were
    applied for that.
    """

    before: Mapping[str, float]
    after: Mapping[str, float]
    area_before: float
    area_after: float
    rates: tuple[float, ...]
    draws: int
    images: int
    injections: int
    evaluations: int
    seconds: float
    held_out: int
    clean_accuracy: float
    drop: float

    def __str__(self) -> str:
        shares = [self.after[name] / before for name, before in self.before.items() if before]
        return (
            f"thresholds at {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the maximum, median "
            f"{100 * median(shares):.0f} %, area {self.area_before:.4f} -> {self.area_after:.4f} from "
            f"{self.rates[0]:g} to {self.rates[-1]:g} on {self.images} images, {self.injections} injections for "
            f"{self.evaluations} evaluations in {self.seconds:.0f} s, "
            f"clean drop {100 * self.drop:.2f} points on {self.held_out} held-out samples"
        )


def search_thresholds(hard: nn.Module, data: object, search: Search, max_drop: float, seed: int) -> Searched:
    """Search the threshold of every site whose spec is learned, in call order; see the head of this file.

    Nothing but bounds changes: no Parameter, mode or random state. If anything is raised, the bounds are as
    before. Where a batch has no labels, the clean model's own answers are the right ones. Raises CalibrationError
    for fewer than 16 samples to search on, and if the calibrated bounds already cost more than `max_drop`;
    RecipeError for a `max_drop` that is no share.
    """
    check_max_drop(max_drop)
    start = time.perf_counter()
    bounded = {name: Threshold(site) for name, site in bounded_sites(hard).items() if site.spec.learned}
    sites = {name: threshold for name, threshold in bounded.items() if threshold.can_move}
    if not sites:
        raise CalibrationError("no site of this model has a finite bound to search below;\n  calibrate it first")
    with only_bounds_change(hard, seed):
        before = {name: threshold.value for name, threshold in sites.items()}
        trials = _Trials(hard, data, search, max_drop, seed)
        warn_of_new_samples(hard, trials.holdout, max_drop)
        area_before, area_after = _search_all(list(sites.values()), trials, search)
        return Searched(
            before=before,
            after={name: threshold.value for name, threshold in sites.items()},
            area_before=area_before,
            area_after=area_after,
            rates=search.rates,
            draws=search.draws,
            images=sum(batch.size for batch in trials.scored.batches),
            injections=trials.injections,
            evaluations=trials.evaluations,
            seconds=time.perf_counter() - start,
            held_out=trials.holdout.held_out,
            clean_accuracy=trials.clean,
            drop=trials.drop(),
        )


def _search_all(sites: list[Threshold], trials: "_Trials", search: Search) -> tuple[float, float]:
    """Leave every site with the best threshold found; the areas before and after."""
    each = search.rounds * (search.parts - 1) * len(trials.faults)  # injections for one site at most
    with tqdm(desc="searching", unit="injection", delay=2, disable=None, leave=False) as bar:
        trials.bar = bar
        bar.total = len(trials.faults) + len(sites) * each
        first = area = trials.area()
        for done, site in enumerate(sites, start=1):
            area = _search(site, area, trials, search)
            bar.total = trials.injections + (len(sites) - done) * each
            bar.refresh()
    return first, area


def _search(site: Threshold, area: float, trials: "_Trials", search: Search) -> float:
    """Leave one site with the best threshold found; the area with it. `area` is that at its maximum."""
    low, high, best = Fraction(0), Fraction(1), Fraction(1)
    areas, allowed = {high: area}, {high: True}
    for _ in range(search.rounds):
        edges = [low + (high - low) * part / search.parts for part in range(search.parts + 1)]
        edges = [edge for edge in edges if edge > 0]  # a threshold of 0 lets nothing pass
        for edge in edges:
            if edge not in areas:
                site.put(float(edge))
                areas[edge] = trials.area()
        best = _best(site, areas, allowed, trials)
        heights = [areas[edge] for edge in edges]
        if max(heights) - min(heights) <= search.tolerance:
            break
        below, above = [edge for edge in edges if edge < best], [edge for edge in edges if edge > best]
        low, high = max(below, default=low), min(above, default=best)
    site.put(float(best))
    return areas[best]


def _best(
    site: Threshold, areas: Mapping[Fraction, float], allowed: dict[Fraction, bool], trials: "_Trials"
) -> Fraction:
    """The edge of the greatest area whose clean drop is allowed; of equals the greatest."""
    for edge in sorted(areas, key=lambda edge: (areas[edge], edge), reverse=True):
        if edge not in allowed:
            site.put(float(edge))
            allowed[edge] = within(trials.drop(), trials.max_drop)
        if allowed[edge]:
            return edge
    raise AssertionError("the site's maximum is allowed")


class _Trials:
    """The fault lists and samples that every edge is scored on, and how often that was done.

    CalibrationError if bounds as they are cost more than `max_drop`.
    """

    def __init__(self, hard: nn.Module, data: object, search: Search, max_drop: float, seed: int) -> None:
        self.hard, self.holdout = hard, _holdout(data, search)
        self.scored = Probe.of(hard, picked(self.holdout, search.images))
        self.checked = Probe.of(hard, list(self.holdout.held_out_batches()))
        self.max_drop = max_drop
        with exchanged(hard, Pass()):
            self.clean = self.checked.accuracy(hard)
        if not within(drop := self.drop(), max_drop):
            raise too_costly(drop, max_drop, self.holdout)
        each = [rate for rate in search.rates for _ in range(search.draws)]
        self.faults = [
            (rate, BitFlip(rate=rate).draw(hard, search.format, seed, _FIRST_TRIAL + number))
            for number, rate in enumerate(each)
        ]
        self.injections = self.evaluations = 0
        self.bar: Any = None

    def area(self) -> float:
        """The area under accuracy against fault rate with the bounds as they are now."""
        accuracies = []
        for _, faults in self.faults:
            with faults.applied(self.hard):
                accuracies.append(self.scored.accuracy(self.hard))
            self.injections += 1
            self.bar.update()
        self.evaluations += 1
        return area_under([rate for rate, _ in self.faults], accuracies)

    def drop(self) -> float:
        """How much clean accuracy the bounds as they are now cost on the held-out samples."""
        return self.clean - self.checked.accuracy(self.hard)


def _holdout(data: object, search: Search) -> Holdout:
    holdout = Holdout.of(data, _HELD_OUT)
    if holdout.held_out > search.held_out:
        holdout = Holdout.of(data, search.held_out / (holdout.held_out + holdout.learned))
    return holdout
