"""Faults in activations: where they hit, what they leave alone, and that compiled code does the same."""

import copy
import struct

import numpy as np
import pytest
import torch
from fault_oracles import ORACLES, flipped
from small_models import module
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError, SiteError
from fitact_fx.faults import BitFlip, Burst, FaultList, RandomWord, StuckAt, Zero
from fitact_fx.injected import Injected

pytestmark = pytest.mark.usefixtures("no_gradients")
HIGH = BitFlip(rate=0.02)


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 5), nn.Tanh()]
    return nn.Sequential(*layers).eval()


def images(count=8, seed=1):
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def hardened():
    hard = fitact_fx.harden(network())
    fitact_fx.calibrate(hard, [images()])
    return hard


def bits_of(values):
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def same_bits(one, other):
    return one.dtype == other.dtype and torch.equal(bits_of(one), bits_of(other))


def activations(faulty):
    """The faults of a trial as they are loaded at first."""
    return HIGH.draw(faulty, "float32", targets=["activations"])


class Reader(nn.Module):
    """Gives what it gets; the graph keeps it as a value of its own."""

    def forward(self, values):
        return values


@pytest.mark.parametrize("stored", ["float32", "q15.16"])
def test_hit_elements_hold_the_faulty_word_and_all_others_their_exact_value(stored):
    x = images()
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format=stored, seed=3, trial=7, example_inputs=x)
    hits = {}
    for name, element, bit in HIGH.draw(faulty, stored, seed=3, trial=7, targets=["activations"]).rows:
        assert name == "values@after"
        hits.setdefault(element, []).append(bit)
    assert any(len(bits) > 1 for bits in hits.values())  # several in one element combine
    for element, (before, after) in enumerate(zip(x.flatten().tolist(), faulty(x).flatten().tolist(), strict=True)):
        expected = flipped(ORACLES[stored](None), before, hits[element]) if element in hits else before
        assert struct.pack("<f", after) == struct.pack("<f", expected)


def test_other_effects_reach_activations_too():
    x = images()

    def hit(fault):
        faulty = fitact_fx.inject(Reader(), "values", fault, format="float32", example_inputs=x)
        rows = fault.draw(faulty, "float32", targets=["activations"]).rows
        return rows, x.flatten().view(torch.int32).tolist(), faulty(x).flatten().view(torch.int32).tolist()

    for fault, expected in [
        (Zero(count=9), lambda word, value: 0),
        (RandomWord(count=9), lambda word, value: value),
        (StuckAt(value=1, count=9), lambda word, value: word | 1 << value),
        (StuckAt(value=0, count=9), lambda word, value: word & ~(1 << value)),
    ]:
        rows, before, after = hit(fault)
        assert len({row[1] for row in rows}) == 9
        for _, element, value in rows:
            assert after[element] % 2**32 == expected(before[element], value) % 2**32
            before[element] = after[element]
        assert before == after


