"""Part `peers`: the same work in other tools' loops, and the same answer, for which a campaign of ours stops early."""

from collections.abc import Sequence
from math import ceil
from statistics import median, stdev
from typing import Any

from campaign_peers import FORMAT, QUESTIONS, Ground, Question, Sides, present, told
from campaign_sides import VARIANT, Plan, Seconds, cold_compiler, timed

from fitact_fx import run_campaign
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.statistics import draws_needed, stopping_interval

NETWORKS = ("ResNet-18", "ResNet-20")
MARGIN = 0.01
PLANNED = draws_needed(0.5, MARGIN)  # 9,604: nothing between 0 and 1 scatters more, nor does a share need more
PILOT = 60
TURNS = 12


def measure(plan: Plan) -> dict[str, Any]:
    """Both networks, all questions. Without peers, only their names."""
    if not (versions := present()):
        return {"versions": {}, "networks": {}}
    images = 4 if plan.quick else 128
    found = {}
    for name in NETWORKS[1:] if plan.quick else NETWORKS:
        ground = Ground.of(plan, name, images)
        work, answers = [], []
        for question in QUESTIONS:
            sides = Sides.of(ground, question, 3 if plan.quick else TURNS, compiled=not plan.quick)
            work.append(told(sides))
            answers.append(_answer(plan, sides, list(versions)))
        found[name] = {"work": work, "answers": answers}
    return {"versions": versions, "images": images, "margin": MARGIN, "planned": PLANNED, "networks": found}


def _answer(plan: Plan, sides: Sides, peers: Sequence[str]) -> dict[str, Any]:
    """Our campaign between two looks at the peers' seconds per trial."""
    before, _ = sides.in_turn(peers)
    ours = _ours(plan, sides.ground, sides.question)
    after, _ = sides.in_turn(peers)
    seconds = {
        name: Seconds(
            median(before[name].wall + after[name].wall), median(before[name].cpu + after[name].cpu)
        )._asdict()
        for name in peers
    }
    return {"question": sides.question.label, "measure": sides.question.measure, "ours": ours, "peers": seconds}


def _ours(plan: Plan, ground: Ground, question: Question) -> dict[str, Any]:
    """Until the interval is narrow enough, where a pilot says that this is quick; else extrapolated."""
    if plan.quick:
        found, spent = timed(_run, ground, question, 40, MARGIN)
        return _told(found, question, spent, len(found.rows), extrapolated=False)
    pilot, _ = timed(_run, ground, question, PILOT, None)
    each = _trial_seconds(pilot)
    if each * _draws(_spread(pilot, question)) <= plan.limit:
        found, spent = timed(_run, ground, question, PLANNED, MARGIN)
        return _told(found, question, spent, len(found.rows), extrapolated=False)
    found, spent = timed(_run, ground, question, min(PLANNED, int(plan.limit / each)), None)
    draws = _draws(_spread(found, question))
    more = draws / len(found.rows) - 1
    inside = float(found.sessions[-1]["seconds"])
    longer = Seconds(spent.wall + more * inside, spent.cpu + more * inside * spent.cpu / spent.wall)
    return _told(found, question, longer, draws, extrapolated=True)


def _run(ground: Ground, question: Question, trials: int, until: float | None) -> CampaignResult:
    with cold_compiler():
        return run_campaign(
            {VARIANT: ground.model},
            (ground.inputs, ground.labels),
            kind=question.kind,
            format=FORMAT,
            targets=ground.targets,
            trials=trials,
            until=until,
            measure=question.measure,
            compile=question.rate is not None,  # what depends on a single fault is run in eager mode anyway
            progress=False,
        )


def _draws(spread: float) -> int:
    """How many draws the stop rule takes: what the spread needs, and 3 / margin, for what no draw has shown yet."""
    return min(PLANNED, max(draws_needed(spread, MARGIN), ceil(3 / MARGIN)))


def _spread(found: CampaignResult, question: Question) -> float:
    """The standard deviation between draws."""
    return stdev(found.values(VARIANT, found.conditions[0].name, question.measure).tolist())


def _trial_seconds(found: CampaignResult) -> float:
    return float(found.sessions[-1]["seconds"]) / len(found.rows)


def _told(
    found: CampaignResult, question: Question, spent: Seconds, draws: int, *, extrapolated: bool
) -> dict[str, Any]:
    interval = stopping_interval(found.values(VARIANT, found.conditions[0].name, question.measure))
    ways = [row.way for row in found.rows]
    return {
        "draws": draws,
        **spent._asdict(),
        "trials": float(found.sessions[-1]["seconds"]),
        "run": len(found.rows),
        "extrapolated": extrapolated,
        "spread": _spread(found, question),
        "mean": interval.mean,
        "half width": interval.half_width,
        "ways": {way: ways.count(way) for way in dict.fromkeys(ways)},
    }
