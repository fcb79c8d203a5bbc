"""Faults at exact places, and what is refused: with a message that helps, and with the model as it was."""

import contextlib

import pytest
import torch
from fault_oracles import SHAPE, Cells, raw
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Burst, FaultList, RandomWord, StuckAt, Target, TensorFaults, Zero, find_format

TIED = "tensor 'embedding.weight'"


@contextlib.contextmanager
def refused(model, message):
    """FaultError with exactly this message, and not one bit of the model changed."""
    before = raw(model)
    with pytest.raises(FaultError) as error:
        yield
    assert str(error.value) == message
    after = raw(model)
    assert all(torch.equal(after[name], words) for name, words in before.items())


def tied():
    model = nn.Sequential()
    model.add_module("out", nn.Linear(4, 4, bias=False))
    model.add_module("embedding", nn.Linear(4, 4, bias=False))
    model.embedding.weight = model.out.weight
    return model


def test_an_element_is_a_number_or_one_index_per_dimension():
    rows = BitFlip(places=[("weight", (1, 2, 3), 31), ("bias", (8,), 0), ("weight", 0, 5)]).draw(Cells()).rows
    assert list(rows) == [("weight", 0, 5), ("weight", 20 + 8 + 3, 31), ("bias", 8, 0)]
    assert list(Zero(places=[("weight", [5, 4, 3]), ("weight", 4)]).draw(Cells()).rows) == [
        ("weight", 4, 0),
        ("weight", 119, 0),
    ]


@pytest.mark.parametrize("element", [0, ()])
def test_a_tensor_without_dimensions_has_one_element(element):
    model = nn.ParameterDict({"scale": torch.tensor(1.0)})
    faults = BitFlip(places=[("scale", element, 31)]).draw(model)
    assert list(faults.rows) == [("scale", 0, 31)]
    with faults.applied(model):
        assert model["scale"].item() == 1.0 - 2**15


def test_several_places_in_one_word_all_count():
    model = Cells()
    with torch.no_grad():
        model.bias.zero_()
    with BitFlip(places=[("bias", 3, bit) for bit in (18, 16, 15)]).draw(model).applied(model):
        assert model.bias.tolist() == [0, 0, 0, 5.5, 0, 0, 0, 0, 0]


def test_places_are_the_same_at_every_seed_and_only_their_tensors_are_targeted():
    fault = BitFlip(places=[("bias", 1, 2)])
    for seed, trial in ((0, 0), (1, 0), (2, 3)):
        assert list(fault.draw(Cells(), seed=seed, trial=trial).rows) == [("bias", 1, 2)]
    assert fault.draw(Cells()).shapes == {"bias": (9,)}


def test_a_place_may_use_any_name_of_a_tied_tensor():
    faults = BitFlip(places=[("out.weight", 3, 1), ("embedding.weight", 3, 2)]).draw(tied())
    assert list(faults.rows) == [("embedding.weight", 3, 1), ("embedding.weight", 3, 2)]


@pytest.mark.parametrize(
    "element",
    [-1, 120, 10**30, (0, 0), (0, 0, 0, 0), (0, 0, -1), (0, 0, 4), (6, 0, 0), (5, 4, 10**30)],
)
def test_an_element_outside_its_tensor_is_refused(element):
    model, place = Cells(), ("weight", element, 3)
    with refused(model, f"place {place!r} lies outside its tensor, whose shape is {SHAPE}"):
        BitFlip(places=[("bias", 0, 0), place]).draw(model)


def test_an_empty_index_is_refused():
    with pytest.raises(FaultError, match="outside"):
        BitFlip(places=[("weight", (), 3)]).draw(Cells())


@pytest.mark.parametrize(
    ("fault", "allowed"),
    [
        (BitFlip(places=[("bias", 0, 32)]), "bit 32 is not one that can be hit, which are 0 to 31"),
        (BitFlip(places=[("bias", 0, -1)]), "bit -1 is not one that can be hit, which are 0 to 31"),
        (
            BitFlip(places=[("bias", 0, 4)], bits=["sign", 0, 1, 2, 5]),
            "bit 4 is not one that can be hit, which are 0 to 2, 5, 31",
        ),
        (Burst(places=[("bias", 0, 30)], width=3), "bit 30 is not one that can be hit, which are 0 to 29"),
        (Burst(places=[("bias", 0, 1)], width=32), "bit 1 is not one that can be hit, which are 0"),
        (
            StuckAt(places=[("bias", 0, 3)], value=1, bits="integer"),
            "bit 3 is not one that can be hit, which are 16 to 30",
        ),
    ],
)
def test_a_bit_that_the_fault_cannot_hit_is_refused(fault, allowed):
    model = Cells()
    with refused(model, f"place {fault.places[0]!r}: {allowed}"):
        fault.draw(model)


@pytest.mark.parametrize("again", [("bias", 3, 7), ("bias", (3,), 7)])
def test_a_place_given_twice_is_refused(again):
    model = Cells()
    with refused(model, "a place in tensor 'bias' is given twice"):
        BitFlip(places=[("bias", 3, 7), ("weight", 3, 7), again]).draw(model)


def test_a_place_given_under_two_names_of_its_tensor_is_refused():
    model = tied()
    with refused(model, f"a place in {TIED} is given twice"):
        Zero(places=[("out.weight", 3), ("embedding.weight", (0, 3))]).draw(model)


@pytest.mark.parametrize("kind", [BitFlip, lambda places: StuckAt(places=places, value=0)])
@pytest.mark.parametrize("place", [("bias", 3), ("bias", 3, 4, 5), ("bias",)])
def test_a_bit_is_named_by_three_parts(kind, place):
    model = Cells()
    with refused(model, f"{place!r} is no place of this fault;\n  write (tensor name, element, bit)"):
        kind(places=[place]).draw(model)


