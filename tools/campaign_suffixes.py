"""Part `suffixes`: single faults spread over the layers, with and without re-running only what depends on them."""

from typing import Any

from campaign_sides import VARIANT, Inside, Plan, answers, timed
from torch import nn
from tqdm import tqdm

from fitact_fx.campaigns.evaluating import How
from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.kinds import SingleFaults

SIDES = {
    "whole": How(compile=False, suffixes=False, skip=False),
    "suffixes": How(compile=False, suffixes=True, skip=False),
    "suffixes, skip": How(compile=False, suffixes=True, skip=True),
    "compiled, whole": How(compile=True, suffixes=False, skip=False),
    "compiled, by cost": How(compile=True, suffixes=True, skip=False),
}
EXACT = ("whole", "suffixes", "suffixes, skip")


def measure(plan: Plan) -> dict[str, Any]:
    """Every side runs the same few trials of every layer, in turn; each block's least time over the rounds counts."""
    model, images = plan.network("ResNet-50"), 4 if plan.quick else 64
    trials, rounds = (1, 2) if plan.quick else (2, 3)
    sides = {name: how for name, how in SIDES.items() if not (plan.quick and how.compile)}
    kind, targets = SingleFaults(per="tensor"), layers(model)
    data = plan.images(images)
    insides = {
        name: Inside.of(model, data, kind, how, trials=trials, targets=targets)
        for name, how in tqdm(sides.items(), desc="set-up")
    }
    cells = [condition.name for condition in insides["whole"].conditions]
    least, rows = _in_turn(insides, len(cells), trials, rounds)
    same = {name: answers(rows[name]) == answers(rows["whole"]) for name in sides if name in EXACT}
    if not all(same.values()):
        raise SystemExit(f"rows differ between {same}: a wrong result has no speed")
    return {
        "images": images,
        "layers": len(cells),
        "trials": trials,
        "rounds": rounds,
        "sides": {name: _told(least[name], rows[name]) for name in sides},
        "by layer": {cell: {name: least[name]["wall"][number] for name in sides} for number, cell in enumerate(cells)},
        "kept bytes": _kept(insides["suffixes"]),
        "differing rows, compiled": _differing(rows),
    }


def layers(model: nn.Module) -> tuple[str, ...]:
    """The weights of all convolutions and linear layers, as targets."""
    found = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return tuple(f"parameters:{path}.weight" for path in found)


def _in_turn(insides: dict[str, Inside], cells: int, trials: int, rounds: int) -> tuple[Any, dict[str, list[Any]]]:
    least = {name: {"wall": [float("inf")] * cells, "cpu": [float("inf")] * cells} for name in insides}
    rows: dict[str, list[Any]] = {}
    for turn in tqdm(range(rounds), desc="single faults", unit="round"):
        for cell in range(cells):
            for name, inside in insides.items():
                found, spent = timed(inside.job.run, Block(cell, VARIANT, tuple(range(trials))))
                for clock, seconds in spent._asdict().items():
                    least[name][clock][cell] = min(least[name][clock][cell], seconds)
                if turn == 0:
                    rows.setdefault(name, []).extend(found)
    return least, rows


def _told(least: dict[str, list[float]], rows: list[Any]) -> dict[str, Any]:
    ways = [row.way for row in rows]
    return {
        "wall": sum(least["wall"]) / len(rows),
        "cpu": sum(least["cpu"]) / len(rows),
        "ways": {way: ways.count(way) for way in dict.fromkeys(ways)},
    }


def _kept(inside: Inside) -> int:
    suffixes = inside.job.evaluator(VARIANT).suffixes
    return 0 if suffixes is None else suffixes.kept_bytes


def _differing(rows: dict[str, list[Any]]) -> int | None:
    """Compiled code rounds differently from eager code, so the way decides the last bits."""
    if "compiled, whole" not in rows:
        return None
    pairs = zip(answers(rows["compiled, whole"]), answers(rows["compiled, by cost"]), strict=True)
    return sum(one != other for one, other in pairs)
