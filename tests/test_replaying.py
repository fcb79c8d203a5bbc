"""A list replayed: the words against struct, the outputs against a loop, and a model that is as it was."""

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fitact_fx
from fitact_fx.errors import FaultError, FitactError
from fitact_fx.faults import BitFlip, Burst, FaultList, FaultModel, RandomWord, StuckAt, TensorFaults, find_format
from fitact_fx.faulty_outputs import Outputs, compared
from fitact_fx.replaying import Outcome, replay, with_nodes
from fitact_fx.reports.fault_lists import outcome_text

FLOAT64 = torch.float64


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def word_of(value: float) -> int:
    """A float32 as its bits."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def float_of(word: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", word))[0])


def same_float(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def flipped(word: int, bits: list[int]) -> int:
    for bit in bits:
        word ^= 1 << bit
    return word


def set_to_one(word: int, bits: list[int]) -> int:
    for bit in bits:
        word |= 1 << bit
    return word


def set_to_zero(word: int, bits: list[int]) -> int:
    for bit in bits:
        word &= ~(1 << bit)
    return word


def replaced(word: int, words: list[int]) -> int:
    return words[0]


def by_element(faults: FaultList) -> dict[tuple[str, int], list[int]]:
    hits: dict[tuple[str, int], list[int]] = {}
    for name, element, value in faults.rows:
        hits.setdefault((name, element), []).append(value)
    return hits


@pytest.mark.parametrize(
    ("fault", "oracle"),
    [
        (BitFlip(rate=0.05), flipped),
        (Burst(width=3, rate=0.02), flipped),
        (StuckAt(value=1, rate=0.05), set_to_one),
        (StuckAt(value=0, rate=0.05), set_to_zero),
        (RandomWord(rate=0.2), replaced),
    ],
    ids=lambda each: repr(each) if isinstance(each, FaultModel) else "",
)
def test_every_hit_word_is_what_struct_makes_of_it(fault: FaultModel, oracle: Any, model: nn.Module) -> None:
    faults = fault.draw(model, "float32", seed=4)
    clean = {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}
    words = list(replay(faults, model).words)
    hits = by_element(faults)
    assert [(word.tensor, word.element) for word in words] == list(hits)
    for word in words:
        before = clean[word.tensor][word.element]
        expected = oracle(word_of(before), hits[word.tensor, word.element])
        assert (word.word_before, word.word_after) == (word_of(before), expected)
        assert word.value_before == before
        assert same_float(word.value_after, float_of(expected))
        assert word.bits == (() if oracle is replaced else tuple(hits[word.tensor, word.element]))
        assert word.index == tuple(np.unravel_index(word.element, model.state_dict()[word.tensor].shape))


@pytest.mark.parametrize("stored", ["q15.16", "q3.4", "int8", "int8_per_channel", "float16", "bfloat16"])
def test_in_every_format_the_value_behind_is_that_of_the_word(stored: str, model: nn.Module) -> None:
    faults = BitFlip(rate=0.02).draw(model, stored)
    names = dict(model.named_parameters())
    for word in replay(faults, model).words:
        whole = names[word.tensor].detach().double().numpy()
        largest = np.abs(whole).max(axis=tuple(range(1, whole.ndim))) if whole.ndim > 1 else np.abs(whole).max()
        largest = largest[word.index[0]] if stored == "int8_per_channel" and whole.ndim > 1 else np.abs(whole).max()
        before, after = (number(stored, each, largest / 127) for each in (word.word_before, word.word_after))
        assert word.word_after == flipped(word.word_before, list(word.bits))
        assert same_float(word.value_after, float(np.float32(after)))
        assert abs(before - word.value_before) <= abs(word.value_before) / 100 + (
            1 / 32 if stored == "q3.4" else largest / 127 if stored.startswith("int8") else 2**-17
        )


def number(stored: str, word: int, scale: float) -> float:
    """What a word stands for, in a few lines of struct and integers."""
    if stored.startswith("q"):
        integer, fraction = map(int, stored[1:].split("."))
        sign = 1 << (integer + fraction)
        return ((word ^ sign) - sign) / 2**fraction
    if stored.startswith("int8"):
        return float(struct.unpack("<b", struct.pack("<B", word))[0]) * scale
    if stored == "float16":
        return float(struct.unpack("<e", struct.pack("<H", word))[0])
    return float_of(word << 16)


def test_the_outputs_are_those_of_the_faulty_model(model: nn.Module, images: Tensor) -> None:
    faults = BitFlip(count=3, bits="exponent").draw(model, "float32", seed=2)
    with torch.no_grad():
        clean = model(images)
        with faults.applied(model):
            faulty = model(images)
    found = replay(faults, model, (images,)).outputs
    assert found is not None
    finite = clean.isfinite() & faulty.isfinite()
    assert found.largest_difference == float((clean.double() - faulty.double())[finite].abs().max())
    assert found.samples == 3
    another = [a != b for a, b in zip(clean.argmax(1).tolist(), faulty.argmax(1).tolist(), strict=True)]
    noticed = [not all(map(math.isfinite, row)) for row in faulty.tolist()]
    assert found.another_argmax == sum(another)
    assert found.due == sum(noticed)
    assert found.sdc == sum(a and not n for a, n in zip(another, noticed, strict=True))


def test_words_in_activations_are_those_that_pass_the_node(model: nn.Module, images: Tensor) -> None:
    faulty = with_nodes(model, ["2"], "after", "float32", (images,))
    faults = BitFlip(count=6).draw(faulty, "float32", seed=5, targets=["activations"])
    seen = nn.Sequential(*list(model)[:3])(images).flatten().tolist()
    outcome = replay(faults, model, (images,))
    words = list(outcome.words)
    assert {word.tensor for word in words} == {"2@after"}
    assert sum(len(word.bits) for word in words) == 6
    for word in words:
        expected = flipped(word_of(seen[word.element]), list(word.bits))
        assert (word.word_before, word.word_after) == (word_of(seen[word.element]), expected)
        assert same_float(word.value_after, float_of(expected))
    assert outcome.unrestored == ()


def test_both_sides_of_a_bound_and_memory_are_hit_at_once(model: nn.Module, images: Tensor) -> None:
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, [images])
    nodes = with_nodes(with_nodes(hard, ["2"], "before", "q15.16", (images,)), ["2"], "after", "q15.16", (images,))
    places = [("2@before", (0, 1, 2, 3), 30), ("2@after", 5, 20), ("4.bias", 0, 29)]
    faults = BitFlip(places=places).draw(nodes)
    outcome = replay(faults, hard, (images,))
    found = {word.tensor: word for word in outcome.words}
    assert {name: word.bits for name, word in found.items()} == {"2@before": (30,), "2@after": (20,), "4.bias": (29,)}
    assert found["2@before"].index == (0, 1, 2, 3)
    assert abs(found["2@before"].value_after - found["2@before"].value_before) == pytest.approx(2**14, rel=1e-3)
    assert outcome.unrestored == ()


def test_a_replay_leaves_the_model_its_modes_and_the_random_state(model: nn.Module, images: Tensor) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    for targets in (None, ["activations"]):
        drawn_on = model if targets is None else with_nodes(model, ["*"], "after", "float32", (images,))
        replay(BitFlip(rate=0.01).draw(drawn_on, "float32", targets=targets), model, (images,))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.get_rng_state().equal(state)


class Writes(nn.Module):
    """A model that writes to its own parameter while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data[2] += 1
        return x * self.weight


