"""Injection nodes in compiled code hit the same bits, and a new trial compiles nothing."""

import copy

import pytest
import torch
from injections import HIGH, Reader, hardened, images, network, same_bits
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Burst

pytestmark = pytest.mark.usefixtures("no_gradients")


def reset():
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("stored", "backend"),
    [
        *((name, "aot_eager") for name in ("float32", "q15.16", "float16", "bfloat16", "float8_e4m3", "float8_e5m2")),
        *((name, "inductor") for name in ("float32", "q15.16", "float8_e4m3", "int8")),
    ],
)
def test_compiled_and_eager_give_the_same_faulty_bits_and_new_trials_compile_nothing(stored, backend):
    reset()
    x = images()
    special = torch.tensor([0x7FA00001, -0x003FFFFF, -(2**31), 1, 0x7F800000, 0x7F7FFFFF], dtype=torch.int32)
    x.view(torch.int32).flatten()[: len(special)] = special
    fault = Burst(width=2, rate=0.02) if stored == "q15.16" else HIGH
    faulty = fitact_fx.inject(Reader(), "values", fault, format=stored, example_inputs=x)
    compiled = torch.compile(faulty, fullgraph=True, backend=backend)
    assert same_bits(compiled(x), faulty(x))
    with torch.compiler.set_stance("fail_on_recompile"):
        for trial in range(1, 4):
            with fault.draw(faulty, stored, trial=trial, targets=["activations"]).applied(compiled):
                expected = faulty(x)
                assert not same_bits(expected, x)
                assert same_bits(compiled(x), expected)


class Exact(nn.Module):
    """Every operation is exact, so eager and compiled code give a node the same bits; and all of them can be fused."""

    def forward(self, x):
        y = torch.relu(-x)
        y = nn.functional.max_pool2d(y * 2, 2) - y[:, :, ::2, ::2]
        return torch.maximum(y.transpose(1, 3), y.new_zeros(1)).abs() / 4


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float32, "float32"),
        (torch.float32, "q15.16"),
        (torch.float32, "int8"),
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        (torch.float16, "float8_e5m2"),
        (torch.float64, "q7.8"),
    ],
)
def test_nodes_between_fused_operations_hit_the_same_bits_as_eagerly(dtype, stored):
    reset()
    x = (images() * 16).round().to(dtype) / 16
    fault = BitFlip(rate=0.01, bits=range(5))  # no NaN, of which fused code may make another one
    at = ["x", "relu", "mul", "max_pool2d", "sub", "maximum", "abs", "truediv"]
    faulty = fitact_fx.inject(Exact(), at, fault, format=stored, example_inputs=x)
    assert len(fault.draw(faulty, stored, targets=["activations"]).hits) == len(at)
    compiled = torch.compile(faulty, fullgraph=True)
    assert same_bits(compiled(x), faulty(x))
    with torch.compiler.set_stance("fail_on_recompile"):
        for trial in range(1, 4):
            with fault.draw(faulty, stored, trial=trial, targets=["activations"]).applied(compiled):
                assert not same_bits(faulty(x), Exact()(x))
                assert same_bits(compiled(x), faulty(x))


def test_a_whole_network_compiles_as_one_graph_and_new_trials_compile_nothing():
    reset()
    x = images()
    faulty = fitact_fx.inject(hardened(), ["*", "input"], HIGH, format="float32", example_inputs=x)
    compiled = torch.compile(faulty, fullgraph=True)
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for trial in range(3):
            with HIGH.draw(faulty, "float32", trial=trial, targets=["activations"]).applied(faulty):
                assert torch.allclose(compiled(x), faulty(x), rtol=1e-4, atol=1e-5)


def test_a_lowered_hardened_model_keeps_its_injection_nodes():
    reset()
    x = images()
    faulty = fitact_fx.inject(hardened(), "*", HIGH, "before", format="float32", example_inputs=x)
    fast = fitact_fx.lower(faulty, x)
    assert torch.allclose(fast(x), faulty(x), rtol=1e-4, atol=1e-5)
    with HIGH.draw(faulty, "float32", trial=5, targets=["activations"]).applied(faulty):
        expected = faulty(x)
    with HIGH.draw(fast, "float32", trial=5, targets=["activations"]).applied(fast):
        assert torch.allclose(fast(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("permanent", [False, True])
def test_compiled_code_takes_smaller_and_empty_batches_and_permanent_faults(permanent):
    reset()
    x = images()
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x, permanent=permanent)
    compiled = torch.compile(faulty, fullgraph=True, backend="aot_eager")
    for count in (8, 5, 1, 0):
        assert same_bits(compiled(x[:count]), faulty(x[:count]))


def test_a_rate_over_a_lowered_model_is_refused_where_it_would_leave_the_bounds_out():
    reset()
    hard = hardened()
    fast = fitact_fx.lower(hard, images(), backend="eager")
    with pytest.raises(FaultError) as error:
        BitFlip(rate=1e-3).draw(fast)
    assert str(error.value) == (
        "the bounds of a lowered model are constants in its code, so a rate would leave them out;\n"
        '  draw on the hardened model, or give targets=["parameters"]'
    )
    ours, theirs = (BitFlip(rate=1e-3).draw(each, targets=["parameters"]) for each in (fast, hard))
    assert ours == theirs == BitFlip(rate=1e-3).draw(network())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares with what a GPU computes")
@pytest.mark.parametrize("stored", ["float32", "q15.16", "float8_e4m3", "int8"])
def test_the_same_list_gives_the_same_words_on_a_gpu(stored):
    x, model = images(), network()
    there = copy.deepcopy(model).cuda()
    faults = HIGH.draw(model, stored)
    with faults.applied(model), faults.applied(there):
        for ours, theirs in zip(model.parameters(), there.parameters(), strict=True):
            assert same_bits(ours, theirs.cpu())
    ours, theirs = (
        fitact_fx.inject(Reader(), "values", HIGH, format=stored, example_inputs=each) for each in (x, x.cuda())
    )
    assert same_bits(ours(x), theirs(x.cuda()).cpu())
