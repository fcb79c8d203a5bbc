"""A plan, against the formula written out here and against the lists that a campaign would draw."""

import json
from math import ceil
from typing import Any

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.campaigns.planning import Plan, plan
from fitact_fx.errors import CampaignError, FaultError, FitactError
from fitact_fx.faults import BitFlip, FaultList, Memory, Target, find_format

SIZES = {"0.weight": 108, "0.bias": 4, "3.weight": 720, "3.bias": 5}  # elements
ALL = 837


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def leveugle(population: int, margin: float = 0.01, cut: float = 1.96, share: float = 0.5) -> int:
    return ceil(population / (1 + margin**2 * (population - 1) / (cut**2 * share * (1 - share))) - 1e-9)


def numbers(planned: Plan) -> dict[str, tuple[int, int]]:
    return {each.name: (each.population, each.trials) for each in planned.strata}


def test_the_network_is_one_stratum_of_all_its_places() -> None:
    planned = plan(net())
    assert numbers(planned) == {"all": (32 * ALL, leveugle(32 * ALL))}
    assert (planned.population, planned.trials) == (32 * ALL, leveugle(32 * ALL))


def test_every_tensor_is_a_stratum_with_a_sample_of_its_own() -> None:
    planned = plan(net(), per="tensor")
    assert numbers(planned) == {name: (32 * size, leveugle(32 * size)) for name, size in SIZES.items()}
    assert [each.tensor for each in planned.strata] == list(SIZES)
    assert planned.population == 32 * ALL
    assert planned.trials == sum(leveugle(32 * size) for size in SIZES.values()) > plan(net()).trials


def test_every_bit_is_a_stratum_of_all_numbers() -> None:
    planned = plan(net(), per="bit", format="float32", bits=["exponent", 31])
    assert numbers(planned) == {f"bit {bit}": (ALL, leveugle(ALL)) for bit in range(23, 32)}
    assert [each.bit for each in planned.strata] == list(range(23, 32))


@pytest.mark.parametrize("per", ["network", "tensor", "bit"])
@pytest.mark.parametrize(
    ("format", "bits"), [("q15.16", None), ("float16", "mantissa"), ("int8", [7, 0]), ("float32", 30)]
)
def test_the_places_are_those_that_a_campaign_draws_from(per: str, format: str, bits: Any) -> None:  # noqa: A002
    model = net().half() if format == "float16" else net()
    every = BitFlip(rate=1.0, bits=bits).draw(model, format, targets=["parameters"])
    assert plan(model, per=per, format=format, bits=bits).population == len(every)
    for stratum in plan(model, per=per, format=format, bits=bits).strata:
        assert stratum.population == sum(belongs(row, stratum.tensor, stratum.bit) for row in every.rows)


def belongs(row: FaultList, tensor: str | None, bit: int | None) -> bool:
    return tensor in (None, row.tensor) and bit in (None, row.bit)


@pytest.mark.parametrize(
    ("options", "cut"),
    [({"margin": 0.05}, 1.96), ({"confidence": 0.99}, 2.576), ({"share": 0.02}, 1.96), ({"share": 0.97}, 1.96)],
)
def test_margin_confidence_and_share_are_those_of_the_formula(options: dict[str, float], cut: float) -> None:
    others = {name: value for name, value in options.items() if name != "confidence"}
    for stratum in plan(net(), per="tensor", **options).strata:  # type: ignore[arg-type]
        assert stratum.trials == leveugle(stratum.population, cut=cut, **others)


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["parameters:0.*"], ["0.weight", "0.bias"]),
        ("parameters:*bias", ["0.bias", "3.bias"]),
        ([Target("parameters", "3.weight"), "parameters:*.weight"], ["0.weight", "3.weight"]),
        (None, list(SIZES)),
    ],
)
def test_targets_choose_the_tensors(targets: Any, names: list[str]) -> None:
    assert [each.name for each in plan(net(), per="tensor", targets=targets).strata] == names


def test_buffers_and_bounds_are_planned_for_when_they_are_targeted() -> None:
    hard = fitact_fx.harden(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()), granularity="layer")
    fitact_fx.set_bounds(hard, {"*": (None, 6.0)})
    assert plan(hard, targets=["bounds"]).population == 32
    assert plan(hard, targets=["buffers:*running_mean"]).population == 4 * 32
    assert plan(hard).population == (3 * 4 + 4 + 4 + 4) * 32


def test_a_tied_tensor_counts_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    model[1].weight = model[0].weight
    assert numbers(plan(model, per="tensor")) == {"0.weight": (36 * 32, leveugle(36 * 32))}


def test_an_empty_tensor_is_no_stratum() -> None:
    model = nn.ParameterDict({"full": nn.Parameter(torch.ones(3)), "none": nn.Parameter(torch.ones(0))})
    assert list(numbers(plan(model, per="tensor"))) == ["full"]


def test_activations_are_counted_within_one_sample() -> None:
    injected = fitact_fx.inject(net(), at="*", fault=BitFlip(count=1), example_inputs=(torch.zeros(2, 3, 8, 8),))
    planned = plan(injected, per="site", targets=["activations"])
    assert [each.population for each in planned.strata] == [4 * 6 * 6 * 32]


