"""Faults in a model's memory: exactly the drawn ones inside the block, exactly none behind it."""

import dataclasses
import struct
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from fault_oracles import ORACLES, flipped
from torch import nn

from fitact_fx.bounded import Bounded
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, FaultList, Memory, TensorFaults, find_format
from fitact_fx.faults.formats.floating import Floating
from fitact_fx.faults.tensor_cell import HitTensor, TensorCell

SHARED = "draw the list on this model, or keep what both have with faults.restricted_to(model)"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def hardened(model, bound=6.0):
    """The same parameters and names, and a bound behind the ReLU, of which only the buffers matter here."""
    site = Bounded.__new__(Bounded)
    nn.Module.__init__(site)
    site.register_buffer("lower", None)
    site.register_buffer("upper", torch.tensor(bound))
    variant = nn.Sequential(*model)
    variant.add_module("bound", site)
    return variant


def snapshot(model):
    """The raw bits of every parameter and bound."""
    cells = (cell for cell in Memory.of(model).cells if cell.kind != "buffers")
    return {cell.name: cell.tensor.detach().clone().view(torch.int32) for cell in cells}


def assert_unchanged(model, before):
    after = snapshot(model)
    assert all(torch.equal(after[name], bits) for name, bits in before.items())


def single(name, shape, elements, bits, stored="float32"):
    return FaultList(find_format(stored), (TensorFaults(name, shape, elements, bits),))


@pytest.mark.parametrize("stored", ["float32", "q15.16"])
def test_hit_elements_hold_the_faulty_word_and_all_others_their_exact_value(stored):
    model = network()
    before = {name: tensor.detach().flatten().tolist() for name, tensor in model.named_parameters()}
    faults = BitFlip(rate=0.02).draw(model, format=stored, seed=0, trial=3)
    hits = {}
    for name, element, bit in faults.rows:
        hits.setdefault((name, element), []).append(bit)
    assert any(len(bits) > 1 for bits in hits.values())  # several in one element combine
    with faults.applied(model):
        for name, tensor in model.named_parameters():
            clean = before[name]
            for element, value in enumerate(tensor.detach().flatten().tolist()):
                bits = hits.get((name, element))
                expected = flipped(ORACLES[stored](None), clean[element], bits) if bits else clean[element]
                assert struct.pack("<f", value) == struct.pack("<f", expected)


