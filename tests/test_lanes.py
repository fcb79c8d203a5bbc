"""Which trials of a campaign run, whoever runs them and in whichever order: against a loop written out."""

import random
from collections.abc import Callable
from functools import cache
from math import ceil
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.lanes import Lane, Lanes, measured
from fitact_fx.campaigns.rows import Row
from fitact_fx.campaigns.stopping import StopRule
from fitact_fx.statistics import bootstrap_mean

QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)
Value = float | None


def row(trial: int, value: Value, variant: str = "plain", **more: Any) -> Row:
    return Row(variant, "cell", trial, 1, "", value, None, None, 0.0, **more)


@cache
def is_known(values: tuple[float, ...], until: float, confidence: float) -> bool:
    """The bootstrap, the normal approximation, and what an outcome that was not seen could do to a share."""
    if len(values) < 2:
        found = bootstrap_mean(values, confidence)
        return False
    mean, found = float(np.mean(values)), bootstrap_mean(values, confidence)
    if len(set(values)) == 1 and not 0 <= mean <= 1:
        return False
    reaches = [found.high - mean, mean - found.low, needed(values, until, confidence) / len(values) * until]
    return max(reaches) <= until * (1 + 1e-9)


def needed(values: tuple[float, ...], until: float, confidence: float) -> float:
    """How many draws it takes."""
    if len(values) < 2:
        return 0
    cut_off = round(NormalDist().inv_cdf((1 + confidence) / 2), 3)
    spread, mean = float(np.std(values, ddof=1)), float(np.mean(values))
    scattered = max(2, ceil((cut_off * spread / until) ** 2 - 1e-9)) if spread else 0
    are_shares = all(0 <= value <= 1 for value in values)
    return max(
        scattered, ceil(max(mean, 1 - mean) * max(3, -np.log(1 - confidence)) / until - 1e-6) if are_shares else 0
    )


def stop(values: list[Value], until: float | None, minimum: int, confidence: float = 0.95) -> int:
    """How many trials one process runs that goes through them one by one."""
    look = minimum
    for done in range(1, len(values) + 1):
        if until is None or done < look:
            continue
        known = tuple(value for value in values[:done] if value is not None)
        if known and is_known(known, until, confidence):
            return done
        wanted = max(needed(known, until, confidence), done + max(1, ceil(done * 0.02)))
        look = min(wanted, max(done + 1, ceil(done * 1.2)))
    return len(values)


def worked(
    lanes: Lanes, values: dict[tuple[int, str], list[Value]], chance: random.Random, workers: int
) -> list[Block]:
    """Hands out blocks to workers that finish whenever they like; every block that was run."""
    blocks, busy, run = lanes.blocks(), [], []
    while True:
        block = next(blocks, "end") if len(busy) < workers else None
        if isinstance(block, Block):
            busy.append(block)
            run.append(block)
        elif busy:
            done = busy.pop(chance.randrange(len(busy)))
            lanes.take(done, [row(trial, values[done.cell, done.variant][trial]) for trial in done.trials])
        elif block == "end":
            return run
        else:
            raise AssertionError("everybody waits for everybody")


KNOWN = st.sampled_from([0.0, 0.5, 0.75, 0.9, 0.91, 0.92])
SERIES = st.one_of(
    st.lists(KNOWN, min_size=1, max_size=70),
    st.lists(st.one_of(KNOWN, st.none()), min_size=1, max_size=70),
    st.builds(lambda value, count: [value] * count, st.sampled_from([0.0, 0.9, 1.0, 3.0, None]), st.integers(1, 120)),
)
UNTIL = st.sampled_from([None, 0.02, 0.05, 0.1, 0.3])


@QUICK
@given(data=st.data(), until=UNTIL, minimum=st.integers(2, 40), workers=st.integers(1, 6), seed=st.integers(0, 999))
def test_any_order_and_any_size_of_blocks_run_the_same_trials(
    data: st.DataObject, until: float | None, minimum: int, workers: int, seed: int
) -> None:
    names = [(cell, variant) for cell in range(data.draw(st.integers(1, 3))) for variant in ("plain", "hard")]
    values = {name: data.draw(SERIES) for name in names}
    rule = StopRule(until, minimum, "accuracy", 0.95)
    sizes = {variant: data.draw(st.integers(1, 50)) for variant in ("plain", "hard")}
    lanes = Lanes({name: Lane(*name, len(values[name]), rule) for name in names}, sizes)
    run = worked(lanes, values, random.Random(seed), workers)
    for name in names:
        trials = [trial for block in run if (block.cell, block.variant) == name for trial in block.trials]
        assert trials == list(range(stop(values[name], until, minimum))), "not each trial once, in order"
        assert lanes.lanes[name].finished
    assert all(len(block.trials) <= sizes[block.variant] for block in run)


@QUICK
@given(values=SERIES, until=UNTIL, minimum=st.integers(2, 40), data=st.data(), seed=st.integers(0, 999))
def test_a_campaign_that_was_broken_off_anywhere_stops_where_it_would_have(
    values: list[Value], until: float | None, minimum: int, data: st.DataObject, seed: int
) -> None:
    end = stop(values, until, minimum)
    done = data.draw(st.sets(st.integers(0, end - 1)))
    lane = Lane(0, "plain", len(values), StopRule(until, minimum, "accuracy", 0.95))
    lane.take([row(trial, values[trial]) for trial in sorted(done)])
    run = worked(Lanes({(0, "plain"): lane}, {"plain": 3}), {(0, "plain"): values}, random.Random(seed), 3)
    assert sorted(trial for block in run for trial in block.trials) == sorted(set(range(end)) - done)
    assert lane.finished