def test_what_is_not_as_before_is_named() -> None:
    faults = BitFlip(places=[("weight", 0, 3)]).draw(model := Writes(), "float32")
    outcome = replay(faults, model, (torch.ones(2, 3),))
    assert outcome.unrestored == ("weight",)
    assert outcome.as_json()["memory"]["restored"] is False
    assert outcome_text(outcome, faults, "x", 5).endswith("NOT RESTORED: weight hold other bits than before.")


class Looks(nn.Module):
    """Looks up a row by a number that it keeps, as an embedding by a computed index does."""

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x[int(self.row)]


def test_a_model_that_fails_with_the_faults_was_noticed() -> None:
    faults = BitFlip(places=[("row", 0, 20)]).draw(model := Looks())
    outcome = replay(faults, model, (torch.ones(2, 3),))
    assert outcome.outputs is not None
    assert (outcome.outputs.due, outcome.outputs.sdc) == (1, 0)
    text = outcome_text(outcome, faults, "x", 5)
    assert "DUE: with the faults the run fails: IndexError: index 17 is out of bounds" in text
    assert outcome.unrestored == ()


def judged(clean: Any, faulty: Any, batch: int = 2) -> Outputs:
    return compared(clean, lambda: faulty, batch)


def test_nan_is_noticed_and_another_answer_is_not() -> None:
    clean = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    faulty = torch.tensor([[1.0, 2.5], [3.0, 2.0], [torch.nan, 2.0]])
    found = judged(clean, faulty, 3)
    assert (found.changed, found.another_argmax, found.sdc, found.due) == (3, 2, 1, 1)
    assert found.largest_difference == 2.0


def test_what_was_nan_before_is_no_new_one() -> None:
    found = judged(torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]), torch.tensor([[torch.nan, 1.0], [0.0, 1.0]]))
    assert (found.changed, found.sdc, found.due) == (0, 0, 0)