def test_everything_is_put_back_bit_for_bit_even_nan_payloads():
    model = network()
    strange = torch.tensor([0x7FA00001, -0x003FFFFF, -(2**31), 1, 0x7F800000], dtype=torch.int32)
    with torch.no_grad():
        model[4].bias.view(torch.int32).copy_(strange)
    before = snapshot(model)
    for stored in ("float32", "q15.16"):
        with BitFlip(rate=0.5).draw(model, format=stored).applied(model):
            pass
        assert_unchanged(model, before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_everything_is_put_back_when_the_block_is_left_by_an_exception(error):
    model = network()
    before = snapshot(model)
    with pytest.raises(error), BitFlip(rate=0.1).draw(model).applied(model):
        raise error
    assert_unchanged(model, before)


@dataclass(frozen=True)
class Failing(Floating):
    """Interrupts at the third tensor."""

    calls: ClassVar[list] = []

    def is_own(self, dtype):
        self.calls.append(1)
        if len(self.calls) == 3:
            raise KeyboardInterrupt
        return super().is_own(dtype)


def test_everything_is_put_back_when_applying_itself_is_interrupted_halfway():
    model = network()
    before = snapshot(model)
    faults = BitFlip(rate=0.2).draw(model, format=Failing(**dataclasses.asdict(find_format("float32"))))
    with pytest.raises(KeyboardInterrupt), faults.applied(model):
        pytest.fail("the block must not run")
    assert_unchanged(model, before)
    with BitFlip(rate=0.2).draw(model).applied(model):
        pass


@pytest.mark.parametrize("times", [1, 3])
def test_everything_is_put_back_whichever_write_is_interrupted(monkeypatch, times):
    write, tensors = TensorCell.write, len(list(network().parameters()))
    for first in range(2 * tensors):  # on the way in, then on the way out
        model, calls = network(), []
        before = snapshot(model)

        def interrupted(self, *args, calls=calls, first=first):
            calls.append(1)
            if first <= len(calls) - 1 < first + times:
                raise KeyboardInterrupt
            return write(self, *args)

        faults = BitFlip(rate=1, bits="sign").draw(model, format="float32")
        monkeypatch.setattr(TensorCell, "write", interrupted)
        with pytest.raises(KeyboardInterrupt), faults.applied(model):
            pass
        monkeypatch.setattr(TensorCell, "write", write)
        assert_unchanged(model, before)
        with faults.applied(model):  # and the model can be used again
            pass


def test_one_tensor_that_cannot_be_undone_is_told_and_the_others_are(monkeypatch):
    model = network()
    before, undo = snapshot(model), HitTensor.undo

    def failing(self):
        if self.cell.name == "1.weight":
            raise OSError("the device is gone")
        undo(self)

    monkeypatch.setattr(HitTensor, "undo", failing)
    with (
        pytest.raises(OSError, match="the device is gone"),
        BitFlip(rate=1, bits="sign").draw(model, "float32").applied(model),
    ):
        pass
    after = snapshot(model)
    assert [name for name in before if not torch.equal(after[name], before[name])] == ["1.weight"]


def test_nested_use_is_refused_also_through_a_variant_that_shares_parameters():
    model = network()
    faults = BitFlip(rate=0.01).draw(model)
    expected = (
        "faults are already applied to this model (tensor '0.weight'); "
        "leave that `with faults.applied(...)` block before entering another"
    )
    with faults.applied(model):
        inside = snapshot(model)
        for target in (model, hardened(model)):
            with pytest.raises(FaultError) as error, faults.applied(target):
                pytest.fail("the block must not run")
            assert str(error.value) == expected
        assert_unchanged(model, inside)
    with faults.applied(model):
        pass


def test_two_models_can_be_faulty_at_once():
    one, other = network(), network()
    with BitFlip(rate=0.01).draw(one).applied(one), BitFlip(rate=0.01).draw(other).applied(other):
        assert_unchanged(one, snapshot(other))


@pytest.mark.parametrize(
    "layout",
    [
        lambda weight: weight.contiguous(memory_format=torch.channels_last),
        lambda weight: weight.transpose(0, 3).contiguous().transpose(0, 3),
        torch.zeros(8, 3, 3, 6)[::2, :, :, 1::2].copy_,
    ],
)
def test_the_memory_layout_of_a_parameter_makes_no_difference(layout):
    plain, other = network(), network()
    other[0].weight = nn.Parameter(layout(other[0].weight.detach()))
    assert not other[0].weight.is_contiguous()
    before = other[0].weight.detach().clone()
    faults = BitFlip(rate=0.05).draw(plain, format="float32")
    with faults.applied(plain), faults.applied(other):
        assert torch.equal(plain[0].weight.view(torch.int32), other[0].weight.view(torch.int32))
    assert torch.equal(other[0].weight, before)


def test_a_tied_parameter_is_hit_once_under_the_first_of_its_names():
    model = nn.Sequential()
    model.add_module("out", nn.Linear(4, 4, bias=False))
    model.add_module("embedding", nn.Linear(4, 4, bias=False))
    model.embedding.weight = model.out.weight
    faults = BitFlip(rate=0.1).draw(model)
    assert [one.name for one in faults.tensors] == ["embedding.weight"]
    before = snapshot(model)
    with single("out.weight", (4, 4), [5], [3]).applied(model):  # any of its names will do
        assert model.embedding.weight.flatten()[5] != before["embedding.weight"].view(torch.float32).flatten()[5]
    assert_unchanged(model, before)


def test_a_tensor_gets_the_same_faults_in_the_plain_and_in_the_hardened_model():
    model = network()
    plain = BitFlip(rate=0.01).draw(model)
    hard = BitFlip(rate=0.01).draw(hardened(model))
    assert [one.name for one in hard.tensors] == [*(one.name for one in plain.tensors), "bound.upper"]
    assert hard.restricted_to(model) == plain
    with plain.applied(hardened(model)):
        pass


def test_a_bound_is_a_target_and_an_infinite_one_saturates_in_fixed_point():
    variant = hardened(network(), bound=torch.inf)
    with single("bound.upper", (), [0], [30], stored="q15.16").applied(variant):
        assert variant.bound.upper.item() == flipped(ORACLES["q15.16"](None), 32768 - 2**-16, [30])
    assert variant.bound.upper.item() == torch.inf


def test_an_unset_bound_is_no_target():
    names = Memory.of(hardened(network())).names
    assert "bound.upper" in names
    assert "bound.lower" not in names


def test_gradients_stay_and_autograd_sees_the_change():
    model = network()
    model(torch.ones(2, 3, 4, 4)).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    faults = BitFlip(rate=0.01).draw(model)
    loss = model(torch.ones(2, 3, 4, 4)).square().sum()
    with faults.applied(model):
        assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    # Even undone, a change is a change: a graph from before must not be trusted silently.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode_makes_no_difference():
    model = network()
    before = snapshot(model)
    faults = BitFlip(rate=0.05).draw(model)
    with torch.inference_mode(), faults.applied(model):
        pass
    with faults.applied(model), torch.inference_mode():
        model(torch.ones(2, 3, 4, 4))
    assert_unchanged(model, before)


def test_a_memory_stands_for_its_model_in_many_trials():
    model = network()
    memory, before = Memory.of(model), snapshot(model)
    for trial in range(3):
        faults = BitFlip(rate=0.01).draw(memory, trial=trial)
        assert faults == BitFlip(rate=0.01).draw(model, trial=trial)
        with faults.applied(memory):
            assert any(not torch.equal(bits, before[name]) for name, bits in snapshot(model).items())
    assert_unchanged(model, before)


def test_the_global_generators_are_not_touched():
    model, state = network(), torch.get_rng_state()
    with BitFlip(rate=0.01).draw(model).applied(model):
        pass
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (
            single("0.wieght", (4, 3, 3, 3), [0], [0]),
            "the model has no tensor '0.wieght' (close: 0.weight, 4.weight, 1.weight); " + SHARED,
        ),
        (
            single("4.weight", (5, 17), [0], [0]),
            "tensor '4.weight' has shape (5, 16); the fault list is for (5, 17)",
        ),
    ],
)
def test_a_list_that_does_not_fit_is_refused_before_anything_changes(faults, message):
    model = network()
    good = TensorFaults("0.weight", (4, 3, 3, 3), [1], [2])
    before = snapshot(model)
    mixed = FaultList(faults.format, (good, *faults.tensors))
    with pytest.raises(FaultError) as error, mixed.applied(model):
        pytest.fail("the block must not run")
    assert str(error.value) == message
    assert_unchanged(model, before)


def test_a_list_on_a_converted_model_is_refused():
    faults = BitFlip(rate=0.01).draw(network(), format="float32")
    with pytest.raises(FaultError, match=r"^tensor '0\.weight' is float64, which cannot hold float32 numbers"):
        faults.applied(network().double()).__enter__()


def test_a_list_with_nothing_of_the_model_cannot_be_restricted_to_it():
    with pytest.raises(FaultError, match=r"^Sequential has none of the tensors that the fault list names$"):
        single("elsewhere", (1,), [0], [0]).restricted_to(network())


def test_a_model_that_is_cast_inside_the_block_is_not_left_faulty_in_silence():
    model = network()
    faults = single("4.bias", (5,), [0], [30])
    expected = r"^tensor '4\.bias' was moved or cast while faults were applied"
    with pytest.raises(FaultError, match=expected), faults.applied(model):
        model.double()