@pytest.mark.parametrize("stored", ["float32", "q15.16", "float16", "bfloat16", "float8_e4m3", "int8"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_with_no_faults_the_output_is_bitwise_the_clean_one(stored, where):
    hard, x = hardened(), images()
    for model in (network(), hard):
        faulty = fitact_fx.inject(
            model, ["*", "input", "0", "1", "3", "4"], BitFlip(rate=0), where, format=stored, example_inputs=x
        )
        assert same_bits(faulty(x), model(x))
        assert same_bits(faulty(x[:3]), model(x[:3]))


def test_neither_model_nor_input_nor_random_state_is_changed():
    model, x = network().train(), images()
    before, given, state = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
    faulty = fitact_fx.inject(model, ["*", "input"], HIGH, format="float32", example_inputs=x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    faulty.eval()(x)
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert faulty.state_dict().keys() == model.state_dict().keys()


def test_an_input_that_the_model_overwrites_itself_is_hit_in_a_copy():
    model, x = nn.Sequential(nn.ReLU(inplace=True)), images()
    given = x.clone()
    late = BitFlip(places=[("input@after", (7, 0, 0, 0), 31)])
    for fault in (BitFlip(rate=0.01), BitFlip(rate=0), late):
        faulty = fitact_fx.inject(model, "input", fault, format="float32", example_inputs=x)
        for batch in (x, x[:2]):  # the smaller one is not hit by the late fault
            faulty(batch)
            assert torch.equal(x, given)


def test_without_example_inputs_the_first_call_draws_the_same_faults():
    x = images()
    ahead = fitact_fx.inject(network(), "*", HIGH, format="float32", example_inputs=(x,))
    later = fitact_fx.inject(network(), "*", HIGH, format="float32")
    expected = ahead(x)
    assert same_bits(later(x), expected)
    assert same_bits(later(x), expected)
    assert not same_bits(expected, network()(x))
    assert activations(ahead) == activations(later)


def test_a_first_call_that_fails_draws_nothing_and_the_next_one_does():
    faulty = fitact_fx.inject(network(), "2", HIGH, format="float32")
    with pytest.raises(
        FaultError, match=r"the model raised RuntimeError on its example inputs: .*\n  give inputs that"
    ):
        faulty(torch.randn(2, 5, 6, 6))
    assert not same_bits(faulty(images()), network()(images()))


def test_two_injections_without_example_inputs_are_both_drawn_at_the_first_call():
    x = images()
    twice = fitact_fx.inject(fitact_fx.inject(network(), "2", HIGH, "before", format="float32"), "0", HIGH)
    twice(x)
    shapes = {node.name: node.shape for node in twice.modules() if isinstance(node, Injected)}
    assert shapes == {"0@after": (8, 4, 4, 4), "2@before": (8, 4, 4, 4)}


def test_the_first_call_may_use_keywords():
    faulty = fitact_fx.inject(Reader(), "values", Zero(count=1))
    assert (faulty(values=images()) == 0).sum() == 1


def test_a_count_is_drawn_over_all_nodes_together():
    x = images()
    for trial in range(10):
        faulty = fitact_fx.inject(network(), ["*", "0", "4"], BitFlip(count=3), trial=trial, example_inputs=x)
        assert len(BitFlip(count=3).draw(faulty, trial=trial, targets=["activations"])) == 3
        loaded = [node.hits for node in faulty.modules() if isinstance(node, Injected)]
        assert (len(loaded), sum(loaded)) == (4, 3)


def test_two_nodes_draw_independently():
    faulty = fitact_fx.inject(network(), ["0", "1"], HIGH, format="float32", example_inputs=images())
    one, other = activations(faulty).tensors
    assert one.shape == other.shape
    places = [set(zip(each.elements.tolist(), each.values.tolist(), strict=True)) for each in (one, other)]
    expected = len(places[0]) * len(places[1]) / (32 * 8 * 64)
    assert len(places[0] & places[1]) < 3 * expected + 5


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_plain_and_the_hardened_model_get_the_same_faults(where):
    x = images()
    plain, hard = (
        fitact_fx.inject(model, "*", HIGH, where, format="float32", example_inputs=x)
        for model in (network(), hardened())
    )
    assert activations(plain) == activations(hard)
    assert [one.name for one in activations(plain).tensors] == [f"2@{where}", f"5@{where}"]


def test_a_bound_stops_what_is_injected_before_it_and_not_what_comes_after():
    hard, x = hardened(), images()
    upper = fitact_fx.bounds(hard)["2"][1].max()
    for where in ("before", "after"):
        fault = BitFlip(places=[(f"2@{where}", (0, 1, 1, 1), 30), (f"2@{where}", (3, 0, 2, 2), 30)])
        faulty = fitact_fx.inject(hard, "2", fault, where, format="float32", example_inputs=x)
        seen = []
        faulty.get_submodule("3").register_forward_hook(lambda _, args, __, seen=seen: seen.append(args[0]))
        faulty(x)
        assert (seen[0].max() > 10 * upper) == (where == "after")


def test_nodes_can_stand_on_both_sides_of_a_bound():
    hard, x = hardened(), images()
    both = fitact_fx.inject(hard, "2", HIGH, "before", format="float32", example_inputs=x)
    both = fitact_fx.inject(both, "2", HIGH, "after", format="float32", example_inputs=x)
    assert [one.name for one in activations(both).tensors] == ["2@before", "2@after"]
    order = [str(node.target) for node in both.graph.nodes if str(node.target).startswith("2")]
    assert order == ["2", "2_fault_before", "2_bound", "2_fault_after"]
    assert [site.name for site in fitact_fx.find_sites(both)] == []


def test_permanent_faults_hit_the_same_element_of_every_sample():
    x = images()
    fault = BitFlip(places=[("values@after:permanent", (0, 2, 5, 1), 31)])
    faulty = fitact_fx.inject(Reader(), "values", fault, format="float32", example_inputs=x, permanent=True)
    for batch in (x, x[:3], torch.cat([x, x])):
        expected = batch.clone()
        expected[:, 2, 5, 1] *= -1
        assert torch.equal(faulty(batch), expected)


def test_a_list_of_permanent_faults_does_not_fit_a_node_for_transient_ones():
    x, fault = images(), BitFlip(count=1)
    lasting, passing = (
        fitact_fx.inject(Reader(), "values", fault, example_inputs=x, permanent=permanent)
        for permanent in (True, False)
    )
    for one, other in ((lasting, passing), (passing, lasting)):
        with pytest.raises(FaultError, match="the model has no tensor 'values@after"):
            fault.draw(one, targets=["activations"]).applied(other).__enter__()


def test_a_smaller_batch_gets_the_faults_of_its_samples():
    x = images()
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x)
    whole = faulty(x)
    for count in (1, 5, 8):
        assert same_bits(faulty(x[:count]), whole[:count])


def test_a_list_for_many_inferences_goes_in_batch_by_batch():
    x = images(24)
    one = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x)
    small = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x[:10], capacity=999)
    faults = HIGH.draw(small, "float32", targets=["activations"], inferences=24)
    assert faults == activations(one)
    pieces = []
    for start in range(0, 24, 10):
        stop = min(24, start + 10)
        with faults.inferences(start, stop).applied(small):
            pieces.append(small(x[start:stop]))
    assert same_bits(torch.cat(pieces), one(x))


