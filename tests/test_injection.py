"""Faults in activations: where they hit, and what they leave alone."""

import copy
import struct

import numpy as np
import pytest
import torch
from fault_oracles import ORACLES, flipped
from injections import HIGH, Reader, activations, bits_of, hardened, images, network, same_bits
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, FaultList, RandomWord, StuckAt, Zero
from fitact_fx.injected import Injected

pytestmark = pytest.mark.usefixtures("no_gradients")


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