def test_a_memory_can_stand_for_the_model_which_is_only_looked_at() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert plan(Memory.of(model)) == plan(model)
    assert plan(model, format=find_format("q15.16")) == plan(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_network_too_large_to_be_made_is_planned_in_no_time() -> None:
    with torch.device("meta"):
        large = nn.Linear(10**7, 10**6, bias=False)
    assert plan(large).population == 32 * 10**13
    assert plan(large).trials == 9_604


def test_the_plan_is_said_in_words() -> None:
    with torch.device("meta"):
        large = nn.Linear(2_794, 4_000, bias=False)
    assert plan(large).sentence() == (
        "9,604 single-bit faults in 357,632,000 places: an SDC rate to +-1 point at 95 % confidence, "
        "whatever it turns out to be"
    )
    assert plan(net(), per="tensor", margin=0.05, confidence=0.99, share=0.02).sentence() == (
        "182 single-bit faults in 26,784 places, 38 to 52 in each of 4 tensors: an SDC rate of each to "
        "+-5 points at 99 % confidence, if it turns out to be 2 % or less"
    )
    assert plan(net(), per="bit", bits=[31, 30], margin=0.1, share=0.9).sentence() == (
        "68 single-bit faults in 1,674 places, 34 in each of 2 bits: an SDC rate of each to "
        "+-10 points at 95 % confidence, if it turns out to be 90 % or more"
    )
    assert plan(nn.Linear(1, 1, bias=False), bits=3).sentence() == (
        "1 single-bit fault in 1 place: every place once, an SDC rate without sampling error"
    )


def test_the_table_has_a_line_per_stratum_and_their_sum() -> None:
    assert plan(net(), per="tensor").table().split("\n") == [
        "tensor      places    faults    of all",
        "--------  --------  --------  --------",
        "0.weight     3,456     2,542    73.6 %",
        "0.bias         128       127    99.2 %",
        "3.weight    23,040     6,779    29.4 %",
        "3.bias         160       158    98.8 %",
        "total       26,784     9,606    35.9 %",
    ]
    assert plan(net(), margin=0.2).table().split("\n")[2:] == ["all          26,784        24    0.09 %"]
    assert plan(nn.Linear(40, 50, bias=False), per="bit", bits=[0], margin=0.0001).table().endswith(" all")


def test_a_part_that_is_nearly_all_is_not_called_all() -> None:
    assert plan(nn.Linear(99, 9, bias=False), margin=0.00006).table().endswith("28,509    99.9 %")  # of 28,512


def test_a_program_gets_everything() -> None:
    planned = plan(net(), per="bit", format="float32", bits="sign", targets="parameters:*bias", margin=0.05)
    assert json.loads(json.dumps(planned.as_json())) == {
        "per": "bit",
        "margin": 0.05,
        "confidence": 0.95,
        "share": 0.5,
        "format": "float32",
        "targets": ["parameters:*bias"],
        "bits": [31],
        "population": 9,
        "trials": 9,
        "sentence": planned.sentence(),
        "strata": [{"name": "bit 31", "population": 9, "trials": 9}],
    }


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"per": "layer"}, CampaignError, "unknown stratum 'layer'; choose one of bit, network, site, tensor"),
        ({"format": "int9"}, FaultError, "unknown format 'int9'; choose one of bfloat16, "),
        ({"bits": "exponent"}, FaultError, "unknown field of q15.16 'exponent'; choose one of "),
        ({"bits": 32}, FaultError, "bit 32 lies outside q15.16, whose bits are 0 to 31"),
        ({"targets": ["parameters:x*"]}, FaultError, r"the pattern 'x\*' matches none of the parameters"),
        ({"targets": "weights"}, FaultError, "unknown target 'weights'; choose one of activations, bounds, "),
        ({"targets": "bounds"}, FaultError, "the model has no bounds;\n  calibrate the hardened model"),
        ({"targets": []}, CampaignError, "targets is empty, so there is nothing to hit;\n  leave it out for the par"),
        ({"margin": 0.0}, FitactError, "a margin lies between 0 and 1; got 0.0"),
        ({"confidence": 95}, FitactError, "a confidence lies between 0 and 1; got 95"),
        ({"share": 1}, FitactError, "a share lies between 0 and 1; got 1"),
    ],
)
def test_what_cannot_be_planned_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        plan(net(), **options)


def test_a_model_that_holds_nothing_or_the_wrong_type_is_refused() -> None:
    with pytest.raises(FaultError, match=r"^tensor '0.weight' is float16, which cannot hold q15.16 numbers; choose"):
        plan(net().half())
    with pytest.raises(FaultError, match=r"^ReLU has no parameters and no bounds: nothing for a fault to hit$"):
        plan(nn.ReLU())
    with pytest.raises(CampaignError, match=r"^what is targeted has no elements, so there is no place for a fault;\n"):
        plan(nn.ParameterDict({"none": nn.Parameter(torch.ones(0))}))