def test_loaded_faults_come_back_behind_a_block():
    x = images()
    faulty = fitact_fx.inject(network(), "*", HIGH, format="float32", example_inputs=x)
    first = faulty(x)
    with HIGH.draw(faulty, "float32", trial=1, targets=["activations"]).applied(faulty):
        assert not same_bits(faulty(x), first)
    assert same_bits(faulty(x), first)


def test_memory_and_activations_are_hit_together():
    x = images()
    faulty = fitact_fx.inject(network(), "*", BitFlip(rate=0), format="float32", example_inputs=x, capacity=999)
    targets = ["parameters:0.*", "activations"]
    faults = BitFlip(rate=0.01, bits="mantissa").draw(faulty, "float32", targets=targets)
    assert {one.name for one in faults.hits} >= {"0.weight", "2@after"}
    clean = faulty(x)
    with faults.applied(faulty):
        assert not same_bits(faulty(x), clean)
    assert same_bits(faulty(x), clean)


def test_a_saved_list_is_replayed_on_another_copy(tmp_path):
    x = images()
    faulty = fitact_fx.inject(network(), "*", HIGH, format="float32", trial=9, example_inputs=x)
    HIGH.draw(faulty, "float32", trial=9, targets=["activations"]).save(tmp_path / "trial")
    other = fitact_fx.inject(network(), "*", BitFlip(rate=0), format="float32", example_inputs=x, capacity=500)
    with FaultList.load(tmp_path / "trial").applied(other):
        assert same_bits(other(x), faulty(x))


def test_gradients_flow_around_hit_elements():
    x = images()
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x)
    with torch.enable_grad():
        x.requires_grad_()
        output = faulty(x)
        output.nan_to_num().sum().backward()
    hit = bits_of(output.detach()) != bits_of(x.detach())
    assert hit.any()
    assert torch.equal(x.grad, (~hit).float())