@pytest.mark.parametrize("kind", [Zero, RandomWord])
def test_a_word_is_named_by_two_parts(kind):
    model, place = Cells(), ("bias", 3, 4)
    with refused(model, f"{place!r} is no place of this fault;\n  write (tensor name, element)"):
        kind(places=[place]).draw(model)


def test_an_unknown_tensor_is_refused_with_close_names():
    model = Cells()
    remedy = "draw the list on this model, or keep what both have with faults.restricted_to(model)"
    with refused(model, f"the model has no tensor 'wieght' (close: weight); {remedy}"):
        BitFlip(places=[("wieght", 0, 0)]).draw(model)


def test_a_place_outside_the_targets_is_refused():
    model = Cells()
    with refused(model, "place ('bias', 0, 0) is in a tensor that is not among the targets"):
        BitFlip(places=[("weight", 0, 0), ("bias", 0, 0)]).draw(model, targets=["parameters:w*"])


@pytest.mark.parametrize(("given", "got"), [({}, "none of them"), ({"rate": 0.1, "count": 1}, "rate and count")])
def test_a_fault_takes_exactly_one_of_rate_count_and_places(given, got):
    with pytest.raises(FaultError) as error:
        BitFlip(**given)
    assert str(error.value) == f"BitFlip takes one of rate, count and places; got {got}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Zero(rate=1.5), "a bit error rate lies between 0 and 1; got 1.5"),
        (lambda: RandomWord(rate=float("nan")), "a bit error rate lies between 0 and 1; got nan"),
        (lambda: Burst(rate=-0.0001, width=2), "a bit error rate lies between 0 and 1; got -0.0001"),
        (lambda: StuckAt(count=-1, value=0), "a count of faults is a whole number from 0 up; got -1"),
        (lambda: StuckAt(count=1, value=2), "a bit is stuck at 0 or at 1; got 2"),
        (lambda: Burst(count=1, width=0), "a burst is at least 1 bit wide; got 0"),
    ],
)
def test_a_fault_that_makes_no_sense_is_refused_when_it_is_made(make, message):
    with pytest.raises(FaultError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fault", "stored", "message"),
    [
        (BitFlip(rate=0.1, bits=32), "q15.16", "bit 32 lies outside q15.16, whose bits are 0 to 31"),
        (BitFlip(rate=0.1, bits=[3, -1]), "int8", "bit -1 lies outside int8, whose bits are 0 to 7"),
        (BitFlip(rate=0.1, bits=[]), "q15.16", "no bits are left to hit;\n  leave `bits` out for all of them"),
        (
            StuckAt(count=1, value=0, bits="mantissa"),
            "q15.16",
            "unknown field of q15.16 'mantissa'; choose one of fraction, integer, sign",
        ),
        (
            Burst(rate=0.1, width=9, bits="exponent"),
            "float32",
            "a burst of 9 adjacent bits fits nowhere among the exponent bits of float32",
        ),
        (Burst(count=1, width=33), "float32", "a burst of 33 adjacent bits fits nowhere of float32"),
        (
            Zero(count=130),
            "q15.16",
            "a count of 130 is more than the 129 places in the 2 targeted tensors",
        ),
    ],
)
def test_a_fault_that_does_not_go_with_the_format_or_model_is_refused_when_it_is_drawn(fault, stored, message):
    model = Cells()
    with refused(model, message):
        fault.draw(model, stored)


@pytest.mark.parametrize(
    ("stored", "dtype", "wider"),
    [
        ("q15.16", torch.float16, "float32 or float64"),
        ("int8", torch.bfloat16, "int8 or float32 or float64"),
        ("float16", torch.bfloat16, "float16 or float32"),
        ("float32", torch.float64, "float32"),
    ],
)
def test_a_format_that_a_tensor_cannot_hold_is_refused_with_the_tensor_and_the_remedy(stored, dtype, wider):
    model = Cells(dtype)
    found = str(dtype).removeprefix("torch.")
    message = f"tensor 'weight' is {found}, which cannot hold {stored} numbers; "
    with refused(model, f"{message}choose another format, or convert the model to {wider}"):
        BitFlip(count=1).draw(model, stored)
    model.weight = nn.Parameter(torch.ones(2))  # what is not targeted need not fit
    assert len(BitFlip(count=3).draw(model, "float32", targets=["parameters:weight"])) == 3


def test_a_list_for_another_model_is_refused_whole():
    model, shape = Cells(), tuple(SHAPE)
    good = TensorFaults("weight", shape, [0], [31])
    remedy = "draw the list on this model, or keep what both have with faults.restricted_to(model)"
    with refused(model, f"the model has no tensor 'biased' (close: bias); {remedy}"):
        FaultList(find_format("float32"), (good, TensorFaults("biased", (9,), [0], [0]))).applied(model).__enter__()
    with refused(model, "tensor 'bias' has shape (9,); the fault list is for (10,)"):
        FaultList(find_format("float32"), (good, TensorFaults("bias", (10,), [], []))).applied(model).__enter__()


@pytest.mark.parametrize("target", ["weights", "parameter", "", "weight.*"])
def test_an_unknown_kind_of_target_is_refused_with_the_valid_ones(target):
    message = (
        f"unknown target {target!r}; choose one of activations, bounds, buffers, parameters;\n"
        f'  a glob over names stands behind the kind, such as "parameters:{target}"'
    )
    with pytest.raises(FaultError) as error:
        Target(target)
    assert str(error.value) == message
    model = Cells()
    with refused(model, message):
        BitFlip(rate=0.1).draw(model, targets=[target])
