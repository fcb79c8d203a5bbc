"""`fitact-fx plan`: what it prints, against the library, and what it refuses."""

import argparse
import json
import shlex
from typing import Any

import pytest

from fitact_fx import cli_plan
from fitact_fx.campaigns.planning import plan
from fitact_fx.cli import Parser
from fitact_fx.cli_plan import add_plan, duration, report
from fitact_fx.errors import FitactError
from fitact_fx.model_spec import load_model

LINEAR = "small_models_of_plans:net"
NETWORK = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_models_of_plans.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "110")


def parser() -> argparse.ArgumentParser:
    top = Parser("fitact-fx")
    add_plan(top.add_subparsers(), {"formatter_class": argparse.RawDescriptionHelpFormatter})
    return top


def printed(words: str) -> str:
    return report(parser().parse_args(["plan", *shlex.split(words)]))


def document(words: str) -> Any:
    return json.loads(printed(f"{words} --json"))


def test_without_options_it_is_one_number_for_the_network() -> None:
    assert printed(LINEAR).split("\n") == [
        f"{LINEAR}: 6,948 single-bit faults in 25,120 places: an SDC rate to +-1 point at 95 %",
        "confidence, whatever it turns out to be.",
        "",
        "stratum      places    faults    of all",
        "---------  --------  --------  --------",
        "all          25,120     6,948    27.7 %",
    ]


def test_every_option_reaches_the_plan() -> None:
    words = "--per bit --margin 0.05 --confidence 0.99 --share 0.1 --format float32 --bits exponent,31"
    words += " --target parameters:0.* --target 'parameters:2.bias'"
    expected = plan(
        load_model(LINEAR),
        per="bit",
        format="float32",
        targets=["parameters:0.*", "parameters:2.bias"],
        bits=["exponent", 31],
        margin=0.05,
        confidence=0.99,
        share=0.1,
    )
    given = document(f"{LINEAR} {words}")
    assert {name: given[name] for name in expected.as_json()} == expected.as_json()
    assert (given["spec"], given["seconds"], given["each_rate"]) == (LINEAR, None, None)
    assert expected.table() in printed(f"{LINEAR} {words}")


def test_the_time_of_a_trial_gives_the_time_of_all() -> None:
    assert printed(f"{LINEAR} --seconds-per-trial 0.5").endswith("\n\nAt 0.5 s for each: 57 min 54 s.")
    given = document(f"{LINEAR} --seconds-per-trial 0.5")
    assert (given["seconds_per_trial"], given["seconds"]) == (0.5, 3_474)


def test_the_spread_gives_the_draws_for_each_rate() -> None:
    text = " ".join(printed(f"{LINEAR} --spread 0.2").split("\n\n")[-1].split())
    claim = "its mean to +-0.01 at 95 % confidence, if draws scatter by 0.2."
    assert text == f"At a bit error rate: 1,537 draws for each rate: {claim}"
    timed = " ".join(printed(f"{LINEAR} --spread 0.2 --seconds-per-trial 2").split("\n\n")[-1].split())
    assert timed == f"At a bit error rate: 1,537 draws for each rate, 51 min 14 s: {claim}"
    given = document(f"{LINEAR} --spread 0.2 --seconds-per-trial 2 --margin 0.02")
    assert given["each_rate"] == {"spread": 0.2, "draws": 385, "seconds": 770}
    assert document(f"{LINEAR} --spread 0")["each_rate"] == {"spread": 0, "draws": 2, "seconds": None}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.004, "0.004 s"),
        (59, "59 s"),
        (59.6, "60 s"),
        (60, "1 min"),
        (1_921, "32 min 1 s"),
        (3_600, "1 h"),
        (3_659, "1 h"),
        (90_061, "1 d 1 h"),
        (190_000, "2 d 4 h"),
        (1e9, "11,574 d 1 h"),
    ],
)
def test_a_duration_is_said_in_the_units_that_matter(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere:net", "cannot find nowhere:net:\n  ModuleNotFoundError: "),
        (f"{LINEAR} --margin 5", "a margin lies between 0 and 1; got 5.0"),
        (f"{LINEAR} --confidence 95", "a confidence lies between 0 and 1; got 95.0"),
        (f"{LINEAR} --share 0", "a share lies between 0 and 1; got 0.0"),
        (f"{LINEAR} --format int9", "unknown format 'int9'; choose one of "),
        (f"{LINEAR} --bits ,", "unknown field of q15.16 ''; choose one of "),
        (f"{LINEAR} --target parameters:x", "the pattern 'x' matches none of the parameters"),
        (f"{LINEAR} --seconds-per-trial 0", "a trial takes more than 0 seconds and less than a billion; got 0"),
        (f"{LINEAR} --seconds-per-trial nan", "a trial takes more than 0 seconds and less than a billion; got nan"),
        (f"{LINEAR} --spread 20", "--spread is that of shares, between 0 and 1; got 20;\n  give 0.2 for 20 points"),
    ],
)
def test_what_cannot_be_planned_is_refused(words: str, message: str) -> None:
    with pytest.raises(FitactError) as refused:
        printed(words)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "the following arguments are required: SPEC"),
        (f"{LINEAR} --per layer", "argument --per: invalid choice: 'layer'"),
        (f"{LINEAR} --margin much", "argument --margin: invalid float value: 'much'"),
    ],
)
def test_words_that_are_not_understood_are_told(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        printed(words)
    assert message in capsys.readouterr().err


def test_help_teaches_and_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["plan", "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    assert "Leveugle" in text
    assert "9,604 faults give +-1 point at 95 %" in text


def test_the_examples_of_the_help_are_understood() -> None:
    examples = [line for line in cli_plan.EXAMPLES.splitlines() if line.startswith("  fitact-fx plan")]
    assert len(examples) == 5
    for line in examples:
        command, _, _ = line.strip().partition("   ")
        assert parser().parse_args(shlex.split(command)[1:]).spec == "torchvision:resnet18"
