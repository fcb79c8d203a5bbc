"""The check of one parameter: where it passes the parameter itself, and what it gives where something is outside."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.fx.experimental.proxy_tensor import make_fx

import fitact_fx
from fitact_fx.parameter_limits import Limits

MODES = (torch.no_grad, torch.enable_grad, torch.inference_mode)


def parameter(*shape, dtype=torch.float32):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype))


def faulty(weight, wrong=math.nan):
    """The same Parameter with one wrong element, and what NumPy says should be in its place."""
    expected = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] = wrong
    expected.view(-1)[0] = 0
    return expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dim"), [((4, 3, 2), 0), ((4, 3, 2), 1), ((2, 3), None), ((7,), None), ((), None)])
def test_a_clean_parameter_is_passed_on_itself_and_no_copy_of_it(mode, dtype, shape, dim):
    weight = parameter(*shape, dtype=dtype)
    limits = Limits.of("w", weight, dim)
    limits.copy0.fill_(math.nan)  # one copy of the limits says nothing
    with mode():
        assert limits(weight) is weight
        limits.copy0.copy_(limits.copy1)
        assert limits(weight) is weight


@pytest.mark.parametrize("shape", [(7,), ()])
def test_a_range_for_each_element_of_a_vector_is_refused(shape):
    with pytest.raises(ValueError, match="parameter w has fewer than two dimensions, and so one range"):
        Limits.of("w", parameter(*shape), 0)


def test_an_empty_parameter_is_passed_on():
    weight = parameter(0, 3)
    assert Limits.of("w", weight, 0)(weight) is weight


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_that_changed_within_its_limits_is_passed_on_too(mode):
    weight = parameter(4, 3)
    limits = Limits.of("w", weight, 0)
    with torch.no_grad():
        weight.copy_(limits.low_and_high()[0])
    with mode():
        assert limits(weight) is weight


@pytest.mark.parametrize("both", [(math.nan, math.nan), (3.0, -3.0), (math.inf, math.inf)])
def test_limits_of_which_two_copies_are_wrong_pass_nothing_that_is_no_number(both):
    weight = parameter(4, 3)
    limits = Limits.of("w", weight, 0)
    for stored in (limits.copy0, limits.copy1):
        stored[0], stored[1] = both
    with torch.no_grad():
        weight[0, 0], weight[1, 1] = math.nan, -math.inf
        assert limits(weight).isfinite().all()


@pytest.mark.parametrize(
    "weight",
    [
        lambda: torch.randn(3, 4).t(),
        lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        lambda: torch.randn(4, 6).contiguous(),
    ],
)
def test_a_faulty_parameter_keeps_its_layout(weight):
    torch.manual_seed(0)
    own = nn.Parameter(weight())
    limits = Limits.of("w", own, 0)
    with torch.no_grad():
        own[0, 0] = math.nan
        found = limits(own)
    assert found is not own
    assert found.stride() == own.stride()
    assert np.array_equal(found.detach().numpy(), np.nan_to_num(own.detach().numpy()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("needed", [True, False])
def test_what_takes_the_place_of_a_faulty_parameter_requires_gradients_as_that_does(mode, needed):
    weight = parameter(4, 3).requires_grad_(needed)
    limits = Limits.of("w", weight, 0)
    expected = faulty(weight)
    with mode():
        found = limits(weight)
    assert torch.equal(found, expected)
    assert found.requires_grad == needed


@pytest.mark.parametrize("sparse", [False, True])
def test_gradients_reach_a_faulty_embedding_where_it_is_inside(sparse):
    weight = parameter(5, 3)
    limits = Limits.of("w", weight, 0)
    faulty(weight)
    nn.functional.embedding(torch.tensor([0, 0, 2]), limits(weight), sparse=sparse).sum().backward()
    found = weight.grad.to_dense() if sparse else weight.grad
    assert found.tolist() == [[0, 2, 2], [0, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert weight.grad.is_sparse == sparse


def test_a_faulty_parameter_takes_no_memory_that_stays_under_autocast():
    """Autocast keeps a cast copy of every leaf that requires gradients; here it would be asked for one at each run."""
    weight, x = parameter(4, 4), torch.ones(2, 4)
    limits = Limits.of("w", weight, 0)
    faulty(weight)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = limits(weight)
        assert not found.requires_grad
        assert (x @ found).dtype == torch.bfloat16


class Product(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight, self.limits = weight, Limits.of("weight", weight, 0)

    def forward(self, x):
        return x @ self.limits(self.weight).t()


def exported(run, x):
    return torch.export.export(run, (x,)).module()


def compiled(run, x):
    torch._dynamo.reset()
    return torch.compile(run, backend="eager", fullgraph=True)


@pytest.mark.parametrize("made", [exported, compiled, lambda run, x: make_fx(run)(x)])
def test_what_was_made_of_a_clean_model_still_checks_a_faulty_one(made):
    weight, x = parameter(4, 3), torch.ones(2, 3)
    run = Product(weight)
    with torch.no_grad():
        other = made(run, x)
        held = next((each for each in other.parameters() if each.shape == weight.shape), None)
        assert torch.equal(other(x), x @ weight.t())
        expected = faulty(weight)
        if held is not None and held is not weight:
            held.copy_(weight)
        assert torch.equal(other(x), x @ expected.t())


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
def test_a_recording_that_cannot_hold_the_check_is_not_made_without_it():
    with pytest.raises(RuntimeError, match="aten::view"):  # torch.jit knows no bits of numbers
        torch.jit.trace(Product(parameter(4, 3)), (torch.ones(2, 3),))


def test_transforms_check_what_they_are_given():
    weight, x = parameter(4, 3), torch.ones(2, 3)
    run = Product(weight)
    expected = faulty(copied := copy.deepcopy(weight))

    def product(given, x):
        return torch.func.functional_call(run, {"weight": given}, (x,))

    both = torch.stack((weight.detach(), copied.detach()))
    found = torch.vmap(product, in_dims=(0, None))(both, x)
    assert torch.equal(found, torch.stack((x @ weight.t(), x @ expected.t())))
    gradient = torch.func.grad(lambda given: product(given, x).sum())(copied.detach())
    assert gradient.tolist() == [[0, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    with torch.no_grad():
        weight.copy_(copied)
    assert torch.equal(torch.vmap(run)(x), x @ expected.t())
    assert torch.equal(torch.func.grad(lambda x: run(x).sum())(x), expected.sum(0).expand(2, 3))


def test_fake_tensors_pass_and_are_asked_nothing():
    """One has a type, a shape and a layout and no contents: to ask for those raises, and so would `hold` here."""
    with FakeTensorMode() as mode:
        weight = nn.Parameter(torch.ones(3, 4, dtype=torch.float64).t())
        run = Product(weight)
        with pytest.raises(DataDependentOutputException):
            run.limits.hold(weight.detach())
        found = run.limits(weight)
        assert found.fake_mode is mode
        assert (found.dtype, found.shape, found.stride()) == (weight.dtype, weight.shape, weight.stride())
        assert found.requires_grad
        assert run(torch.ones(2, 3, dtype=torch.float64)).shape == (2, 4)


def test_infinity_is_outside_also_where_a_type_has_no_room_for_a_limit():
    model, x = nn.Sequential(nn.Linear(2, 2)).eval(), torch.ones(1, 2)
    with torch.no_grad():
        model[0].weight[0, 0] = 1e6
    guarded = fitact_fx.guard(model)
    half, loaded = copy.deepcopy(guarded).half(), fitact_fx.guard(nn.Sequential(nn.Linear(2, 2)).half().eval())
    loaded.load_state_dict(guarded.state_dict())
    for each in (half, loaded):
        assert each.get_parameter("0.weight")[0, 0].isinf()
        with torch.no_grad():
            assert each(x.half()).isfinite().all()
    assert guarded.half().limits.get_submodule("0.weight").voted()[1, 0] == torch.finfo(torch.float16).max
