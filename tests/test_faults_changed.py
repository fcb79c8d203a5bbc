"""What a fault model can hit, and whether a fault changed anything: a bit may be so already, or round away."""

import numpy as np
import pytest
import torch
from fault_oracles import CASES, ORACLES, RAW, Cells
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, FaultModel, Memory, StuckAt, Zero
from fitact_fx.injection import inject


def changed(model: nn.Module, fault: FaultModel, stored: str) -> tuple[str, ...]:
    applied = fault.draw(model, stored).applied(model)
    with applied:
        return applied.changed


def one(value: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.tensor([value, -0.75, 0.5], dtype=dtype))
    return model


def changes(value: float, bit: int, stored: str, fault: str = "flip", dtype: torch.dtype = torch.float32) -> bool:
    place = [("weight", 0, bit)]
    made = BitFlip(places=place) if fault == "flip" else StuckAt(places=place, value=int(fault))
    found = changed(one(value, dtype), made, stored)
    assert found in ((), ("weight",))
    return bool(found)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_bit_that_is_stuck_at_what_it_is_changes_nothing(stuck: int) -> None:
    for value in (1.0, -2.5, 0.0, -0.0, float("inf"), float("nan")):
        word = int(np.float32(value).view(np.uint32))
        for bit in range(32):
            assert changes(value, bit, "float32", str(stuck)) == ((word >> bit & 1) != stuck)


@pytest.mark.parametrize(("stored", "dtype"), CASES)
def test_changed_is_whether_any_raw_bit_of_the_tensor_is_another_one(stored: str, dtype: torch.dtype) -> None:
    model = Cells(dtype)
    parameters = dict(model.named_parameters())
    for seed in range(40):
        for fault in (BitFlip(count=1), StuckAt(count=2, value=1), StuckAt(count=2, value=0), Zero(count=1)):
            before = {name: p.detach().clone().view(RAW[p.element_size()]) for name, p in parameters.items()}
            applied = fault.draw(model, stored, seed=seed).applied(model)
            with applied:
                other = {
                    name
                    for name, p in parameters.items()
                    if not p.detach().view(RAW[p.element_size()]).equal(before[name])
                }
                assert set(applied.changed) == other
                assert len(applied.changed) == len(other)


def test_a_fault_that_saturates_back_or_rounds_away_changes_nothing() -> None:
    # 2 ** 15 - 2 ** -16 is the greatest number; as a float32 it is 2 ** 15, and so is all that saturates.
    assert not changes(32768.0, 0, "q15.16"), "the last bit of a saturated number rounds away in float32"
    assert changes(32768.0, 31, "q15.16")
    assert changes(32768.0, 30, "q15.16")
    # Of numbers above 256, float32 cannot hold the last bits of Q15.16.
    assert not changes(1000.0, 0, "q15.16")
    assert changes(1.0, 0, "q15.16")
    # In float64 it can.
    assert changes(1000.0, 0, "q15.16", dtype=torch.float64)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 300.0, 20000.0, -32768.0, 32767.5, 1e9, -1e9, 1e-9])
def test_fixed_point_faults_change_what_the_arithmetic_says(value: float) -> None:
    held = float(np.float32(value))
    word = min(max(round(held * 2**16), -(2**31)), 2**31 - 1) % 2**32
    for bit in range(32):
        other = word ^ 1 << bit
        signed = other - 2**32 if other >= 2**31 else other
        assert changes(value, bit, "q15.16") == (np.float32(signed / 2**16).tobytes() != np.float32(held).tobytes())


def test_int8_faults_change_what_the_arithmetic_says() -> None:
    values = np.array([0.6, -0.75, 0.5], np.float32)
    oracle = ORACLES["int8"](values)
    for bit in range(8):
        new = np.float32(oracle.number(oracle.word(0.6) ^ 1 << bit))
        assert changes(0.6, bit, "int8") == (new != np.float32(0.6))
    model = one(0.6)
    assert changed(model, StuckAt(places=[("weight", 1, 7)], value=1), "int8") == (), "-0.75 is negative already"


def test_payloads_of_nan_are_bits_like_others() -> None:
    for bit in range(22):
        assert changes(float("nan"), bit, "float32")
        assert changes(float("nan"), bit, "float32", "1")
        assert not changes(float("nan"), bit, "float32", "0")


def test_a_zero_that_gets_a_sign_is_changed() -> None:
    assert changes(0.0, 31, "float32")
    assert not changes(-0.0, 31, "float32", "1")


def test_only_the_tensors_that_changed_are_named() -> None:
    model = nn.Module()
    model.a, model.b, model.c = (nn.Parameter(torch.tensor([value])) for value in (1.0, 1.0, -1.0))
    fault = StuckAt(places=[("a", 0, 31), ("b", 0, 30), ("c", 0, 31)], value=1)
    applied = fault.draw(model, "float32").applied(model)
    assert applied.changed == (), "outside, nothing is"
    with applied:
        assert applied.changed == ("a", "b")
    assert applied.changed == ()


def test_whatever_is_loaded_into_an_injection_node_may_change_something() -> None:
    faulty = inject(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU()), "*", BitFlip(count=0), example_inputs=(torch.randn(2, 3),)
    )
    (name,) = [cell.name for cell in Memory.of(faulty).cells if cell.kind == "activations"]
    for count, wanted in ((0, ()), (1, (name,))):
        applied = BitFlip(count=count).draw(faulty, targets=["activations"]).applied(faulty)
        with applied:
            assert applied.changed == wanted


def hardened() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [torch.randn(16, 3)])
    return hard


@pytest.mark.parametrize(
    ("fault", "targets", "kinds"),
    [
        (BitFlip(rate=0.1), None, {"parameters", "bounds"}),
        (BitFlip(count=1), None, {"parameters"}),
        (BitFlip(rate=0.1), ["buffers"], {"buffers"}),
        (BitFlip(count=1), ["parameters", "bounds"], {"parameters", "bounds"}),
        (BitFlip(count=1), "bounds", {"bounds"}),
    ],
)
def test_cells_are_what_a_draw_can_hit(fault: FaultModel, targets: list[str] | None, kinds: set[str]) -> None:
    memory = Memory.of(hardened())
    cells = fault.cells(memory, targets)
    assert {cell.name for cell in cells} == {cell.name for cell in memory.cells if cell.kind in kinds}
    assert {cell.name for cell in cells} == set(fault.draw(memory, targets=targets).shapes)


def test_cells_of_given_places_are_the_tensors_they_name() -> None:
    memory = Memory.of(hardened())
    fault = BitFlip(places=[("0.weight", 1, 2), ("0.weight", 0, 2), ("0.bias", 0, 0)])
    assert {cell.name for cell in fault.cells(memory)} == {"0.weight", "0.bias"}


@pytest.mark.parametrize(
    ("fault", "targets", "message"),
    [
        (BitFlip(rate=0.1), [], "targets is empty, so there is nothing to hit"),
        (BitFlip(rate=0.1), ["activations"], "the model has no activations"),
        (BitFlip(places=[("0.wight", 0, 0)]), None, "the model has no tensor '0.wight'"),
        (BitFlip(places=[("0.weight", 0)]), None, "0.weight"),
    ],
)
def test_cells_that_there_are_not_are_refused(fault: FaultModel, targets: list[str] | None, message: str) -> None:
    with pytest.raises(FaultError, match=message):
        fault.cells(Memory.of(hardened()), targets)