@pytest.mark.parametrize("layout", [torch.channels_last, "transposed", "strided", "expanded"])
def test_the_memory_layout_of_an_activation_makes_no_difference(layout):
    x = images()
    laid = {
        "transposed": lambda: x.transpose(0, 3).contiguous().transpose(0, 3),
        "strided": lambda: torch.zeros(16, 3, 6, 12)[::2, :, :, 1::2].copy_(x),
        "expanded": lambda: x[:1].expand(8, 3, 6, 6),
    }.get(layout, lambda: x.contiguous(memory_format=layout))()
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format="float32", example_inputs=x)
    assert same_bits(faulty(laid), faulty(laid.contiguous()))
    if layout == torch.channels_last:
        assert faulty(laid).is_contiguous(memory_format=layout)


def test_samples_are_quantised_one_by_one_so_that_a_batch_is_its_samples():
    x = images() * torch.arange(1, 9).view(8, 1, 1, 1)
    faulty = fitact_fx.inject(Reader(), "values", HIGH, format="int8", example_inputs=x)
    whole = faulty(x)
    assert same_bits(faulty(x[:4]), whole[:4])
    rows = HIGH.draw(faulty, "int8", targets=["activations"]).rows
    hits = {}
    for _, element, bit in rows:
        hits[element] = hits.get(element, 0) ^ (1 << bit)
    for element, mask in hits.items():
        sample = element // 108
        scale = np.float64(x[sample].abs().max()) / 127
        word = np.int8(np.rint(np.float64(x.flatten()[element]) / scale)).view(np.uint8) ^ np.uint8(mask)
        assert whole.flatten()[element].item() == np.float32(np.float64(word.view(np.int8)) * scale)


def test_calibration_sees_clean_values():
    x, hard = images(), fitact_fx.harden(network())
    fitact_fx.calibrate(hard, [x])
    faulty = fitact_fx.inject(fitact_fx.harden(network()), "*", HIGH, "before", format="float32", example_inputs=x)
    fitact_fx.calibrate(faulty, [x])
    for (_, upper), (_, expected) in zip(
        fitact_fx.bounds(faulty).values(), fitact_fx.bounds(hard).values(), strict=True
    ):
        assert torch.equal(upper, expected)


def test_an_interrupt_while_loading_leaves_what_was_loaded_before():
    x = images()
    faulty = fitact_fx.inject(network(), "2", BitFlip(count=2), format="float32", example_inputs=x, capacity=99)
    node = next(node for node in faulty.modules() if isinstance(node, Injected))
    before = (node.rows.clone(), node.hits)

    interrupts = [KeyboardInterrupt]

    class Interrupting(Injected):
        def __setattr__(self, name, value):
            if name == "hits" and value == self.hits and interrupts:  # the last line of `load`
                raise interrupts.pop()
            super().__setattr__(name, value)

    node.__class__ = Interrupting
    with (
        pytest.raises(KeyboardInterrupt),
        BitFlip(count=30).draw(faulty, "float32", targets=["activations"]).applied(faulty),
    ):
        pytest.fail("the block must not run")
    assert torch.equal(node.rows, before[0])
    assert node.hits == before[1]


def test_inference_mode_makes_no_difference():
    x = images()
    with torch.inference_mode():
        faulty = fitact_fx.inject(network(), "*", HIGH, format="float32", example_inputs=x)
    with HIGH.draw(faulty, "float32", trial=1, targets=["activations"]).applied(faulty):
        outside = faulty(x)
        with torch.inference_mode():
            assert same_bits(faulty(x).clone(), outside)


# What a value is called.


def test_a_glob_means_activations_first_and_other_values_only_where_there_are_none():
    def names(at):
        faulty = fitact_fx.inject(network(), at, BitFlip(rate=0), example_inputs=images())
        return [node.name for node in faulty.modules() if isinstance(node, Injected)]

    assert names("*") == ["2@after", "5@after"]
    assert sorted(names(["4", "input", "2"])) == ["2@after", "4@after", "input@after"]