def finished_after(values: list[Value], rule: StopRule) -> int:
    lane = Lane(0, "plain", len(values), rule)
    for trial, value in enumerate(values):
        if lane.finished:
            return trial
        lane.take([row(trial, value)])
    return len(values)


def test_until_never_stops_before_the_minimum() -> None:
    assert finished_after([0.5, 0.5001] * 50, StopRule(0.4, 30, "accuracy", 0.95)) == 30
    assert finished_after([0.5, 0.5001] * 5, StopRule(0.4, 30, "accuracy", 0.95)) == 10


def test_without_until_every_trial_runs() -> None:
    assert finished_after([0.5] * 200, StopRule(None, 30, "accuracy", 0.95)) == 200


@pytest.mark.parametrize(
    ("value", "until", "least"),
    [
        (1.0, 0.01, 300),  # a share of 3 / 300 could be 0 instead
        (0.0, 0.01, 300),
        (0.5, 0.01, 150),  # 3 / 150 of all, 0.5 away
        (0.9, 0.05, 55),  # 54, but for the looks: 36, 44, 53, 55
    ],
)
def test_equal_values_stop_by_the_rule_of_three_alone(value: float, until: float, least: int) -> None:
    assert finished_after([value] * 1000, StopRule(until, 30, "accuracy", 0.95)) == least


def test_equal_values_that_are_no_shares_never_stop() -> None:
    assert finished_after([3.0] * 500, StopRule(0.3, 30, "accuracy", 0.95)) == 500


def test_a_lane_whose_values_are_missing_runs_to_the_end() -> None:
    assert finished_after([None] * 100, StopRule(0.3, 10, "accuracy", 0.95)) == 100
    assert finished_after([None] * 99 + [0.5], StopRule(0.3, 10, "accuracy", 0.95)) == 100


def test_missing_values_are_left_out_of_the_decision() -> None:
    every_other: list[Value] = [None if trial % 2 else 1.0 for trial in range(1000)]
    assert finished_after(every_other, StopRule(0.01, 30, "accuracy", 0.95)) == stop(every_other, 0.01, 30) >= 300


def test_the_decision_looks_at_the_column_or_metric_that_was_asked_for() -> None:
    one = Row("plain", "cell", 0, 1, "", 0.5, 0.25, 0.125, 0.75, {"iou": 0.3, "bad": np.nan, "huge": np.inf})
    wanted = {
        "accuracy": 0.5,
        "sdc1": 0.25,
        "sdc5": 0.125,
        "due": 0.75,
        "iou": 0.3,
        "bad": None,
        "huge": None,
        "x": None,
    }
    assert {name: measured(one, name) for name in wanted} == wanted


def test_a_greater_confidence_takes_more_trials() -> None:
    values: list[Value] = list(np.random.default_rng(0).random(2000))
    ends = [finished_after(values, StopRule(0.03, 30, "accuracy", confidence)) for confidence in (0.8, 0.95, 0.99)]
    assert ends == [stop(values, 0.03, 30, confidence) for confidence in (0.8, 0.95, 0.99)]
    assert ends[0] < ends[1] < ends[2]


def counting(lanes: dict[tuple[int, str], Lane]) -> Callable[[], int]:
    """How often any lane has been asked for work."""
    asked = []
    for lane in lanes.values():
        lane.stretch = lambda size, own=lane.stretch: asked.append(1) or own(size)  # type: ignore[method-assign]
    return lambda: len(asked)


@pytest.mark.parametrize("workers", [1, 8])
def test_thousands_of_lanes_are_each_asked_a_few_times_only(workers: int) -> None:
    names = [(cell, "plain") for cell in range(5000)]
    rule = StopRule(0.3, 3, "accuracy", 0.95)
    lanes = Lanes({name: Lane(*name, 9, rule) for name in names}, {"plain": 4})
    asked = counting(dict(lanes.lanes))
    run = worked(lanes, {name: [None] * 9 for name in names}, random.Random(0), workers)
    assert sorted((block.cell, trial) for block in run for trial in block.trials) == [
        (cell, trial) for cell in range(5000) for trial in range(9)
    ]
    assert asked() < 4 * len(run)


def test_no_block_is_given_while_all_that_is_left_waits_for_results() -> None:
    lanes = Lanes({(0, "plain"): Lane(0, "plain", 50, StopRule(0.1, 4, "accuracy", 0.95))}, {"plain": 3})
    blocks = lanes.blocks()
    first, second = next(blocks), next(blocks)
    assert first == Block(0, "plain", (0, 1, 2))
    assert second == Block(0, "plain", (3,)), "beyond the look nothing is known to be needed"
    assert next(blocks) is None
    assert next(blocks) is None
    assert isinstance(second, Block)
    lane = lanes.take(second, [row(3, 0.0)])
    assert lane is lanes.lanes[0, "plain"]
    assert next(blocks) is None
    lanes.take(Block(0, "plain", (0, 1, 2)), [row(trial, 1.0) for trial in range(3)])
    assert next(blocks) == Block(0, "plain", (4,))
