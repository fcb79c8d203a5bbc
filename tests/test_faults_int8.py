"""int8 words of a model's tensors: their scale follows the weights, and real int8 buffers need none."""

import numpy as np
import pytest
import torch
from torch import nn

from fitact_fx.faults import BitFlip, StuckAt, Zero

LAYOUTS = {
    "contiguous": lambda weight: weight,
    "channels last": lambda weight: weight.contiguous(memory_format=torch.channels_last),
    "transposed": lambda weight: weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "strided": lambda weight: weight.new_zeros(8, 3, 3, 8)[1::2, :, :, ::4].copy_(weight),
}


def model_with(layout="contiguous", dtype=torch.float32):
    random = torch.Generator().manual_seed(4)
    model = nn.Conv2d(3, 4, (3, 2)).to(dtype)
    weight = torch.randn(4, 3, 3, 2, generator=random) * torch.tensor([1, 30, 0.01, 0]).reshape(4, 1, 1, 1)
    model.weight = nn.Parameter(LAYOUTS[layout](weight.to(dtype)))
    return model


def scales(values, stored):
    """One number, or one per channel of what has several dimensions; 1 where all is zero."""
    largest = (
        np.abs(values).max(axis=(1, 2, 3), keepdims=True) if stored == "int8_per_channel" else np.abs(values).max()
    )
    return np.broadcast_to(np.where(largest > 0, largest / 127, 1.0), values.shape).ravel()


def flipped(values, places, stored):
    """What NumPy makes of the tensor `values` when these bits of it flip."""
    numbers = values.double().numpy()
    scale, expected = scales(numbers, stored), numbers.ravel().copy()
    words = np.clip(np.rint(expected / scale), -127, 127).astype(np.int8).view(np.uint8)
    for element, bit in places:
        words[element] ^= 1 << bit
    hit = sorted({element for element, _ in places})
    expected[hit] = words.view(np.int8).astype(np.float64)[hit] * scale[hit]
    return torch.from_numpy(expected).to(values.dtype).reshape(values.shape)


def drawn(model, places, stored):
    return BitFlip(places=[("weight", element, bit) for element, bit in places]).draw(model, stored)


def assert_flips(faults, model, places):
    """Inside the block the weight is what NumPy makes of it as it is now; behind the block it is as it was."""
    before = model.weight.detach().clone()
    expected = flipped(before, places, faults.format.name)
    with faults.applied(model):
        assert torch.equal(model.weight, expected)
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.signbit(model.weight), torch.signbit(before))


PLACES = [(element, bit) for element in (0, 5, 17, 18, 31, 36, 50, 54, 71) for bit in (7, element % 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stored", ["int8", "int8_per_channel"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_words_are_multiples_of_the_scale_of_the_tensor_or_its_channel_in_every_memory_layout(layout, stored, dtype):
    model = model_with(layout, dtype)
    assert model.weight.is_contiguous() == (layout == "contiguous")
    assert_flips(drawn(model, PLACES, stored), model, PLACES)


@torch.no_grad()
def doubled_in_place(model):
    model.weight.mul_(2)


def doubled_as_data(model):
    model.weight.data.mul_(2)


def loaded(model):
    model.load_state_dict({name: tensor * 5 for name, tensor in model.state_dict().items()})


def optimized(model):
    (model.weight * torch.linspace(-300, 500, 72).reshape(model.weight.shape)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def pointed_elsewhere(model):
    model.weight.data = model.weight.data * 3


def written_through_numpy(model):
    model.weight.detach().numpy()[0, 0, 0, 0] = 1000


CHANGES = [doubled_in_place, doubled_as_data, loaded, optimized, pointed_elsewhere, written_through_numpy]


@pytest.mark.parametrize("stored", ["int8", "int8_per_channel"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda each: each.__name__)
def test_the_scale_follows_weights_that_change_between_two_uses(change, stored):
    model = model_with()
    faults = drawn(model, PLACES, stored)
    for _ in range(3):
        assert_flips(faults, model, PLACES)
    for _ in range(3):
        change(model)
        assert_flips(faults, model, PLACES)
        assert_flips(faults, model, PLACES)


def test_the_largest_weight_going_wrong_changes_no_scale_of_this_trial_or_the_next():
    model = model_with()
    largest = int(model.weight.abs().argmax())
    first, faults = Zero(places=[("weight", largest)]).draw(model, "int8"), drawn(model, PLACES, "int8")
    for _ in range(3):
        with first.applied(model):
            assert model.weight.flatten()[largest] == 0
        assert_flips(faults, model, PLACES)


def test_the_scale_is_that_of_the_finite_weights():
    model = nn.ParameterDict({"w": torch.tensor([254.0, float("inf"), float("nan"), -6.0])})
    with BitFlip(places=[("w", element, 0) for element in range(4)]).draw(model, "int8").applied(model):
        assert model["w"].tolist() == [252.0, 252.0, 2.0, -8.0]
    assert model["w"][0] == 254.0
    assert model["w"][2].isnan()


class Quantized(nn.Module):
    """Weights as integers, as quantized inference keeps them, with a scale and what is not a number beside."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.arange(-128, 128).to(torch.int8).reshape(8, 32))
        self.register_buffer("zero_points", torch.zeros(8, dtype=torch.int64))
        self.register_buffer("mask", torch.ones(8, dtype=torch.bool))
        self.register_buffer("absent", None)
        self.register_buffer("empty", torch.empty(0))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stored", ["int8", "int8_per_channel"])
def test_the_words_of_an_int8_buffer_are_its_own(stored, transposed):
    model = Quantized()
    if transposed:
        model.weight = model.weight.t().contiguous().t()
    before = model.weight.clone()
    faults = BitFlip(rate=0.1).draw(model, stored, targets=["buffers"])
    assert set(faults.shapes) == {"weight"}
    expected = before.numpy().view(np.uint8).ravel().copy()
    for _, element, bit in faults.rows:
        expected[element] ^= 1 << bit
    with faults.applied(model):
        np.testing.assert_array_equal(model.weight.numpy().ravel(), expected.view(np.int8))
    assert torch.equal(model.weight, before)


def test_every_bit_of_an_int8_buffer_can_be_stuck():
    model = Quantized()
    with StuckAt(rate=1, value=1, bits="sign").draw(model, "int8", targets="buffers").applied(model):
        np.testing.assert_array_equal(model.weight.numpy().ravel(), [*range(-128, 0), *range(-128, 0)])
    with StuckAt(rate=1, value=0, bits="integer").draw(model, "int8", targets="buffers").applied(model):
        assert set(model.weight.flatten().tolist()) == {0, -128}
    assert torch.equal(model.weight, Quantized().weight)