def test_functions_methods_and_operators_are_called_by_where_they_are_called():
    def forward(self, x):
        left, right = self.fc(x), torch.sin(x)
        total = left + right
        return (total + total.mean()).relu() * x.size(0)

    model, x = module(forward, fc=nn.Linear(4, 4)), torch.randn(3, 4)
    for at, expected in [
        ("fc", 1),
        ("sin", 1),
        ("add", 1),
        ("add*", 2),
        ("mean", 1),
        ("relu", 1),
        ("mul", 1),
        ("x", 1),
    ]:
        if at == "mean":
            continue  # a number without dimensions: refused below
        faulty = fitact_fx.inject(model, at, BitFlip(rate=0), example_inputs=x)
        assert sum(isinstance(each, Injected) for each in faulty.modules()) == expected
        assert same_bits(faulty(x), model(x))


def test_a_second_call_of_one_module_is_hit_on_its_own():
    def forward(self, x):
        return self.act(self.act(x) - 1)

    model, x = module(forward, act=nn.ReLU()), torch.randn(3, 4)
    faulty = fitact_fx.inject(model, "act_1", StuckAt(value=1, rate=1, bits="sign"), format="float32", example_inputs=x)
    assert torch.equal(faulty(x), -model(x))


def test_a_value_that_is_overwritten_in_place_later_is_hit_for_every_reader():
    def forward(self, x):
        y = self.conv(x)
        y += 1
        return y.relu_() + y

    model, x = module(forward, conv=nn.Conv2d(3, 4, 3)), images()
    for at in ("conv", "add", "relu"):
        clean = fitact_fx.inject(model, at, BitFlip(rate=0), format="float32", example_inputs=x)
        assert same_bits(clean(x), model(x))
        flipped = fitact_fx.inject(
            model, at, BitFlip(places=[(f"{at}@after", 5, 31)]), format="float32", example_inputs=x
        )
        assert (flipped(x) != model(x)).sum() <= 1


def test_a_view_whose_memory_is_written_to_elsewhere_is_refused_by_name():
    def forward(self, x):
        y = x.sin()
        left = y[:, :2]
        y.mul_(2)
        return left + y[:, 2:]

    with pytest.raises(SiteError) as error:
        fitact_fx.inject(module(forward), "getitem", BitFlip(rate=0))
    assert str(error.value).startswith("site getitem@after (test_injection.py:")
    assert "it shares memory with another value, and test_injection.py:" in str(error.value)
    assert "y.mul_(2) overwrites that later" in str(error.value)


# Compiled.


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


# What is refused.


