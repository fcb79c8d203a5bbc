"""Faults in bounds that are stored in fewer bits: they hit the 8 or 16 bits that are there, whatever the format."""

import json
import struct
from collections import Counter
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from small_campaigns import batches, campaign_data, campaign_variants, values
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.campaigns import Exhaustive, SingleFaults
from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, Burst, FaultList, Memory, RandomWord, StuckAt, TensorFaults, Zero, find_format
from fitact_fx.replaying import replay
from fitact_fx.reports.fault_lists import list_json, list_text, outcome_text

PACKED = ("bfloat16", "int8")
FORMATS = ("q15.16", "float32", "int8")
BITS = {"bfloat16": 16, "uint8": 8, "int8": 8, "scale": 32}


def hardened(stored: str = "float32") -> nn.Module:
    """An upper bound each for a ReLU, of channels; both sides for a GELU, of neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 20), nn.GELU()).eval()
    hard = fitact_fx.harden(model, {"1": "channel", "4": "neuron"})
    fitact_fx.calibrate(hard, [torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(1))])
    fitact_fx.store_bounds(hard, stored)
    return hard


def raw(hard: nn.Module) -> dict[str, bytes]:
    return {name: held.reshape(-1).view(torch.uint8).numpy().tobytes() for name, held in hard.state_dict().items()}


def word_size(name: str) -> int:
    return BITS[name.rpartition("_")[2]] // 8


def hit(before: dict[str, bytes], faults: FaultList) -> dict[str, bytes]:
    """What flipping these bits makes of the bytes, which lie with the least significant first."""
    after = {name: bytearray(held) for name, held in before.items()}
    for name, element, bit in faults.rows:
        after[name][element * word_size(name) + bit // 8] ^= 1 << bit % 8
    return {name: bytes(held) for name, held in after.items()}


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize("campaign", FORMATS)
def test_a_bit_flips_in_the_words_own_bytes_and_back(stored: str, campaign: str) -> None:
    hard = hardened(stored)
    before = raw(hard)
    faults = BitFlip(rate=0.05).draw(hard, campaign, seed=1, targets="bounds")
    assert len(faults) > 10
    with faults.applied(hard):
        assert raw(hard) == hit(before, faults)
    assert raw(hard) == before
    assert {one.name.rpartition("_")[2]: one.own.bits for one in faults.tensors}.items() <= BITS.items()


@pytest.mark.parametrize("stored", PACKED)
def test_parameters_get_the_faults_that_they_get_without_packed_bounds(stored: str) -> None:
    ours, theirs = (BitFlip(rate=0.01).draw(hard, seed=3) for hard in (hardened(stored), hardened()))
    assert [row for row in ours.rows if "bound" not in row.tensor] == [
        r for r in theirs.rows if "bound" not in r.tensor
    ]
    assert any("bound" in row.tensor for row in ours.rows)


@pytest.mark.parametrize(
    ("fault", "per_word"),
    [(BitFlip(rate=1), 1), (StuckAt(rate=1, value=1), 1), (Zero(rate=1), None), (BitFlip(rate=1, bits=[7, 0, 40]), 2)],
)
def test_every_place_of_the_own_word_is_one(fault, per_word) -> None:
    if per_word == 2:
        with pytest.raises(FaultError, match="bit 40 lies outside float32"):
            fault.draw(hardened("int8"), "float32")
        return
    hard = hardened("int8")
    found = Counter(row[0] for row in fault.draw(hard, "float32", targets="bounds").rows)
    numbers = {name: held.numel() for name, held in hard.named_buffers() if "_bound." in name and held.numel()}
    assert found == {name: count * (8 * word_size(name) if per_word else 1) for name, count in numbers.items()}


def test_a_burst_that_is_wider_than_the_own_word_does_not_strike_it() -> None:
    found = {row.tensor for row in Burst(rate=1, width=9).draw(hardened("int8"), targets="bounds").rows}
    assert {name.rpartition("_")[2] for name in found} == {"scale"}


def test_a_random_word_is_one_of_the_words_own_width() -> None:
    faults = RandomWord(rate=1).draw(hardened("int8"), targets="bounds:*uint8")
    assert max(row.word for row in faults.rows) < 256


@pytest.mark.parametrize(
    ("bits", "found"), [("exponent", {"scale"}), (3, {"scale", "uint8"}), ([3, 30], {"scale", "uint8"})]
)
def test_chosen_bits_are_hit_where_the_words_have_them(bits, found) -> None:
    faults = BitFlip(rate=1, bits=bits).draw(hardened("int8"), "float32", targets="bounds")
    assert {row.tensor.rpartition("_")[2] for row in faults.rows} == found
    exponents = BitFlip(rate=1, bits="exponent").draw(hardened("bfloat16"), "float32", targets="bounds")
    assert {row.bit for row in exponents.rows} == set(range(7, 15))


def test_a_code_that_means_no_bound_and_a_ruined_scale_do_what_they_say() -> None:
    hard = hardened("int8")
    name, x = "1_bound.upper_uint8", torch.full((1, 4, 6, 6), 1e6)
    site = bounded_sites(hard)["1"]
    code = hard.get_buffer(name).flatten()[2].item()
    places = [(name, 2, bit) for bit in range(8) if not code >> bit & 1]
    with BitFlip(places=places).draw(hard).applied(hard):
        assert site.upper.flatten()[2] == torch.inf
        assert torch.equal(site(x)[0, 2], x[0, 2])
        assert not site(x)[0, [0, 1, 3]].any()
    scale = hard.get_buffer("1_bound.upper_scale")
    with BitFlip(places=[("1_bound.upper_scale", 0, 31)]).draw(hard, "q15.16").applied(hard):
        assert scale < 0
        assert not site(x).any()
    assert site.upper.flatten()[2] == code * struct.unpack("<f", struct.pack("<f", scale))[0]


def test_a_place_outside_the_own_word_is_refused() -> None:
    hard = hardened("int8")
    with pytest.raises(FaultError, match=r"bit 8 is not one that can be hit, which are 0 to 7"):
        BitFlip(places=[("1_bound.upper_uint8", 0, 8)]).draw(hard)
    own = find_format("uint8")
    with pytest.raises(FaultError, match=r"bit 8 lies outside uint8, whose bits are 0 to 7"):
        FaultList(find_format("q15.16"), (TensorFaults("1_bound.upper_uint8", (1, 4, 1, 1), [0], [8], own),))
    by_hand = FaultList(find_format("q15.16"), (TensorFaults("1_bound.upper_uint8", (1, 4, 1, 1), [0], [20]),))
    before = raw(hard)
    with pytest.raises(
        FaultError, match="the list is for words that are those of the list's format; here they are uint8"
    ):
        by_hand.applied(hard).__enter__()
    assert raw(hard) == before
    with pytest.raises(FaultError, match=r"the model has no tensor '1_bound\.upper_uint8'"):
        BitFlip(places=[("1_bound.upper_uint8", 0, 1)]).draw(hardened("bfloat16"))


@pytest.mark.parametrize("stored", PACKED)
def test_a_saved_list_says_which_words_and_comes_back(stored: str, tmp_path) -> None:
    hard, path = hardened(stored), tmp_path / "list"
    faults = BitFlip(rate=0.02).draw(hard, seed=5)
    faults.save(path)
    again = FaultList.load(path)
    assert again == faults
    with again.applied(hard):
        assert raw(hard) != raw(hardened(stored))
    with safe_open(path, "numpy") as file:
        header = json.loads(file.metadata()["fitact_fx.fault_list"])
        arrays = {name: file.get_tensor(name) for name in ("elements", "values")}
    told = {entry["name"]: entry.get("format") for entry in header["tensors"]}
    assert {name for name, own in told.items() if own} == {name for name in told if "bound" in name}
    header["tensors"] = [{k: v for k, v in each.items() if k != "format"} for each in header["tensors"]]
    save_file(arrays, path, {"fitact_fx.fault_list": json.dumps(header)})
    with pytest.raises(FaultError, match="was changed after it was saved"):
        FaultList.load(path)


def test_lists_and_replays_show_the_words_as_they_are() -> None:
    hard = hardened("int8")
    faults = BitFlip(places=[("1_bound.upper_uint8", 3, 7), ("0.bias", 1, 31)]).draw(hard)
    before = hard.get_buffer("1_bound.upper_uint8").flatten()[3].item()
    assert "of upper_uint8:  uint8: 8 bits, code 0 to 7" in list_text(faults, "x", 5)
    assert [row["field"] for row in list_json(faults)["rows"]] == ["sign", "code"]
    outcome = replay(faults, hard, (torch.randn(2, 3, 8, 8),))
    word = next(word for word in outcome.words if word.tensor.endswith("uint8"))
    assert (word.word_before, word.word_after) == (before, before ^ 128)
    assert f"0x{before:02x}" in outcome_text(outcome, faults, "x", 5)
    assert not outcome.unrestored


@pytest.mark.parametrize(("stored", "size"), [("bfloat16", 16 * 44), ("int8", 8 * 44 + 3 * 32)])
@pytest.mark.parametrize("campaign", FORMATS)
def test_a_plan_counts_the_bits_that_are_there(stored: str, size: int, campaign: str) -> None:
    hard = hardened(stored)
    assert fitact_fx.plan(hard, targets="bounds", format=campaign).population == size
    per_bit = fitact_fx.plan(hard, targets="bounds", per="bit", format=campaign)
    assert per_bit.population == size
    assert fitact_fx.plan(hard, targets="bounds", per="tensor", format=campaign).population == size
    assert all(cell.kind != "bounds" or cell.own for cell in Memory.of(hard).cells)


ASKED = {
    "rates": {"rates": [1e-4, 1e-2], "trials": 5},
    "single": {"kind": SingleFaults(), "trials": 12},
    "per bit": {"kind": SingleFaults(per="bit"), "trials": 1},
    "every place": {"kind": Exhaustive(bits=[0, 6, 7])},
    "stuck": {"fault": partial(StuckAt, value=1), "kind": SingleFaults(), "trials": 8},
}


@pytest.mark.parametrize("stored", PACKED)
@pytest.mark.parametrize("name", ASKED)
def test_suffixes_change_no_value_of_faults_in_packed_bounds(name: str, stored: str) -> None:
    data = campaign_data()
    hard = campaign_variants(data)["hard"]
    fitact_fx.store_bounds(hard, stored)
    targets = None if name == "rates" else ["bounds"]
    quick, slow = (
        fitact_fx.run_campaign({"hard": hard}, batches(data), targets=targets, suffixes=on, skip=on, **ASKED[name])
        for on in (True, False)
    )
    assert values(quick) == values(slow)
    if name == "every place":
        assert len(quick.rows) == 3 * sum(held.numel() for name, held in hard.named_buffers() if "_bound." in name)
    assert {row.way for row in slow.rows} == {"whole"} != {row.way for row in quick.rows}


def test_compiled_code_reads_packed_bounds_anew_for_each_list() -> None:
    hard, x = hardened("int8"), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    compiled = torch.compile(hard, backend="eager", fullgraph=True)
    with torch.no_grad():
        clean = compiled(x)
        assert torch.equal(clean, hard(x))
        for trial in range(3):
            faults = BitFlip(rate=0.2).draw(hard, targets="bounds", trial=trial)
            with faults.applied(hard), torch.compiler.set_stance("fail_on_recompile"):
                found = compiled(x)
            with faults.applied(hard):
                assert torch.equal(found, hard(x))
            assert not torch.equal(found, clean)
        assert torch.equal(compiled(x), clean)
