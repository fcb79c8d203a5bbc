"""A fault list as a value: its table, its file, and what it refuses to be."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from fitact_fx.errors import FaultError
from fitact_fx.faults import BitFlip, FaultList, TensorFaults, find_format


def network():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))


def drawn(rate=0.01, trial=0):
    return BitFlip(rate=rate).draw(network(), format="q15.16", seed=1, trial=trial)


def list_of(*tensors, stored="float32"):
    return FaultList(find_format(stored), tensors)


def test_rows_show_every_fault_in_order():
    faults = list_of(
        TensorFaults("a", (4,), [1, 1, 3], [0, 31, 5]),
        TensorFaults("b", (2,), [], []),
        TensorFaults("c", (2, 2), [2], [7]),
    )
    expected = [("a", 1, 0), ("a", 1, 31), ("a", 3, 5), ("c", 2, 7)]
    assert len(faults) == len(faults.rows) == 4
    assert list(faults.rows) == [faults.rows[index] for index in range(4)] == expected
    assert (faults.rows[-1], faults.rows[1:3]) == (expected[-1], expected[1:3])
    assert faults.rows[0].tensor == "a"
    with pytest.raises(IndexError):
        faults.rows[4]


def test_a_list_says_in_one_line_what_it_is():
    how = "a bit flips, at each place with probability 0.01, independently"
    how = "a bit flips, at each place with probability 0.01, independently"
    expected = f"<FaultList: {len(drawn())} faults in 4 tensors, q15.16, {how}, seed 1, trial 0>"
    assert repr(drawn()) == expected


def test_lists_are_equal_when_everything_is():
    assert drawn() == drawn()
    assert hash(drawn()) == hash(drawn())
    assert drawn() != drawn(trial=1)


def test_the_fingerprint_tells_the_model_and_not_the_draw():
    other = BitFlip(rate=0.01).draw(nn.Sequential(nn.Linear(20, 31)))
    assert drawn().fingerprint == drawn(trial=1).fingerprint
    assert drawn().fingerprint != other.fingerprint


def test_a_list_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        drawn().tensors[0].elements[0] = 5


def test_making_a_list_leaves_the_arrays_given_to_it_alone():
    elements = np.array([1, 2])
    TensorFaults("a", (4,), elements, np.array([0, 0], np.uint8))
    elements[0] = 0


@pytest.mark.parametrize(
    ("elements", "bits", "message"),
    [
        ([4], [0], "tensor 'a' has 4 elements; a fault lies outside them"),
        ([-1], [0], "tensor 'a' has 4 elements; a fault lies outside them"),
        ([1, 1], [3, 3], "tensor 'a': faults must ascend by element, then bit, each only once"),
        ([2, 1], [3, 3], "tensor 'a': faults must ascend by element, then bit, each only once"),
        ([1, 2], [3], "tensor 'a': needs as many bits or words as elements, one after the other"),
        ([1], [2**32], "tensor 'a': values do not fit in uint32"),
    ],
)
def test_faults_that_no_tensor_can_have_are_refused(elements, bits, message):
    with pytest.raises(FaultError) as error:
        TensorFaults("a", (2, 2), elements, bits)
    assert str(error.value) == message


def test_a_bit_outside_the_word_is_refused():
    with pytest.raises(FaultError, match=r"^tensor 'a': bit 8 lies outside q3\.4, whose bits are 0 to 7$"):
        list_of(TensorFaults("a", (4,), [1], [8]), stored="q3.4")


def test_a_tensor_named_twice_is_refused():
    with pytest.raises(FaultError, match="names one tensor twice"):
        list_of(TensorFaults("a", (4,), [], []), TensorFaults("a", (4,), [], []))


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_a_saved_list_comes_back_equal(tmp_path, rate):
    drawn(rate).save(tmp_path / "trial.faults")
    loaded = FaultList.load(tmp_path / "trial.faults")
    assert loaded == drawn(rate)
    assert list(loaded.rows) == list(drawn(rate).rows)
    assert (loaded.format, loaded.fault, loaded.seed, loaded.trial) == (find_format("q15.16"), drawn(rate).fault, 1, 0)


def test_any_safetensors_reader_opens_the_file_as_documented(tmp_path):
    drawn().save(tmp_path / "trial.faults")
    with safe_open(tmp_path / "trial.faults", framework="numpy") as file:
        header = json.loads(file.metadata()["fitact_fx.fault_list"])
        elements, values = file.get_tensor("elements"), file.get_tensor("values")
    names = [entry["name"] for entry in header["tensors"] for _ in range(entry["faults"])]
    assert list(zip(names, elements.tolist(), values.tolist(), strict=True)) == list(drawn().rows)
    assert (header["version"], header["format"], header["effect"]) == (2, "q15.16", "flip")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "trial.faults"
    drawn().save(path)
    whole = path.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FaultError, match="is cut or not a fault list"):
            FaultList.load(path)


def test_a_file_with_any_byte_of_its_faults_edited_is_refused(tmp_path):
    path = tmp_path / "trial.faults"
    drawn().save(path)
    whole = path.read_bytes()
    for position in range(len(whole) - 12 * len(drawn()), len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(FaultError, match=r"was changed after|is not a whole fault list"):
            FaultList.load(path)


@pytest.mark.parametrize(
    ("before", "after"),
    [('"seed\\": 1', '"seed\\": 2'), ("q15.16", "q14.17"), ("0.weight", "1.weight"), ("[30]", "[99]")],
)
def test_a_file_with_an_edited_header_is_refused(tmp_path, before, after):
    path = tmp_path / "trial.faults"
    drawn().save(path)
    content = path.read_bytes()
    assert before.encode() in content
    path.write_bytes(content.replace(before.encode(), after.encode()))
    with pytest.raises(FaultError, match="was changed after it was saved: its checksum does not fit"):
        FaultList.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other"
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(FaultError, match=r"is a safetensors file without a fault list in it$"):
        FaultList.load(path)
    path.write_bytes(pickle.dumps({"x": 1}))
    with pytest.raises(FaultError, match="is cut or not a fault list"):
        FaultList.load(path)


def test_a_file_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "trial.faults"
    arrays = {"elements": np.zeros(0, np.int64), "values": np.zeros(0, np.uint32)}
    save_file(arrays, path, {"fitact_fx.fault_list": '{"version": 3}'})
    with pytest.raises(FaultError, match=r"was saved by another version; this one reads version 2$"):
        FaultList.load(path)


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "trial.faults"
    drawn().save(path)

    def interrupt(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        drawn(trial=1).save(path)
    assert FaultList.load(path) == drawn()
    assert list(tmp_path.iterdir()) == [path]