def test_more_faults_than_there_is_room_for_are_refused_and_nothing_is_loaded():
    x = images()
    faulty = fitact_fx.inject(network(), "*", BitFlip(count=2), format="float32", example_inputs=x)
    before = faulty(x)
    with pytest.raises(FaultError) as error, activations(faulty).applied(faulty):
        pytest.fail("the block must not run")
    assert str(error.value).startswith("activation '2@after' has room for 2 hit elements and the fault list has ")
    assert "inject with capacity=" in str(error.value)
    assert same_bits(faulty(x), before)
    with BitFlip(count=2).draw(faulty, "float32", trial=1, targets=["activations"]).applied(faulty):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": "layer9.*"}, FaultError, "the pattern 'layer9.*' matches no value of the model; there are 2, 5, ..."),
        ({"at": "inputs"}, FaultError, "the pattern 'inputs' matches no value of the model (close: input)"),
        ({"where": "behind"}, FaultError, "where is 'behind';\n  give one of after, before"),
        ({"format": "float31"}, FaultError, "unknown format 'float31'; choose one of "),
        ({"format": "int8_per_channel"}, FaultError, "activations are quantised per tensor"),
        ({"fault": BitFlip(count=10**9)}, FaultError, "a count of 1000000000 is more than the "),
        ({"fault": BitFlip(places=[("7@after", 0, 0)])}, FaultError, "the model has no tensor '7@after'"),
        (
            {"fault": BitFlip},
            FaultError,
            "fault is <class 'fitact_fx.faults.",
        ),
        ({"at": []}, FaultError, "`at` names no place to inject;\n  give globs"),
        ({"capacity": 0}, FaultError, "capacity is a whole number from 1 up; got 0"),
        ({"format": 5}, FaultError, "5 is no format;\n  give its name, such as 'q15.16'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    call = {"at": "*", "fault": HIGH, "example_inputs": images()} | options
    with pytest.raises(error) as raised:
        fitact_fx.inject(network(), **call)
    assert str(raised.value).startswith(message)


def test_a_type_that_cannot_hold_the_format_is_refused_by_name():
    def forward(self, indices):
        return self.embed(indices)

    model = module(forward, embed=nn.Embedding(10, 4))
    with pytest.raises(SiteError) as error:
        fitact_fx.inject(model, "indices", HIGH, example_inputs=torch.zeros(2, 3, dtype=torch.int64))
    assert "its value is int64, which cannot hold q15.16 numbers" in str(error.value)
    assert fitact_fx.inject(model, "embed", HIGH, example_inputs=torch.zeros(2, 3, dtype=torch.int64)) is not None


def test_a_value_without_dimensions_is_refused_by_name():
    def forward(self, x):
        return x + x.mean()

    with pytest.raises(SiteError, match=r"its value has no dimensions;\n  inject at a value with at least a batch"):
        fitact_fx.inject(module(forward), "mean", HIGH, example_inputs=images())


def test_a_tuple_is_refused_by_name():
    def forward(self, x):
        return torch.frexp(x)[0] + x.chunk(2)[0].sum()

    with pytest.raises(SiteError, match=r"its value is a frexp and not a tensor;\n  inject where one of its parts"):
        fitact_fx.inject(module(forward), "frexp", HIGH, example_inputs=images())
    with pytest.raises(FaultError, match="the pattern 'chunk' matches no value"):
        fitact_fx.inject(module(forward), "chunk", HIGH, example_inputs=images())


def test_another_input_size_is_refused_by_name():
    faulty = fitact_fx.inject(Reader(), "values", HIGH, example_inputs=images(4))
    for x in (images(5), images(4)[..., :5]):
        with pytest.raises(SiteError) as error:
            faulty(x)
        expected = f"its faults are for activations of shape (4, 3, 6, 6) and it now gets {tuple(x.shape)};\n"
        assert expected in str(error.value)


def test_a_node_that_is_there_already_is_refused():
    once = fitact_fx.inject(network(), "2", HIGH)
    with pytest.raises(SiteError, match=r"it has an injection node;\n  inject there once"):
        fitact_fx.inject(once, "*", HIGH)


def test_a_list_in_another_format_is_refused():
    faulty = fitact_fx.inject(network(), "*", HIGH, format="float32", example_inputs=images())
    with pytest.raises(FaultError, match=r"^tensor '2@after' gets faults in float32 and not in q15\.16; draw with "):
        HIGH.draw(faulty, "q15.16", targets=["activations"])


def test_activations_are_no_target_before_their_shapes_are_known():
    faulty = fitact_fx.inject(network(), "*", HIGH)
    with pytest.raises(FaultError, match=r"^the model has no activations;\n  give fitact_fx\.inject example_inputs"):
        HIGH.draw(faulty, targets=["activations"])


def test_compiling_before_the_shapes_are_known_says_what_to_do():
    reset()
    faulty = fitact_fx.inject(network(), "*", HIGH)
    with pytest.raises(Exception, match=r"give fitact_fx\.inject example_inputs, or run what it returned once"):
        torch.compile(faulty, fullgraph=True, backend="eager")(images())


def test_inferences_are_for_transient_faults_in_activations():
    faulty = fitact_fx.inject(network(), "2", HIGH, format="float32", example_inputs=images())
    with pytest.raises(FaultError, match="is no activation: its faults stay for every inference"):
        HIGH.draw(faulty, "float32", inferences=5)
    with pytest.raises(FaultError, match=r"^inferences 6 to 9 lie outside the 8 of '2@after'$"):
        activations(faulty).inferences(6, 9)
    lasting = fitact_fx.inject(network(), "2", HIGH, format="float32", example_inputs=images(), permanent=True)
    with pytest.raises(FaultError, match="its faults are permanent: the same for every inference"):
        HIGH.draw(lasting, "float32", targets=["activations"], inferences=5)
