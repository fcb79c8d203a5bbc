"""`fitact-fx faults`: a list drawn, shown and replayed, here and from one process to another."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fitact_fx import cli
from fitact_fx.cli import main
from fitact_fx.faults import BitFlip, FaultList, find_fault_model, find_format
from fitact_fx.faults.fault_models import names
from fitact_fx.faults.targets import KINDS
from fitact_fx.model_spec import example_input
from fitact_fx.replaying import replay, seeded_model

Streams = pytest.CaptureFixture[str]

NETWORK = """
import torch
from torch import nn

import fitact_fx


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def other():
    return nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU())


def hard():
    hardened = fitact_fx.harden(net(), granularity="layer")
    fitact_fx.set_bounds(hardened, {"*": (None, 6.0)})
    return hardened


def half():
    return net().half()
"""
INPUT = ["--input", "2,3,8,8"]
NET = "drawn_networks:net"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's own module in it, importable there and nowhere after the test."""
    (tmp_path / "drawn_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "drawn_networks", raising=False)
    return tmp_path


def faults(*words: str) -> int:
    return main(["faults", *words])


def printed_json(capsys: Streams, *words: str) -> Any:
    assert faults(*words, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


def test_draw_saves_the_list_that_the_library_draws(capsys: Streams) -> None:
    assert faults("draw", NET, "--rate", "0.01", "--seed", "7", "--trial", "3", "--out", "list.safetensors") == 0
    assert FaultList.load("list.safetensors") == BitFlip(rate=0.01).draw(net(), "q15.16", seed=7, trial=3)
    assert capsys.readouterr().out.endswith("\n\nSaved in list.safetensors.\n")


OPTIONS = [
    (["--fault", "burst", "--width", "3", "--count", "4", "--bits", "exponent", "--format", "float32"], None),
    (["--fault", "stuck-at-1", "--rate", "0.5", "--bits", "30,sign", "--target", "parameters:*.bias"], None),
    (["--fault", "random-word", "--rate", "0.1", "--format", "int8", "--target", "parameters:0.*"], None),
    (["--fault", "zero", "--place", "0.weight:3", "--place", "3.weight:4,7"], {("0.weight", 3), ("3.weight", 583)}),
    (["--place", "0.weight:3,2,1,0:30", "--format", "q3.28"], {("0.weight", 102)}),
]


@pytest.mark.parametrize(("words", "elements"), OPTIONS, ids=[" ".join(row[0]) for row in OPTIONS])
def test_every_option_reaches_the_list(words: list[str], elements: set[Any] | None, capsys: Streams) -> None:
    found = printed_json(capsys, "draw", NET, *words, "--out", "list.safetensors")
    again = printed_json(capsys, "show", "list.safetensors")
    assert {**found, "spec": None, "file": None} == {**again, "spec": None, "file": None}
    rows = [(row["tensor"], row["element"], row.get("bit", row.get("word"))) for row in found["rows"]]
    assert rows == [tuple(row) for row in FaultList.load("list.safetensors").rows]
    assert len(rows) == found["faults"] > 0
    assert elements is None or {row[:2] for row in rows} == elements
    if "--bits" in words:
        allowed = range(23, 31) if "exponent" in words else (30, 31)
        assert {bit for *_, bit in rows} <= set(allowed)
    if "--target" in words:
        assert {row[0] for row in rows} <= {"0.bias", "3.bias", "0.weight"}


def test_the_list_is_shown_in_words_and_counted(capsys: Streams) -> None:
    words = ["--fault", "stuck-at-0", "--rate", "0.02", "--format", "float32", "--bits", "exponent,sign"]
    assert faults("draw", NET, *words, "--rows", "2") == 0
    lines = capsys.readouterr().out.splitlines()
    drawn = find_fault_model("stuck-at-0")(rate=0.02, bits=("exponent", "sign")).draw(net(), "float32")
    assert lines[0] == f"{NET}: {len(drawn)} faults in {len(drawn.hits)} of 4 targeted tensors"
    event = "a bit among the exponent bits, the sign bits is stuck at 0"
    assert lines[2:6] == [
        f"fault model:  {event}, at each place with probability 0.02, independently",
        "effect:       stuck-at-0: the bit reads 0 whatever it was",
        "format:       float32: 32 bits, mantissa 0 to 22, exponent 23 to 30, sign 31",
        "drawn with:   seed 0, trial 0",
    ]
    cells = [line.split() for line in lines]
    assert ["0.weight", "4x3x3x3", str(len(drawn.tensors[0]))] in cells
    in_sign = sum(bit == 31 for *_, bit in drawn.rows)
    assert ["sign", str(in_sign), f"{100 * in_sign / len(drawn):.1f}", "%"] in cells
    assert ["mantissa", "0", "0.0", "%"] in cells
    assert lines[-1] == f"... and {len(drawn) - 2} more"


def test_a_list_without_faults_is_shown_too(capsys: Streams) -> None:
    assert faults("draw", NET, "--rate", "0", "--out", "none.safetensors") == 0
    assert faults("replay", "none.safetensors", NET, *INPUT) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{NET}: 0 faults in 0 of 4 targeted tensors\n")
    assert "No fault is seen: all outputs are the same for 2 example samples." in printed


def test_no_rows_are_a_summary(capsys: Streams) -> None:
    assert faults("draw", NET, "--count", "5", "--rows", "0", "--out", "list.safetensors") == 0
    assert faults("replay", "list.safetensors", NET, "--rows", "0") == 0
    assert "0.weight" not in capsys.readouterr().out


def test_replay_prints_each_word_and_the_outputs_and_that_all_is_restored(capsys: Streams) -> None:
    faults("draw", NET, "--place", "3.bias:2:30", "--format", "float32", "--out", "list.safetensors")
    capsys.readouterr()
    assert faults("replay", "list.safetensors", NET, *INPUT) == 0
    lines = capsys.readouterr().out.splitlines()
    before = float(seeded_model(NET).get_parameter("3.bias").detach()[2])
    word = struct.unpack("<I", struct.pack("<f", before))[0]
    after = struct.unpack("<f", struct.pack("<I", word ^ 1 << 30))[0]
    assert lines[0] == f"list.safetensors on {NET} (weights: seed 0): 1 word hit, 1 of them changed"
    shown = ["3.bias", "[2]", "30", "(exponent)", f"0x{word:08x}", "->", f"0x{word ^ 1 << 30:08x}"]
    assert [*shown, f"{before:.6g}", "->", f"{after:.6g}"] in [line.split() for line in lines]
    assert "Faulty beside clean outputs, 2 example samples:" in lines
    assert any(line.startswith("  DUE             0 of 2 (0.0 %)") for line in lines)
    assert lines[-1] == "Restored: 4 of 4 tensors hold the very bits that they held before (compared)."


def test_without_inputs_only_the_words_are_shown(capsys: Streams) -> None:
    faults("draw", NET, "--count", "3", "--out", "list.safetensors")
    assert faults("replay", "list.safetensors", NET) == 0
    assert "No run: give --input SHAPE to see what becomes of the outputs." in capsys.readouterr().out
    assert printed_json(capsys, "replay", "list.safetensors", NET)["outputs"] is None


def test_bounds_of_a_hardened_model_are_hit_and_activations_on_both_sides(capsys: Streams) -> None:
    found = printed_json(capsys, "draw", "drawn_networks:hard", "--rate", "0.5", "--target", "bounds")
    assert [tensor["shape"] for tensor in found["tensors"]] == [[]]
    for side in ("before", "after"):
        words = ["--at", "1", "--where", side, *INPUT, "--count", "2", "--out", f"{side}.safetensors"]
        drawn = printed_json(capsys, "draw", "drawn_networks:hard", *words)
        assert {row["tensor"] for row in drawn["rows"]} == {f"1@{side}"}
        outcome = printed_json(capsys, "replay", f"{side}.safetensors", "drawn_networks:hard", *INPUT)
        assert [(row["tensor"], row["element"]) for row in outcome["words"]["rows"]] == [
            (row["tensor"], row["element"]) for row in drawn["rows"]
        ]
        assert outcome["memory"]["restored"] is True


def test_activations_and_memory_are_drawn_together_when_both_are_targets(capsys: Streams) -> None:
    targets = ["--target", "activations", "--target", "parameters:3.*"]
    found = printed_json(capsys, "draw", NET, "--at", "*", *INPUT, "--rate", "0.01", *targets)
    assert [tensor["name"] for tensor in found["tensors"]] == ["3.weight", "3.bias", "1@after"]
    places = ["--place", "1@after:1,0,2,3:30", "--place", "3.bias:0:1"]
    found = printed_json(capsys, "draw", NET, "--at", "*", *INPUT, *places)
    assert [row["index"] for row in found["rows"]] == [[0], [1, 0, 2, 3]]


def test_weights_are_the_same_for_a_seed_and_come_from_a_file_if_one_is_given(capsys: Streams) -> None:
    from safetensors.torch import save_file

    faults("draw", NET, "--count", "2", "--out", "list.safetensors")
    capsys.readouterr()
    save_file({name: tensor + 1 for name, tensor in seeded_model(NET).state_dict().items()}, "trained.safetensors")
    arguments = ("replay", "list.safetensors", NET, *INPUT)
    state = torch.get_rng_state()
    default, zero, one, trained = (
        printed_json(capsys, *arguments, *more)
        for more in ([], ["--weights-seed", "0"], ["--weights-seed", "1"], ["--weights", "trained.safetensors"])
    )
    assert torch.get_rng_state().equal(state)
    assert default == zero
    assert len({found["memory"]["hash"] for found in (zero, one, trained)}) == 3
    assert trained["weights"] == "trained.safetensors"


def test_memory_that_is_not_restored_is_an_answer_with_a_status_of_its_own(
    capsys: Streams, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "class Writes(net().__class__):\n    def forward(self, x):\n        self[0].bias.data += 1\n"
    code += "        return super().forward(x)\n\n\ndef writes():\n    return Writes(*net())\n"
    (folder / "drawn_networks.py").write_text(f"{NETWORK}\n\n{code}")
    faults("draw", NET, "--count", "2", "--out", "list.safetensors")
    assert faults("replay", "list.safetensors", "drawn_networks:writes", *INPUT) == 1
    assert "NOT RESTORED: 0.bias hold other bits than before." in capsys.readouterr().out


def in_a_process(*words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fitact_fx", "faults", *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_what_one_process_drew_another_replays_bit_for_bit() -> None:
    activations = ["--at", "1", *INPUT, "--count", "5", "--format", "float32"]
    for file, words in {"memory.safetensors": ["--rate", "0.003"], "activations.safetensors": activations}.items():
        in_a_process("draw", NET, *words, "--out", file)
        there = json.loads(in_a_process("replay", file, NET, *INPUT, "--json"))
        here = replay(FaultList.load(file), seeded_model(NET), (example_input("2,3,8,8"),))
        assert here.outputs is not None
        assert there["words"]["rows"] == [json.loads(json.dumps(word.as_json())) for word in here.words]
        assert there["words"]["hit"] > 0
        assert there["words"]["hash"] == here.words_hash
        assert there["outputs"]["clean_hash"] == here.outputs.clean_hash
        assert there["outputs"]["faulty_hash"] == here.outputs.faulty_hash != here.outputs.clean_hash
        assert there["memory"] == {"tensors": there["memory"]["tensors"], "hash": here.memory_hash} | {
            "restored": True,
            "unrestored": [],
        }


ERRORS = [
    ("draw nowhere:net --rate 0.1", "cannot find nowhere:net:\n  ModuleNotFoundError: No module named 'nowhere'"),
    (f"draw {NET} --rate 2", "a bit error rate lies between 0 and 1; got 2.0"),
    (f"draw {NET} --count -1", "a count of faults is a whole number from 0 up; got -1"),
    (f"draw {NET} --count 99999999", "a count of 99999999 is more than the 26784 places in the 4 targeted tensors"),
    (f"draw {NET} --rate 0.1 --fault flip", "unknown fault model 'flip'; choose one of bit-flip, burst, "),
    (f"draw {NET} --rate 0.1 --format q40.2", "q40.2 has 43 bits; a fixed point format has 2 to 32"),
    (f"draw {NET} --rate 0.1 --format int9", "unknown format 'int9'; choose one of bfloat16, "),
    (f"draw {NET} --rate 0.1 --target weights", "unknown target 'weights'; choose one of activations, bounds, "),
    (f"draw {NET} --rate 0.1 --target parameters:x*", "the pattern 'x*' matches none of the parameters; they are 0."),
    (f"draw {NET} --rate 0.1 --target bounds", "the model has no bounds;\n  calibrate the hardened model"),
    (f"draw {NET} --rate 0.1 --target activations", "nothing says which activations;\n  add --at GLOB"),
    (f"draw {NET} --rate 0.1 --input 1,3,8,8", "nothing says which activations;\n  add --at GLOB"),
    (f"draw {NET} --rate 0.1 --where before", "nothing says which activations;\n  add --at GLOB"),
    (f"draw {NET} --rate 0.1 --at *", "activations have shapes only when the model runs;\n  add --input SHAPE"),
    (f"draw {NET} --rate 0.1 --at y --input 2,3,8,8", "the pattern 'y' matches no value of the model; there are 1, "),
    (f"draw {NET} --rate 0.1 --at 1 --input 2,3,9,9", "the model does not take (2, 3, 9, 9) float32:\n  "),
    (f"draw {NET} --rate 0.1 --at 1 --input 2,x", "'2,x' is no input shape;\n  write 1,3,224,224"),
    (f"draw {NET} --rate 0.1 --at 1 --input 2,3,8,8 --where in", "where is 'in';\n  give one of after, before"),
    (f"draw {NET} --rate 0.1 --at 1 --input 2,3,8,8 --target bounds", "--at is for activations, and they are no tar"),
    (f"draw {NET} --rate 0.1 --bits exponent", "unknown field of q15.16 'exponent'; choose one of fraction, integer"),
    (f"draw {NET} --rate 0.1 --bits 32", "bit 32 lies outside q15.16, whose bits are 0 to 31"),
    (f"draw {NET} --rate 0.1 --bits ,", "unknown field of q15.16 ''; choose one of fraction, integer, sign"),
    (f"draw {NET} --rate 0.1 --bits 3 --fault zero", "the fault 'zero' has no bits;\n  leave out --bits, or choose"),
    (f"draw {NET} --rate 0.1 --width 3", "the fault 'bit-flip' has no width;\n  leave out --width, or choose"),
    (f"draw {NET} --rate 0.1 --fault burst", "the fault 'burst' needs a width;\n  add --width"),
    (f"draw {NET} --rate 0.1 --fault burst --width 40", "a burst of 40 adjacent bits fits nowhere of q15.16"),
    (f"draw {NET} --rate 0.1 --fault burst --width 0", "a burst is at least 1 bit wide; got 0"),
    ("draw drawn_networks:half --rate 0.1", "tensor '0.weight' is float16, which cannot hold q15.16 numbers; choose"),
    (f"draw {NET} --place 0.bias", "'0.bias' is no place;\n  write TENSOR:ELEMENT:BIT such as conv1.weight:0:30, or"),
    (f"draw {NET} --place :0:3", "':0:3' is no place;\n  write"),
    (f"draw {NET} --place 0.bias:a:3", "'0.bias:a:3' is no place;\n  write"),
    (f"draw {NET} --place 0.bias:0:3,4", "'0.bias:0:3,4' is no place;\n  write"),
    (f"draw {NET} --place 0.bias:0:3:4", "'0.bias:0:3:4' is no place;\n  write"),
    (f"draw {NET} --place 0.bias:0", "('0.bias', 0) is no place of this fault;\n  write (tensor name, element, bit)"),
    (f"draw {NET} --place 0.bias:0:3 --fault zero", "('0.bias', 0, 3) is no place of this fault;\n  write (tensor n"),
    (f"draw {NET} --place 0.bias:4:3", "place ('0.bias', 4, 3) lies outside its tensor, whose shape is (4,)"),
    (f"draw {NET} --place 0.bias:0,0:3", "place ('0.bias', (0, 0), 3) lies outside its tensor, whose shape is (4,)"),
    (f"draw {NET} --place 0.bias:0:32", "place ('0.bias', 0, 32): bit 32 is not one that can be hit, which are 0 to"),
    (f"draw {NET} --place 0.bais:0:3", "the model has no tensor '0.bais' (close: 0.bias"),
    (f"draw {NET} --place 1@after:0:3", "the model has no tensor '1@after'"),
    (f"draw {NET} --rate 0.1 --out nowhere/list", "there is no folder nowhere;\n  give the path of a file in a folder"),
    ("show nowhere.safetensors", "there is no file nowhere.safetensors;\n  pass the path that FaultList.save wrote"),
    ("show drawn_networks.py", "drawn_networks.py is cut or not a fault list: "),
    ("show cut.safetensors", "cut.safetensors is cut or not a fault list: "),
    ("show weights.safetensors", "weights.safetensors is a safetensors file without a fault list in it"),
    (f"replay nowhere.safetensors {NET}", "there is no file nowhere.safetensors;\n  pass the path"),
    (f"replay cut.safetensors {NET}", "cut.safetensors is cut or not a fault list: "),
    (
        "replay list.safetensors drawn_networks:other",
        "tensor '0.weight' has shape (4, 3, 5, 5); the fault list is for ",
    ),
    ("replay list.safetensors torch.nn:Identity", "Identity has no parameters and no bounds: nothing for a fault to"),
    ("replay list.safetensors drawn_networks:half", "tensor '0.weight' is float16, which cannot hold q15.16 numbers;"),
    (f"replay list.safetensors {NET} --input 2,3,9,9", "the model does not take (2, 3, 9, 9) float32:\n  "),
    (f"replay list.safetensors {NET} --weights nowhere", "no weights at nowhere: give the path of a safetensors file"),
    (
        "replay list.safetensors drawn_networks:other --weights weights.safetensors",
        "weights.safetensors does not fit t",
    ),
    (f"replay activations.safetensors {NET}", "'1@after' is an activation, which is there only while the model runs;"),
    (
        f"replay activations.safetensors {NET} --input 1,3,8,8",
        "tensor '1@after' has shape (1, 4, 6, 6); the fault list",
    ),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[row[0] for row in ERRORS])
def test_an_error_is_told_on_stderr_in_two_lines(words: str, message: str, capsys: Streams) -> None:
    from safetensors.torch import save_file

    save_file(net().state_dict(), "weights.safetensors")
    faults("draw", NET, "--count", "3", "--out", "list.safetensors")
    faults("draw", NET, "--at", "1", *INPUT, "--count", "3", "--out", "activations.safetensors")
    Path("cut.safetensors").write_bytes(Path("list.safetensors").read_bytes()[:-7])
    capsys.readouterr()
    assert faults(*words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"fitact-fx: error: {message}")
    assert len(printed.err.splitlines()) <= 2
    assert "a mistake of fitact-fx" not in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: {draw,show,replay}\n  see fitact-fx faults --help\n"),
        ("apply", "argument {draw,show,replay}: invalid choice: 'apply'"),
        (
            f"draw {NET}",
            "one of the arguments --rate --count --place is required\n  see fitact-fx faults draw --help\n",
        ),
        (f"draw {NET} --rate 0.1 --count 2", "argument --count: not allowed with argument --rate\n"),
        (f"draw {NET} --place 0.bias:0:0 --count 2", "argument --count: not allowed with argument --place\n"),
        (f"draw {NET} --rate much", "argument --rate: invalid float value: 'much'\n"),
        (f"draw {NET} --rate 0.1 --rows -1", "argument --rows: '-1' is not a whole number\n"),
        ("draw --rate 0.1", "the following arguments are required: SPEC\n"),
        ("show", "the following arguments are required: FILE\n"),
        ("replay list", "the following arguments are required: SPEC\n"),
        (
            f"replay list {NET} --weights a --weights-seed 1",
            "argument --weights-seed: not allowed with argument --weights",
        ),
    ],
)
def test_words_that_are_not_understood_are_told_as_briefly(words: str, message: str, capsys: Streams) -> None:
    with pytest.raises(SystemExit) as left:
        faults(*words.split())
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"fitact-fx: error: {message}")
    assert len(printed.splitlines()) == 2


def helped(capsys: Streams, *words: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*words, "--help"])
    assert left.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["draw"], ["show"], ["replay"]])
def test_help_fits_the_terminal(words: list[str], capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert max(map(len, helped(capsys, "faults", *words).splitlines())) <= 115


def test_help_teaches_every_fault_model_format_and_target(capsys: Streams) -> None:
    assert "fitact-fx faults draw" in helped(capsys)
    text = helped(capsys, "faults")
    assert "A fault list is the exact faults of one trial" in text
    for name in names():
        assert f"\n  {name} " in text
    assert "2 adjacent bits flip (with --width 2)" in text
    for kind in KINDS:
        assert kind in text
    stored = [name for name in text.replace(",", " ").split() if name.startswith(("float", "bfloat", "int8", "q15"))]
    assert {find_format(name).bits for name in stored} == {8, 16, 32}


def test_the_examples_of_the_help_are_understood(capsys: Streams) -> None:
    text = helped(capsys, "faults")
    examples = [line.split() for line in text.splitlines() if line.startswith("  fitact-fx faults")]
    assert len(examples) >= 6
    for _, *words in examples:
        assert cli.parser().parse_args([word.strip('"') for word in words]).report
