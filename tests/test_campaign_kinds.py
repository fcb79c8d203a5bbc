"""What each kind of campaign measures: populations counted by hand, and the faults of its trials one by one."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.campaigns.kinds import Draws, Exhaustive, Kind, RateSweep, SingleFaults, find_kind
from fitact_fx.campaigns.questions import Cell, Question
from fitact_fx.errors import CampaignError, FitactError
from fitact_fx.faults import BitFlip, Burst, FaultList, Memory, RandomWord, StuckAt, Zero, find_format
from fitact_fx.injection import inject

SIZES = {"0.weight": 12, "0.bias": 4, "2.weight": 8, "2.bias": 2}
BITS = 32
Q = find_format("q15.16")


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def hardened(model: nn.Module) -> nn.Module:
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [torch.randn(16, 3, generator=torch.Generator().manual_seed(1))])
    return hard


@pytest.fixture
def memories() -> dict[str, Memory]:
    model = plain_model()
    return {"plain": Memory.of(model), "hard": Memory.of(hardened(model))}


def asked(memories: dict[str, Memory], fault: Any = BitFlip, **changes: Any) -> Question:
    return replace(Question(fault, memories, Q, None, None), **changes)


def drawn(cell: Cell, memory: Memory, trial: int, seed: int = 0) -> FaultList:
    return cell.faults(memory, Q, seed, trial, None)


def leveugle(population: int, margin: float, confidence: float) -> int:
    """As printed in the paper, with the cut-offs as tables print them, and p = 0.5."""
    t = {0.9: 1.645, 0.95: 1.96, 0.99: 2.576}[confidence]
    return math.ceil(population / (1 + margin**2 * (population - 1) / (t**2 * 0.25)) - 1e-9)


def test_a_rate_sweep_has_a_cell_for_each_rate(memories: dict[str, Memory]) -> None:
    cells = RateSweep((1e-6, 3e-5, 0, 1)).cells(asked(memories))
    assert [cell.condition.name for cell in cells] == ["1e-06", "3e-05", "0", "1"]
    assert [cell.condition.rate for cell in cells] == [1e-6, 3e-5, 0, 1]
    assert {cell.condition.trials for cell in cells} == {100}
    # The variant with most to hit: its bounds are one word per neuron and side.
    bounds = sum(math.prod(cell.shape) for cell in memories["hard"].cells if cell.kind == "bounds")
    assert bounds >= 4
    assert {cell.condition.population for cell in cells} == {(26 + bounds) * BITS}
    (alone,) = RateSweep((1e-6,)).cells(asked({"plain": memories["plain"]}, trials=7))
    assert (alone.condition.trials, alone.condition.population) == (7, 26 * BITS)
    (some,) = RateSweep((1e-6,)).cells(
        asked(memories, targets=("parameters:0.*",), fault=partial(BitFlip, bits="sign"))
    )
    assert some.condition.population == 16


def test_rates_that_print_alike_have_names_of_their_own(memories: dict[str, Memory]) -> None:
    rates = (1e-6, 1.0000001e-6, 1 / 3, 0.333333)
    names = [cell.condition.name for cell in RateSweep(rates).cells(asked(memories))]
    assert len(set(names)) == 4
    assert [float(name) for name in names] == list(rates)


def test_at_rate_one_every_bit_of_all_that_is_targeted_is_hit(memories: dict[str, Memory]) -> None:
    (cell,) = RateSweep((1,)).cells(asked(memories))
    for memory in memories.values():
        hit = sum(math.prod(each.shape) for each in memory.cells if each.kind in ("parameters", "bounds"))
        assert len(drawn(cell, memory, 3)) == hit * BITS


@pytest.mark.parametrize(("margin", "confidence"), [(0.01, 0.95), (0.05, 0.95), (0.02, 0.99), (0.3, 0.9)])
def test_single_faults_plan_what_each_stratum_needs(
    memories: dict[str, Memory], margin: float, confidence: float
) -> None:
    planned = {
        per: {
            cell.condition.name: (cell.condition.population, cell.condition.trials)
            for cell in SingleFaults(per, margin, confidence).cells(asked(memories))
        }
        for per in ("network", "tensor", "bit")
    }
    wanted = {
        "network": {"all": 26 * BITS},
        "tensor": {name: size * BITS for name, size in SIZES.items()},
        "bit": {f"bit {bit}": 26 for bit in range(BITS)},
    }
    assert planned == {
        per: {name: (size, leveugle(size, margin, confidence)) for name, size in strata.items()}
        for per, strata in wanted.items()
    }


def test_every_single_fault_lies_in_its_stratum(memories: dict[str, Memory]) -> None:
    for per, belongs in (
        ("network", lambda row, about: True),
        ("tensor", lambda row, about: row.tensor == about.tensor),
        ("bit", lambda row, about: row.bit == about.bit),
    ):
        for cell in SingleFaults(per).cells(asked(memories, trials=5)):
            for trial in range(cell.condition.trials):
                (row,) = drawn(cell, memories["plain"], trial).rows
                assert belongs(row, cell.condition)
                assert row.element < SIZES[row.tensor]
                assert row.bit < BITS


def test_single_faults_of_a_tensor_hit_it_whatever_its_name() -> None:
    model = nn.ModuleDict({"a[1]": nn.Linear(2, 1), "a1": nn.Linear(2, 1), "*": nn.Linear(2, 1), "a?": nn.Linear(2, 1)})
    cells = SingleFaults("tensor").cells(asked({"m": Memory.of(model)}, trials=3))
    assert {cell.condition.tensor for cell in cells} == {name for name, _ in model.named_parameters()}
    for cell in cells:
        for trial in range(3):
            (row,) = drawn(cell, Memory.of(model), trial).rows
            assert row.tensor == cell.condition.tensor


def test_single_faults_hit_no_place_twice_and_in_the_end_every_one(memories: dict[str, Memory]) -> None:
    for per in ("network", "tensor", "bit"):
        cells = SingleFaults(per).cells(asked(memories, trials=10_000, fault=partial(BitFlip, bits=(3, 31))))
        hit = Counter(
            tuple(row)
            for cell in cells
            for trial in range(cell.condition.trials)
            for row in drawn(cell, memories["hard"], trial).rows
        )
        places = [(name, element, bit) for name, size in SIZES.items() for element in range(size) for bit in (3, 31)]
        assert hit == Counter(places)


def test_the_order_of_single_faults_is_any_with_equal_chance(memories: dict[str, Memory]) -> None:
    (cell,) = SingleFaults().cells(asked(memories, trials=3, fault=partial(BitFlip, bits=31)))
    for trial in range(3):
        hits = Counter(next(iter(drawn(cell, memories["plain"], trial, seed).rows))[:2] for seed in range(1300))
        assert len(hits) == 26
        # Binomial of mean 50 and deviation 6.9: five deviations.
        assert all(16 <= count <= 84 for count in hits.values())


def test_a_cell_has_no_trial_behind_its_last_place(memories: dict[str, Memory]) -> None:
    for kind in (SingleFaults(), Exhaustive()):
        cell = kind.cells(asked(memories))[0]
        for trial in (cell.condition.population, 10**9, -1):
            with pytest.raises(ValueError, match=f"trial {trial} is none of {cell.condition.population} places"):
                drawn(cell, memories["plain"], trial)


def test_transient_single_faults_are_counted_within_one_inference_and_drawn_anew() -> None:
    faulty = inject(plain_model(), "*", BitFlip(count=0), example_inputs=(torch.randn(5, 3),))
    memory = Memory.of(faulty)
    question = asked({"m": memory}, targets=("activations",), trials=500)
    nodes = {cell.name: math.prod(cell.shape[1:]) for cell in memory.cells if cell.kind == "activations"}
    for per in ("site", "tensor"):
        cells = SingleFaults(per).cells(question)
        assert {cell.condition.tensor: cell.condition.population for cell in cells} == {
            name: size * BITS for name, size in nodes.items()
        }
        for cell in cells:
            assert cell.condition.name == cell.condition.site == str(cell.condition.tensor).partition("@")[0]
            assert cell.condition.trials == 500, "more than places, but not more than places times samples"
            for trial in range(4):
                faults = cell.faults(memory, Q, 0, trial, 40)
                (row,) = faults.rows
                assert row.tensor == cell.condition.tensor
                assert faults.shapes[row.tensor][0] == 40
    for cell in SingleFaults("bit").cells(question):
        (row,) = cell.faults(memory, Q, 0, 7, 40).rows
        assert row.bit == cell.condition.bit


def test_permanent_single_faults_hit_no_place_of_a_site_twice() -> None:
    example = (torch.randn(5, 3),)
    faulty = inject(plain_model(), "*", BitFlip(count=0), example_inputs=example, permanent=True)
    memory = Memory.of(faulty)
    for per in ("site", "network"):
        cells = SingleFaults(per).cells(asked({"m": memory}, targets=("activations",), trials=10_000))
        hit = [
            tuple(row)
            for cell in cells
            for trial in range(cell.condition.trials)
            for row in drawn(cell, memory, trial).rows
        ]
        places = sum(math.prod(cell.shape[1:]) for cell in memory.cells if cell.kind == "activations")
        assert len(set(hit)) == len(hit) == places * BITS


EXHAUSTIVE: dict[str, tuple[Callable[..., Any], object, list[int]]] = {
    "all bits": (BitFlip, None, list(range(32))),
    "a bit": (BitFlip, 31, [31]),
    "a field": (BitFlip, "sign", [31]),
    "some": (BitFlip, (0, "sign"), [0, 31]),
    "stuck": (partial(StuckAt, value=1), "integer", list(range(16, 31))),
    "bound in the fault": (partial(BitFlip, bits="sign"), None, [31]),
}


@pytest.mark.parametrize("case", EXHAUSTIVE)
def test_an_exhaustive_campaign_hits_each_bit_of_each_element_once(memories: dict[str, Memory], case: str) -> None:
    fault, bits, wanted = EXHAUSTIVE[case]
    cells = Exhaustive(bits).cells(asked(memories, fault))
    hit = Counter(
        tuple(row)
        for cell in cells
        for trial in range(cell.condition.trials)
        for row in drawn(cell, memories["hard"], trial).rows
    )
    places = [(name, element, bit) for name, size in SIZES.items() for element, bit in product(range(size), wanted)]
    assert hit == Counter(places)
    assert len(cells) == len(SIZES) * len(wanted)
    assert all(cell.condition.trials == cell.condition.population == SIZES[cell.condition.tensor] for cell in cells)
    assert len({cell.condition.name for cell in cells}) == len(cells)


@pytest.mark.parametrize("fault", [Zero, RandomWord])
def test_an_exhaustive_campaign_on_words_hits_each_element_once(memories: dict[str, Memory], fault: Any) -> None:
    cells = Exhaustive().cells(asked(memories, fault, targets=("parameters:*.bias",)))
    assert [cell.condition.name for cell in cells] == ["0.bias", "2.bias"]
    for cell in cells:
        rows = [row for trial in range(cell.condition.trials) for row in drawn(cell, memories["plain"], trial).rows]
        assert [row[:2] for row in rows] == [(cell.condition.tensor, e) for e in range(SIZES[cell.condition.tensor])]


def test_an_exhaustive_campaign_on_bursts_hits_each_place_of_one_once(memories: dict[str, Memory]) -> None:
    for kind in (Exhaustive(), SingleFaults("bit"), SingleFaults()):
        cells = kind.cells(asked(memories, partial(Burst, width=30), targets=("parameters:2.bias",)))
        lists = [drawn(cell, memories["plain"], trial) for cell in cells for trial in range(cell.condition.trials)]
        found = [(row.element, row.bit) for faults in lists for row in faults.rows]
        wanted = [(element, bit) for start, element in product(range(3), range(2)) for bit in range(start, start + 30)]
        assert Counter(found) == Counter(wanted)


def test_an_exhaustive_campaign_can_hit_bounds_of_one_variant(memories: dict[str, Memory]) -> None:
    cells = Exhaustive("sign").cells(asked({"hard": memories["hard"]}, targets=("bounds",)))
    bounds = {cell.name: math.prod(cell.shape) for cell in memories["hard"].cells if cell.kind == "bounds"}
    assert {cell.condition.tensor: cell.condition.trials for cell in cells} == bounds


KINDS: dict[str, Callable[[], tuple[Kind, Any]]] = {
    "rates": lambda: (RateSweep((0.02, 0.1)), BitFlip),
    "rates of words": lambda: (RateSweep((0.1,)), RandomWord),
    "single": lambda: (SingleFaults(), BitFlip),
    "single words": lambda: (SingleFaults(), RandomWord),
    "per tensor": lambda: (SingleFaults("tensor"), BitFlip),
    "per bit": lambda: (SingleFaults("bit"), BitFlip),
    "a count": lambda: (Draws(BitFlip(count=5)), None),
    "a rate": lambda: (Draws(BitFlip(rate=0.1)), None),
    "places": lambda: (Draws(BitFlip(places=[("2.bias", 1, 3), ("0.weight", (3, 2), 31)])), None),
}


@pytest.mark.parametrize("case", KINDS)
def test_a_trial_has_the_same_faults_in_every_variant(case: str) -> None:
    model = plain_model()
    once = hardened(model)
    memories = {"hard": Memory.of(once), "plain": Memory.of(model), "lowest": Memory.of(hardened(plain_model()))}
    kind, fault = KINDS[case]()
    seen = set()
    for cell in kind.cells(asked(memories, fault, trials=4)):
        for trial in range(4):
            lists = {name: drawn(cell, memory, trial, seed=5) for name, memory in memories.items()}
            rows = {name: [row for row in faults.rows if row.tensor in SIZES] for name, faults in lists.items()}
            by_tensor = {name: sorted(found) for name, found in rows.items()}
            assert by_tensor["hard"] == by_tensor["plain"] == by_tensor["lowest"]
            seen.add((cell.condition.name, *map(tuple, by_tensor["plain"])))
    assert case == "places" or len(seen) > 2, "the trials are all alike"


def test_the_order_in_which_a_variant_registers_its_tensors_changes_no_trial() -> None:
    one, other = nn.Module(), nn.Module()
    one.a, one.b = nn.Linear(2, 1), nn.Linear(3, 1)
    other.b, other.a = one.b, one.a
    rows = [
        [list(drawn(cell, Memory.of(model), trial).rows) for trial in range(50)]
        for model in (one, other)
        for cell in SingleFaults().cells(asked({"m": Memory.of(model)}))
    ]
    assert rows[0] == rows[1]


def test_trials_differ_by_seed_and_number_and_nothing_else(memories: dict[str, Memory]) -> None:
    (cell,) = SingleFaults().cells(asked(memories, trials=9))
    checksums = [drawn(cell, memories["plain"], trial, seed).checksum for seed in (0, 1) for trial in range(9)]
    assert len(set(checksums)) == 18
    (again,) = SingleFaults().cells(asked({"plain": memories["plain"]}, trials=800))
    assert drawn(again, memories["plain"], 8, 1).checksum == checksums[-1]


def test_draws_of_a_fault_model_that_says_itself_how_often(memories: dict[str, Memory]) -> None:
    bounds = sum(math.prod(cell.shape) for cell in memories["hard"].cells if cell.kind == "bounds")
    for fault, population, rate in (
        (BitFlip(count=3), 26 * BITS, None),
        (BitFlip(rate=0.01), (26 + bounds) * BITS, 0.01),
        (Zero(count=3), 26, None),
        (BitFlip(places=[("0.bias", 1, 2)]), 4 * BITS, None),
    ):
        (cell,) = Draws(fault).cells(asked(memories, None))
        about = cell.condition
        assert (about.name, about.trials, about.population, about.rate) == ("all", 100, population, rate)
    (few,) = Draws(BitFlip(count=3)).cells(asked(memories, None, trials=8))
    assert few.condition.trials == 8
    assert len(drawn(few, memories["hard"], 2)) == 3


def test_parameters_without_elements_are_no_stratum() -> None:
    model = plain_model()
    model.register_parameter("empty", nn.Parameter(torch.empty(0)))
    memories = {"m": Memory.of(model)}
    for kind in (SingleFaults("tensor"), Exhaustive("sign")):
        assert {cell.condition.tensor for cell in kind.cells(asked(memories))} == set(SIZES)


ERRORS: dict[str, tuple[Callable[[dict[str, Memory]], object], str]] = {
    "no rate": (lambda m: RateSweep(()), r"a rate sweep needs at least one rate, each once; got \[\]"),
    "a rate twice": (lambda m: RateSweep((0.1, 0.1)), r"each once; got \[0.1, 0.1\]"),
    "no number": (lambda m: RateSweep(("x",)), r"rates are numbers, such as \[1e-6, 1e-5\]; got \('x',\)"),
    "no sequence": (lambda m: RateSweep(0.1), "rates are numbers"),
    "a great rate": (lambda m: RateSweep((1.5,)).cells(asked(m)), "a bit error rate lies between 0 and 1; got 1.5"),
    "no rate at all": (lambda m: RateSweep((math.nan,)).cells(asked(m)), "a bit error rate lies between 0 and 1"),
    "stratum": (lambda m: SingleFaults("layer"), "layer"),
    "margin": (lambda m: SingleFaults(margin=0).cells(asked(m)), "margin lies between 0 and 1"),
    "confidence": (lambda m: SingleFaults(confidence=1).cells(asked(m)), "confidence"),
    "made already": (
        lambda m: RateSweep((0.1,)).cells(asked(m, BitFlip(rate=0.1))),
        "fault is BitFlip.*;\n  give a fault model itself, such as fault=BitFlip",
    ),
    "no fault model": (
        lambda m: RateSweep((0.1,)).cells(asked(m, dict)),
        "fault makes a dict;\n  give a fault model, such as fault=BitFlip",
    ),
    "unbound": (
        lambda m: RateSweep((0.1,)).cells(asked(m, Burst)),
        "'width';\n  bind what else it needs with functools.partial, such as partial\\(Burst, width=2\\)",
    ),
    "bound twice": (
        lambda m: RateSweep((0.1,)).cells(asked(m, partial(BitFlip, count=1))),
        "takes one of rate, count and places; got rate and count",
    ),
    "bits of words": (
        lambda m: SingleFaults("bit").cells(asked(m, Zero)),
        "the fault hits whole words, so there is no stratum per bit;\n  choose another stratum",
    ),
    "bits of words, all of them": (
        lambda m: Exhaustive("sign").cells(asked(m, Zero)),
        "it hits whole words: choose no bits",
    ),
    "no such field": (lambda m: Exhaustive("exponent").cells(asked(m)), "exponent"),
    "sites without nodes": (
        lambda m: SingleFaults("site").cells(asked(m)),
        'sites are hit at injection nodes;\n  add at="\\*" \\(globs over the names of sites\\)',
    ),
    "trials of an exhaustive campaign": (
        lambda m: Exhaustive().cells(asked(m, trials=5)),
        "and trials=5 was asked for;\n  leave `trials` out, or draw a sample with SingleFaults",
    ),
    "what one variant lacks": (
        lambda m: SingleFaults().cells(asked(dict(reversed(m.items())), targets=("parameters", "bounds"))),
        "the model has no bounds",
    ),
    "no such target": (
        lambda m: SingleFaults().cells(asked(m, targets=("parameters:3.*",))),
        r"the pattern '3\.\*' matches none of the parameters",
    ),
    "no target": (lambda m: RateSweep((0.1,)).cells(asked(m, targets=())), "targets is empty"),
    "no such tensor": (
        lambda m: Draws(BitFlip(places=[("x", 0, 0)])).cells(asked(m, None)),
        "the model has no tensor 'x'",
    ),
    "no such kind": (lambda m: find_kind("rate"), "rate"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_question_without_an_answer_is_refused(memories: dict[str, Memory], case: str) -> None:
    question, message = ERRORS[case]
    with pytest.raises(FitactError, match=message):
        question(memories)


def test_variants_that_differ_in_what_can_be_hit_have_no_single_faults_in_common() -> None:
    torch.manual_seed(0)
    memories = {"one": Memory.of(nn.Linear(3, 2)), "other": Memory.of(nn.Linear(3, 4))}
    for kind in (SingleFaults(), Exhaustive(), Draws(BitFlip(count=2))):
        with pytest.raises(CampaignError) as told:
            kind.cells(asked(memories))
        assert str(told.value) == (
            "variants 'one' and 'other' differ in what can be hit (tensor 'bias'), so that single faults could not be "
            'the same in both;\n  choose what they share, such as targets=["parameters"]'
        )
    for rated in (RateSweep((0.1,)), Draws(BitFlip(rate=0.1))):
        with pytest.raises(CampaignError, match=r"\(tensor 'bias'\), so that they would get different"):
            rated.cells(asked(memories))


def test_activations_are_too_many_for_an_exhaustive_campaign() -> None:
    faulty = inject(plain_model(), "*", BitFlip(count=0), example_inputs=(torch.randn(5, 3),))
    with pytest.raises(
        CampaignError, match="every place of activations is too much;\n  draw a sample with SingleFaults"
    ):
        Exhaustive().cells(asked({"m": Memory.of(faulty)}, targets=("activations",)))


def test_a_model_without_elements_has_no_single_faults() -> None:
    model = nn.Module()
    model.register_parameter("empty", nn.Parameter(torch.empty(0)))
    with pytest.raises(CampaignError, match="what is targeted has no elements"):
        SingleFaults().cells(asked({"m": Memory.of(model)}))


def test_kinds_have_names_on_the_command_line() -> None:
    assert {name: find_kind(name) for name in ("rates", "single", "exhaustive")} == {
        "rates": RateSweep,
        "single": SingleFaults,
        "exhaustive": Exhaustive,
    }
