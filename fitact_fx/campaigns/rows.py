"""What a campaign writes down: one row per trial and variant, and the conditions that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

WAYS = ("whole", "suffix", "skipped")
"""How a trial was evaluated: all of the network, only what depends on its faults, or nothing, since it changes none."""


@dataclass(frozen=True)
class Condition:
    """What the trials of one cell of a campaign have in common, as the store and the reports know it.

    `name` is unique in the campaign: "1e-06", "conv1.weight", "bit 30". `trials` is how many there are at most,
    `population` in how many places a single fault could strike. `rate`, `tensor`, `bit` and `site` say what
    the cell is about, None where it is about all.
    """

    name: str
    trials: int
    population: int
    rate: float | None = None
    tensor: str | None = None
    bit: int | None = None
    site: str | None = None


@dataclass(frozen=True)
class Row:
    """One trial of one variant.

    `faults`: how many faults its list has; `checksum`: the list's own. Shares between 0 and 1: `accuracy` of all
    labelled samples; `sdc1` and `sdc5` of those that were right without faults; `due` of all samples. `accuracy`,
    `sdc1` and `sdc5` are None where the outputs are no class scores. `metrics`: the user's own, by name; one that
    raised or gave no number is told in `error` instead. `way` is one of `WAYS`; only `seconds` differs from run to run.
    """

    variant: str
    cell: str
    trial: int
    faults: int
    checksum: str
    accuracy: float | None
    sdc1: float | None
    sdc5: float | None
    due: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    way: str = "whole"
    seconds: float = 0.0
    error: str | None = None
