"""How many single faults a campaign has to draw, known before anything runs.

A single fault either does harm or does not, and the share that does is estimated from a sample of all places
where one could strike. How large the sample must be follows from how exact the share is to be, and hardly from the
size of the memory: `fitact_fx.statistics.sample_size`. A claim about each tensor or each bit needs a sample of its
own for each of them, a stratum; the network's sample says next to nothing about a small tensor. Where a fault
harms some inputs and not others, what it does is a share, which scatters less than yes and no: the sample is
large enough for it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tabulate import tabulate
from torch import nn

from fitact_fx.campaigns.kinds import SingleFaults
from fitact_fx.campaigns.questions import Question
from fitact_fx.campaigns.rows import Condition
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip, Memory, Target
from fitact_fx.faults.bits import Bits, chosen_bits
from fitact_fx.faults.formats import Format, as_format
from fitact_fx.faults.tensor_cell import TensorCell


@dataclass(frozen=True)
class Plan:
    """Single bit flips to draw, none twice, from each stratum.

    `strata`: the cells of a campaign of `SingleFaults(per)`, each with its `name`, `population` (the places where a
    single fault could strike) and `trials` (the faults to draw). For each of them alone, the share of faults that do
    harm will be known to +-`margin` at `confidence`, if it is no nearer to one half than `share`.
    """

    per: str
    strata: tuple[Condition, ...]
    margin: float
    confidence: float
    share: float
    format: str
    targets: tuple[str, ...]
    bits: tuple[int, ...]

    @property
    def trials(self) -> int:
        """Faults to draw in all."""
        return sum(each.trials for each in self.strata)

    @property
    def population(self) -> int:
        """Places in all."""
        return sum(each.population for each in self.strata)

    def sentence(self) -> str:
        """The plan in words, as a paper would say it."""
        faults = f"{self.trials:,} single-bit {'fault' if self.trials == 1 else 'faults'}"
        drawn, claim = f"{faults} in {_places(self.population)}", "an SDC rate"
        if len(self.strata) > 1:
            drawn += f", {self._each()} of {len(self.strata)} {'bits' if self.per == 'bit' else f'{self.per}s'}"
            claim = "an SDC rate of each"
        if self.trials == self.population:
            return f"{drawn}: every place once, {claim} without sampling error"
        known = f"+-{_points(self.margin)} at {_percent(self.confidence)} confidence"
        return f"{drawn}: {claim} to {known}, {self._whatever()}"

    def table(self) -> str:
        """One line per stratum, and their sum: places, faults to draw, and which share of the places that is."""
        rows = [(each.name, each.population, each.trials) for each in self.strata]
        if len(rows) > 1:
            rows.append(("total", self.population, self.trials))
        cells = [(name, f"{places:,}", f"{faults:,}", _part(faults, places)) for name, places, faults in rows]
        headers = (self.per if len(self.strata) > 1 else "stratum", "places", "faults", "of all")
        return tabulate(cells, headers, disable_numparse=True, colalign=("left", "right", "right", "right"))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        strata = [{"name": each.name, "population": each.population, "trials": each.trials} for each in self.strata]
        asked = {"margin": self.margin, "confidence": self.confidence, "share": self.share}
        hit = {"format": self.format, "targets": list(self.targets), "bits": list(self.bits)}
        totals = {"population": self.population, "trials": self.trials}
        return {"per": self.per, **asked, **hit, **totals, "sentence": self.sentence(), "strata": strata}

    def _each(self) -> str:
        fewest, most = min(each.trials for each in self.strata), max(each.trials for each in self.strata)
        return f"{most:,} in each" if fewest == most else f"{fewest:,} to {most:,} in each"

    def _whatever(self) -> str:
        """For which rates that holds: the nearer to one half, the more faults it takes."""
        if self.share == 0.5:
            return "whatever it turns out to be"
        return f"if it turns out to be {_percent(self.share)} or {'less' if self.share < 0.5 else 'more'}"


def plan(
    model: nn.Module | Memory,
    *,
    per: str = "network",
    format: str | Format = "q15.16",  # noqa: A002 - the word of the field, and of the public API
    targets: Sequence[str | Target] | str | None = None,
    bits: Bits = None,
    margin: float = 0.01,
    confidence: float = 0.95,
    share: float = 0.5,
) -> Plan:
    """How many single bit flips to draw for a share of harmful ones known to +-`margin` at `confidence`.

    `per`: what a claim is made about. "network" (one stratum: all places), "tensor", "bit" (of the format), or "site"
    (each injection node of a model made by `inject`, with targets=["activations"]: places within one sample).
    `targets`: as in a fault model's `draw`, parameters unless said; a tensor with several names counts once.
    `bits`: a field of the format, a bit number or several of these, None for all. `share`: the rate that is
    expected; leave it at 0.5 unless it is known to be far from there. The model is only looked at: it needs
    no weights and no data, and may be on the meta device.

    FaultError for an unknown format, target or bit and for a tensor that cannot hold the format; CampaignError for an
    unknown `per` and for nothing to hit; FitactError for a margin, confidence or share outside (0, 1).
    """
    stored, memory = as_format(format), Memory.of(model)
    if targets is not None and not targets:
        raise CampaignError("targets is empty, so there is nothing to hit;\n  leave it out for the parameters")
    several = ("parameters",) if targets is None else (targets,) if isinstance(targets, str | Target) else targets
    chosen = tuple(str(Target.parse(each)) for each in several)
    # A model that is too large for this machine can be planned for as well: on the meta device, as shapes alone.
    real = (each for each in memory.chosen(chosen) if not (isinstance(each, TensorCell) and each.tensor.is_meta))
    memory.require({place.name: place.shape for place in real}, stored)
    numbers = chosen_bits(bits, stored)
    question = Question(partial(BitFlip, bits=bits), {"model": memory}, stored, chosen, trials=None)
    strata = tuple(cell.condition for cell in SingleFaults(per, margin, confidence, share).cells(question))
    return Plan(per, strata, margin, confidence, share, stored.name, chosen, numbers)


def _places(count: int) -> str:
    return "1 place" if count == 1 else f"{count:,} places"


def _points(margin: float) -> str:
    points = f"{100 * margin:.6g}"
    return f"{points} {'point' if points == '1' else 'points'}"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _part(faults: int, places: int) -> str:
    part = 100 * faults / places
    if faults == places:
        return "all"
    return f"{min(part, 99.9):.1f} %" if part >= 1 else f"{part:.2g} %"
