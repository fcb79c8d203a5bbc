"""Campaign results made of numbers, not of networks: what the reports' tests look at."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition, Row

RATES = (1e-7, 1e-6, 1e-5, 1e-4)
SHARES = {"plain": 0.3, "fitact": 0.05, "ranger": 0.15}  # how much a decade of the rate costs each
CLEAN = {"plain": 0.924, "fitact": 0.921, "ranger": 0.924}

Harm = Callable[[str, Condition, np.random.Generator], tuple[float | None, float | None, float | None, float]]


def settings(variants: Sequence[str], **changed: Any) -> dict[str, Any]:
    """As `run_campaign` writes them."""
    made = {
        "kind": "rate sweep",
        "question": "RateSweep(...)",
        "fault": "a bit flips",
        "effect": "flip",
        "format": "q15.16",
        "targets": ["parameters", "bounds"],
        "at": None,
        "where": "before",
        "persistence": "memory",
        "seed": 7,
        "trials": 40,
        "until": None,
        "minimum": 30,
        "measure": "accuracy",
        "confidence": 0.95,
        "compile": False,
        "suffixes": True,
        "skip": True,
        "threads": 1,
        "metrics": [],
        "batches": [128, 128],
        "samples": 256,
        "labelled": 256,
        "data": "5b0c9d",
        "population_bits": 8_600_000,
        "variants": {name: variant(name, plain=number == 0) for number, name in enumerate(variants)},
    }
    return made | changed


def variant(name: str, *, plain: bool) -> dict[str, Any]:
    sites = [
        {
            "site": f"layer{block}.{unit}.relu",
            "kind": "relu",
            "protected": not plain and block < 3,
            "how": "neuron, zero" if not plain and block < 3 else "no bound",
        }
        for block in (1, 2, 3)
        for unit in range(9)
    ]
    return {
        "class": "ResNet",
        "fingerprint": "f00d",
        "clean": {"accuracy": CLEAN.get(name, 0.9), "due": 0.0},
        "bound_bytes": 0 if plain else 312_000,
        "parameter_bytes": 1_080_000,
        "seconds": 0.5 if plain else 0.55,
        "frontend": "symbolic",
        "coverage": sites,
    }


SESSION = {
    "started": "2030-01-02T03:04:05+00:00",
    "versions": {"python": "3.11.2", "torch": "2.15.0"},
    "platform": "Linux",
    "cpu": "a processor",
    "threads": 1,
    "workers": 2,
    "seconds": 61.5,
    "trials": 480,
}


def campaign(
    variants: Sequence[str], conditions: Sequence[Condition], harm: Harm, changed: Mapping[str, Any] | None = None
) -> CampaignResult:
    """Every condition's trials for every variant; the same chance for the same trial of each variant."""
    rows = []
    for condition in conditions:
        for trial in range(condition.trials):
            for name in variants:
                chance = np.random.default_rng([len(condition.name), trial, *condition.name.encode()])
                accuracy, sdc1, sdc5, due = harm(name, condition, chance)
                way = ("whole", "suffix", "skipped")[trial % 3]
                checksum = f"{trial:04x}{len(condition.name):02x}"
                rows.append(Row(name, condition.name, trial, 3, checksum, accuracy, sdc1, sdc5, due, {}, way, 0.1))
    return CampaignResult(settings(variants, **(changed or {})), tuple(conditions), tuple(rows), (SESSION,))


def rate_harm(name: str, condition: Condition, chance: np.random.Generator) -> tuple[float, float, float, float]:
    assert condition.rate is not None
    decades = np.log10(condition.rate / 1e-7)
    lost = min(0.9, SHARES.get(name, 0.1) * decades * chance.uniform(0.2, 1.8))
    due = 0.02 if condition.rate > 1e-5 and chance.uniform() < 0.2 else 0.0
    clean = CLEAN.get(name, 0.9)
    return max(0.08, clean - lost), lost, lost / 3, due


def rate_sweep(
    variants: Sequence[str] = ("plain", "ranger", "fitact"), trials: int = 40, **changed: Any
) -> CampaignResult:
    conditions = [Condition(f"{rate:g}", trials, 8_600_000, rate=rate) for rate in RATES]
    return campaign(variants, conditions, rate_harm, {"trials": trials, **changed})


def place_harm(name: str, condition: Condition, chance: np.random.Generator) -> tuple[float, float, float, float]:
    """The upper bits of the first and the last tensors hurt; a protected network a tenth of that."""
    bit = condition.bit if condition.bit is not None else int(chance.integers(32))
    weight = (1 + len(condition.tensor or "") % 5) / 5
    hurt = weight * max(0, bit - 18) / 13 * (chance.uniform() < 0.4) * (1.0 if name == "plain" else 0.1)
    return 0.92 * (1 - hurt), hurt, hurt / 2, 0.0


SINGLE = {"kind": "single faults", "targets": ["parameters"], "trials": 30}


def per_tensor(count: int = 20, variants: Sequence[str] = ("plain", "fitact"), trials: int = 30) -> CampaignResult:
    units = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight")
    names = [f"layer{1 + 4 * at // max(count, 1)}.{at // 4}.{units[at % 4]}" for at in range(count)]
    conditions = [Condition(name, trials, 32 * 9 * 64, tensor=name) for name in names]
    return campaign(variants, conditions, place_harm, {**SINGLE, "trials": trials})


def per_bit(variants: Sequence[str] = ("plain", "fitact")) -> CampaignResult:
    conditions = [Condition(f"bit {bit}", 30, 270_000, bit=bit) for bit in range(32)]
    return campaign(variants, conditions, place_harm, SINGLE)


def per_site(variants: Sequence[str] = ("plain", "fitact")) -> CampaignResult:
    conditions = [
        Condition(f"layer{at}.relu@before", 30, 4096, tensor=f"layer{at}.relu@before", site=f"layer{at}.relu")
        for at in range(6)
    ]
    at = {"targets": ["activations"], "at": ["*"], "persistence": "transient"}
    return campaign(variants, conditions, place_harm, {**SINGLE, **at})


def exhaustive(variants: Sequence[str] = ("plain", "fitact")) -> CampaignResult:
    names = ("conv1.weight", "layer1.conv.weight", "fc.bias")
    conditions = [
        Condition(f"{name} bit {bit}", 4 + at, 4 + at, tensor=name, bit=bit)
        for at, name in enumerate(names)
        for bit in range(16, 32)
    ]
    return campaign(variants, conditions, place_harm, {**SINGLE, "kind": "exhaustive"})


def single(variants: Sequence[str] = ("plain", "fitact")) -> CampaignResult:
    return campaign(variants, [Condition("all", 60, 8_600_000)], place_harm, SINGLE)