@pytest.mark.parametrize(
    ("clean", "faulty", "expected"),
    [
        (torch.zeros(2), torch.tensor([0.0, 1.0]), (2, 1, None, 1, 0, 1.0)),  # no class scores
        (torch.zeros(()), torch.tensor(torch.inf), (1, 1, None, 0, 1, None)),
        (torch.zeros(2, 3), torch.zeros(1, 3), (1, 1, None, 1, 0, None)),  # another number of answers
        (torch.zeros(2, 3), torch.full((1, 3), torch.nan), (1, 1, None, 0, 1, None)),
        (torch.zeros(2, dtype=torch.complex64), torch.ones(2, dtype=torch.complex64), (2, 2, None, 2, 0, 1.0)),
        (torch.zeros(2, 3) > 0, torch.ones(2, 3) > 0, (2, 2, None, 2, 0, 1.0)),
        ({"a": torch.zeros(2, 3), "b": torch.zeros(5)}, {"a": torch.eye(2, 3), "b": torch.zeros(5)}, None),
        (torch.tensor([[0.0, 1e308]], dtype=FLOAT64), torch.tensor([[0.0, -1e308]], dtype=FLOAT64), None),
    ],
)
def test_outputs_of_every_kind_are_compared(clean: Any, faulty: Any, expected: tuple[Any, ...] | None) -> None:
    found = judged(clean, faulty)
    numbers = (found.samples, found.changed, found.another_argmax, found.sdc, found.due, found.largest_difference)
    json.dumps(numbers, allow_nan=False)
    assert expected is None or numbers == expected


def test_outputs_that_cannot_be_looked_into_are_refused() -> None:
    with pytest.raises(FitactError, match="the model returns a object, in which no tensor is found;\n  wrap it"):
        judged(object(), object())


def test_a_word_that_becomes_nan_is_written_as_json(model: nn.Module) -> None:
    one = TensorFaults("4.bias", (5,), np.array([0, 1]), np.array([0x7FC00000, 0xFF800000]))
    outcome = replay(FaultList(find_format("float32"), (one,), RandomWord(count=0).effect), model)
    assert [row["value_after"] for row in outcome.as_json()["words"]["rows"]] == ["nan", "-inf"]
    assert json.loads(json.dumps(outcome.as_json(1), allow_nan=False))["words"]["hit"] == 2


def test_a_bit_stuck_at_what_it_was_is_hit_and_not_changed(model: nn.Module) -> None:
    outcome = replay(StuckAt(value=0, places=[("1.weight", 0, 0), ("1.weight", 1, 29)]).draw(model, "float32"), model)
    assert [(len(one), one.changed) for one in outcome.hits] == [(2, 1)]  # 1.0 has 29 set and 0 not


def test_a_batch_beyond_that_of_the_list_stays_clean(model: nn.Module, images: Tensor) -> None:
    nodes = with_nodes(model, ["2"], "after", "float32", (images[:1],))
    faults = BitFlip(places=[("2@after", 0, 30)]).draw(nodes, "float32")
    found = replay(faults, model, (images,)).outputs
    assert found is not None
    assert (found.samples, found.changed) == (3, 1)


class Noisy(nn.Linear):
    """A model that draws random numbers while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(self.out_features)


def test_a_model_that_draws_random_numbers_replays_the_same_whatever_was_drawn_before() -> None:
    torch.manual_seed(0)
    faults = BitFlip(count=0).draw(noisy := Noisy(3, 4))
    hashes = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = replay(faults, noisy, (torch.ones(2, 3),)).outputs
        assert found is not None
        hashes |= {found.clean_hash, str(found.faulty_hash)}
    assert len(hashes) == 1


def test_what_cannot_be_replayed_is_refused(model: nn.Module, images: Tensor) -> None:
    nodes = with_nodes(model, ["2"], "after", "float32", (images,))
    faults = BitFlip(count=1).draw(nodes, "float32", targets=["activations"])
    with pytest.raises(FaultError, match=r"'2@after' is an activation.*\n  give inputs \(--input\) of 3 samples"):
        replay(faults, model)
    with pytest.raises(FaultError, match="the fault list is for"):
        replay(faults, model, (images[:2],))
    with pytest.raises(FitactError, match=r"the model does not take \(3, 8, 8\) int64:\n  "):
        replay(faults, model, (torch.zeros(3, 8, 8, dtype=torch.int64),))
    with pytest.raises(FaultError, match=r"the model has no tensor '4\.bias'"):
        replay(BitFlip(places=[("4.bias", 0, 0)]).draw(model), nn.Linear(2, 2))


def test_equal_replays_have_equal_hashes_and_others_have_not(model: nn.Module, images: Tensor) -> None:
    def hashes(outcome: Outcome) -> tuple[str, ...]:
        assert outcome.outputs is not None
        return outcome.words_hash, str(outcome.outputs.faulty_hash)

    draws = [BitFlip(count=4, bits=30).draw(model, "float32", trial=trial) for trial in (0, 0, 1)]
    first, again, other = (hashes(replay(faults, model, (images,))) for faults in draws)
    assert first == again
    assert not set(first) & set(other)
