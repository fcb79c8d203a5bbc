"""The command line: what it prints where, and with which status it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_torchvision

from fitact_fx import cli
from fitact_fx.cli import main
from fitact_fx.errors import FitactError
from fitact_fx.model_spec import example_input, load_model

Streams = pytest.CaptureFixture[str]
COMMANDS = "{demo,inspect,coverage,faults,plan,campaign,resume,report,compare}"

NETWORK = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


def words():
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.GELU())


class Branching(nn.Module):
    def forward(self, x):
        return x.relu() if x.sum() > 0 else x


ready = net()
number = 3


def broken():
    raise ValueError("no such size")


def listed():
    return [1]


def needs(size):
    return net()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's own module in it, importable there and nowhere after the test."""
    (tmp_path / "my_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)
    return tmp_path


def test_inspect_prints_every_site_of_a_model_in_the_current_folder(capsys: Streams) -> None:
    assert main(["inspect", "my_networks:net", "--input", "1,3,8,8"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == "my_networks:net: 402 parameters, 1.6 KiB; 1 sites: 1 relu"
    assert lines[4].split() == ["1", "relu", "4x6x6", "144", "4", "1", "576", "B", *lines[4].split()[8:]]
    assert [line.split() for line in lines if line.startswith("memory")] == [
        ["memory", "576", "B", "16", "B", "4", "B"]
    ]
    assert lines[-1] == "Every activation that was found can be protected, at every granularity."


def test_inspect_json_is_for_programs(capsys: Streams) -> None:
    assert main(["inspect", "my_networks:words", "--input", "1,5:int64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spec"] == "my_networks:words"
    assert found["total"]["bounds"] == {"neuron": 2 * 5 * 8, "channel": 16, "layer": 2}
    assert found["sites"][0]["shape"] == [5, 8]


def test_coverage_prints_what_is_open_and_leaves_with_0(capsys: Streams) -> None:
    assert main(["coverage", "my_networks:net", "--input", "1,3,8,8"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == "my_networks:net: front end symbolic, 4 calls: 1 bounded, 1 contained, 2 open"
    assert 'no bound between here and the output; add "linear" or "logits" to sites to put one here:' in lines
    assert [line.split()[:2] for line in lines if line.startswith("  ")] == [["2", "flatten"], ["3", "linear"]]
    assert lines[-1] == "torch.export sees no other activation in this model."


def test_coverage_of_chosen_sites_with_every_call(capsys: Streams) -> None:
    assert main(["coverage", "my_networks:net", "--sites", "activations,logits", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "No fault in any of them comes to the output but through a bound."
    assert [line.split()[:3] for line in lines[5:9]] == [
        ["0", "conv2d", "contained"],
        ["1", "relu", "bounded"],
        ["2", "flatten", "contained"],
        ["3", "linear", "bounded"],
    ]


def test_coverage_json_is_for_programs(capsys: Streams) -> None:
    assert main(["coverage", "my_networks:words", "--sites", "activations,linear", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["spec"], found["sites"]) == ("my_networks:words", ["activations", "linear"])
    assert found["total"] == {"calls": 3, "bounded": 2, "contained": 1, "open": 0}
    assert found["calls"][0]["why"] == "behind 1"


def test_an_object_and_a_nested_name_are_models_too() -> None:
    assert isinstance(load_model("my_networks:ready"), torch.nn.Sequential)
    assert type(load_model("torch.nn:modules.Identity")) is torch.nn.Identity


def test_a_model_that_cannot_be_hardened_is_an_answer_with_a_status_of_its_own(capsys: Streams) -> None:
    assert main(["inspect", "my_networks:Branching"]) == 1
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "This model cannot be hardened:\n  cannot trace the model itself (Branching)" in printed.out
    assert "my_networks.py:16, in forward: return x.relu() if x.sum() > 0 else x" in printed.out


ERRORS = [
    (["inspect", "resnet50"], "SPEC 'resnet50' names no model;\n  write torchvision:NAME, or package.module:factory"),
    (["inspect", "nowhere:net"], "cannot find nowhere:net:\n  ModuleNotFoundError: No module named 'nowhere'"),
    (["inspect", "my_networks:nett"], "cannot find my_networks:nett:\n  AttributeError: module 'my_networks'"),
    (["inspect", "my_networks:broken"], "my_networks:broken, called without arguments, raised\n  ValueError: no such"),
    (["inspect", "my_networks:needs"], "my_networks:needs, called without arguments, raised\n  TypeError: needs()"),
    (["inspect", "my_networks:listed"], "my_networks:listed gives a list and not an nn.Module"),
    (["inspect", "my_networks:number"], "my_networks:number gives a int and not an nn.Module"),
    (["inspect", "my_networks:net", "--input", "1,x"], "'1,x' is no input shape;\n  write 1,3,224,224, or 1,128:int64"),
    (["inspect", "my_networks:net", "--input", "1,3,9,9"], "the model does not take (1, 3, 9, 9) float32:\n  "),
    (["coverage", "my_networks:net", "--sites", "logit"], "unknown place 'logit'; choose one of activations, linear, "),
    (["coverage", "my_networks:Branching"], "cannot trace the model itself (Branching)"),
    (["coverage", "my_networks:net", "--input", "1,x"], "'1,x' is no input shape;\n  write 1,3,224,224, or 1,128"),
    (["demo", "--model", "vgg"], "unknown network 'vgg'; choose one of digits, resnet20"),
    (["demo", "--model", "resnet20"], "the demo of resnet20 needs its files;\n  give --data DIR, the folder with"),
    (["demo", "--model", "resnet20", "--data", "."], "there is no resnet20-cifar10.safetensors in models nor in ."),
    (["demo", "--out", "my_networks.py"], "[Errno 17] File exists: 'my_networks.py'"),
]


@needs_torchvision
def test_an_unknown_torchvision_model_is_told_with_close_names(capsys: Streams) -> None:
    assert main(["inspect", "torchvision:resnet51"]) == 2
    assert capsys.readouterr().err.startswith(
        "fitact-fx: error: torchvision has no model 'resnet51';\n  it has resnet50, "
    )


def test_without_torchvision_its_models_are_refused_by_name(capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert main(["inspect", "torchvision:resnet50"]) == 2
    assert "error: resnet50 is torchvision's, which does not import here (" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(row[0]) for row in ERRORS])
def test_an_error_is_told_on_stderr_in_two_lines(arguments: list[str], message: str, capsys: Streams) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"fitact-fx: error: {message}")
    assert len(printed.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [],
            f"the following arguments are required: {COMMANDS}\n  see fitact-fx --help\n",
        ),
        (
            ["explain"],
            f"argument {COMMANDS}: invalid choice: 'explain'",
        ),
        (
            ["demo", "--trials", "0"],
            "argument --trials: '0' is not a positive whole number\n  see fitact-fx demo --help\n",
        ),
        (
            ["demo", "--trials", "x"],
            "argument --trials: 'x' is not a positive whole number\n  see fitact-fx demo --help\n",
        ),
        (["inspect"], "the following arguments are required: SPEC\n  see fitact-fx inspect --help\n"),
    ],
)
def test_words_that_are_not_understood_are_told_as_briefly(arguments: list[str], message: str, capsys: Streams) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"fitact-fx: error: {message}")
    assert len(printed.splitlines()) == 2


@pytest.mark.parametrize("arguments", [["--debug", "inspect", "x"], ["inspect", "x", "--debug"]])
def test_debug_shows_the_traceback(arguments: list[str], capsys: Streams) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert "fitact_fx.errors.FitactError: SPEC 'x' names no model;" in printed


def test_an_error_of_our_own_says_how_to_see_more(capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: str) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(cli, "load_model", broken)
    assert main(["inspect", "a:b"]) == 2
    expected = "fitact-fx: error: KeyError: 'lost'\n  a mistake of fitact-fx, it seems; --debug shows where\n"
    assert capsys.readouterr().err == expected


def test_an_interrupt_leaves_quietly(capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(spec: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_model", interrupted)
    assert main(["inspect", "a:b"]) == 130
    assert capsys.readouterr().err == "fitact-fx: interrupted\n"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["demo", "--help"],
        ["inspect", "--help"],
        ["coverage", "--help"],
        ["plan", "--help"],
        ["campaign", "--help"],
        ["resume", "--help"],
        ["report", "--help"],
        ["compare", "--help"],
        ["--version"],
    ],
)
def test_help_fits_the_terminal(words: list[str], capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 115


def test_the_module_runs_and_a_reader_that_goes_away_is_no_error() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "fitact_fx", "inspect", "my_networks:net"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("text", ["", "1,,2", "0,3", "-1,3", "1,3:float33", "1,3:nn", "a"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FitactError, match="is no input shape"):
        example_input(text)


def test_an_input_has_the_shape_and_type_it_was_given() -> None:
    state = torch.get_rng_state()
    floats, integers = example_input("2,3,4"), example_input("5:int64")
    assert (floats.shape, floats.dtype, integers.tolist()) == ((2, 3, 4), torch.float32, [0] * 5)
    assert 0 <= floats.min() < floats.max() < 1
    assert torch.get_rng_state().equal(state)
