"""The demo, once through with little of everything, and what it says of made-up numbers."""

import contextlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_campaigns import settings

import fitact_fx
from fitact_fx import demo, models
from fitact_fx.campaigns import CampaignResult, Store
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.cli import main
from fitact_fx.demo import Options, run
from fitact_fx.faults import BitFlip
from fitact_fx.learning import Learning
from fitact_fx.models import digits
from fitact_fx.reports.comparison import Comparison
from fitact_fx.reports.words import clipped, power, share, size
from fitact_fx.schemes.fitact import FitAct

pytest.importorskip("sklearn")

NAMES = ("none", "Ranger layer", "FitAct layer", "FitAct neuron")


@pytest.fixture(scope="module")
def quickly() -> Iterator[pytest.MonkeyPatch]:
    """What is changed with it stays changed for this module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, quickly: pytest.MonkeyPatch) -> tuple[Path, dict[str, Any], str]:
    """(folder, the JSON on stdout, what was told on stderr) of one small run."""
    folder = tmp_path_factory.mktemp("demo") / "made" / "for it"
    quickly.setattr(digits, "EPOCHS", 4)
    for name, protection in demo.PROTECTIONS.items():
        if isinstance(protection.scheme, FitAct):
            scheme = replace(protection.scheme, learning=Learning(steps=8))
            quickly.setitem(demo.PROTECTIONS, name, replace(protection, scheme=scheme))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        arguments = ["--trials", "3", "--images", "64", "--json", "--no-run-time", "--out", str(folder)]
        assert main(["demo", *arguments]) == 0
    return folder, json.loads(out.getvalue()), err.getvalue()


def test_every_protection_has_every_number(ran: tuple[Path, dict[str, Any], str]) -> None:
    _, found, _ = ran
    assert (found["network"], found["images"], found["trials"], found["seed"]) == ("digits", 64, 3, 0)
    assert tuple(found["protections"]) == NAMES
    for row in found["protections"].values():
        assert row["clean"] > 0.9
        assert [each["rate"] for each in row["faulty"]] == [1e-6, 1e-5, 1e-4, 1e-3]
        for each in row["faulty"]:
            assert len(each["draws"]) == 3
            assert each["mean"] == pytest.approx(np.mean(each["draws"]))
            assert each["interval"][0] <= each["mean"] <= each["interval"][1]
            assert each["worst"] == min(each["draws"])
    # conv1 16x8x8, conv2 32x8x8, conv3 64x4x4 and fc1 64 neurons, four bytes each; Ranger's bounds are carried to two
    # pools and a flatten as well.
    neurons = 16 * 64 + 32 * 64 + 64 * 16 + 64
    memory = [row["bound_bytes"] for row in found["protections"].values()]
    assert memory == [0, 4 * (4 + 3), 4 * 4, 4 * neurons]


def test_the_folder_holds_what_is_needed_to_go_on(ran: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, _ = ran
    assert json.loads((folder / "results.json").read_text()) == found
    assert all(name in (folder / "table.txt").read_text() for name in NAMES)
    model = models.load_weights(models.digits_cnn(), folder / "model.safetensors")
    hard = fitact_fx.load(folder / "fitact-neuron.safetensors", model)
    assert [tuple(upper.shape) for _, upper in fitact_fx.bounds(hard).values() if upper is not None] == [
        (1, 16, 8, 8),
        (1, 32, 8, 8),
        (1, 64, 4, 4),
        (1, 64),
    ]
    # One draw worked out again, from the files alone.
    x, y = (part[:64] for part in models.load_digits_data().test)
    with BitFlip(rate=1e-4).draw(hard, seed=0, trial=1).applied(hard), torch.no_grad():
        right = (hard(x).argmax(1) == y).double().mean()
    assert found["protections"]["FitAct neuron"]["faulty"][2]["draws"][1] == pytest.approx(float(right), abs=1 / 64)


def test_what_is_being_done_is_told_on_stderr(ran: tuple[Path, dict[str, Any], str]) -> None:
    steps = [line for line in ran[2].splitlines() if re.match(r"\d/\d ", line)]
    assert steps == [
        "1/4 training a small convolutional network on scikit-learn's handwritten digits",
        "2/4 hardening it three ways with 1285 training images",
        "3/4 flipping bits: 3 draws at each of 4 rates, 4 networks, 64 test images",
    ]


def test_the_same_seed_gives_the_same_numbers(ran: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    again = run(Options(trials=3, images=64, out=tmp_path, run_time=False))
    assert again.as_json() == ran[1]
    assert torch.get_num_threads() == threads


def test_the_store_is_left_in_the_folder_in_place_of_another_demos(ran: tuple[Path, dict[str, Any], str]) -> None:
    folder, found, _ = ran
    kept = Store.read(folder / "campaign.db")
    assert kept.values("FitAct layer", "0.0001").tolist() == found["protections"]["FitAct layer"]["faulty"][2]["draws"]
    fewer = run(Options(trials=2, images=32, out=folder, run_time=False))  # of which the store there would be refused
    assert len(Store.read(folder / "campaign.db").rows) == len(fewer.comparison.campaign.rows) == 4 * 4 * 2


def swept(clean: dict[str, float], draws: dict[tuple[str, float], list[float]]) -> CampaignResult:
    """A rate sweep with these accuracies."""
    conditions = [Condition(f"{rate:g}", len(each), 1000, rate=rate) for (_, rate), each in draws.items()]
    rows = [
        Row(name, f"{rate:g}", trial, 3, "", accuracy, 0.0, 0.0, 0.0)
        for (name, rate), each in draws.items()
        for trial, accuracy in enumerate(each)
    ]
    told = settings(tuple(clean))
    for name, accuracy in clean.items():
        told["variants"][name]["clean"]["accuracy"] = accuracy
    return CampaignResult(told, tuple(dict.fromkeys(conditions)), tuple(rows), ())


def compared(neuron: float, time: float, lower: float = 0.9) -> Comparison:
    """Two draws at two rates; at 1e-5 the plain network is at 20 %, at 1e-6 the last one at `lower`."""
    draws = {
        ("none", 1e-6): [0.9, 0.8],
        ("none", 1e-5): [0.1, 0.3],
        ("Ranger layer", 1e-6): [0.9, 0.9],
        ("Ranger layer", 1e-5): [0.5, 0.5],
        ("FitAct neuron", 1e-6): [lower, lower],
        ("FitAct neuron", 1e-5): [neuron, neuron],
    }
    clean = {"none": 0.95, "Ranger layer": 0.95, "FitAct neuron": 0.945}
    memory = {"none": 0, "Ranger layer": 16, "FitAct neuron": 2048}
    times = {"none": 1.0, "Ranger layer": 1.1, "FitAct neuron": time}
    return Comparison(swept(clean, draws), memory, times)


def test_the_table_reads_from_left_to_right() -> None:
    lines = compared(0.8, 1.25).table().splitlines()
    assert lines[0].split() == ["protection", "clean", "1e-6", "1e-5", "bounds", "time"]
    row = ["FitAct", "neuron", "94.5", "90.0", "[0.0,", "100.0]", "80.0", "[0.0,", "100.0]", "2.0", "KiB", "1.25x"]
    assert lines[4].split() == row


@pytest.mark.parametrize(
    ("neuron", "time", "said", "price"),
    [
        (0.8, 1.25, "30.0 points better than Ranger layer (95 % interval 30.0 to 30.0)", "and 25 % more run time"),
        (0.5, 1.0, "not to be told apart from Ranger layer", "and no run time"),
        (0.4, 0.9, "10.0 points worse than Ranger layer (95 % interval 10.0 to 10.0)", "and no run time"),
    ],
)
def test_the_sentences_say_what_the_numbers_say(neuron: float, time: float, said: str, price: str) -> None:
    assert compared(neuron, time).sentences() == (
        "With one bit in 100,000 flipped, 20.0 % of the answers are right without protection; "
        f"50.0 % with Ranger layer, {100 * neuron:.1f} % with FitAct neuron. "
        f"On the same draws, FitAct neuron is {said}. "
        f"It costs 0.5 points of clean accuracy, 2.0 KiB for the bounds {price}."
    )


def test_the_sentences_tell_where_the_last_row_falls_behind() -> None:
    found = compared(0.8, 1.0, lower=0.85)
    said = "But it is 5.0 points worse than Ranger layer (95 % interval 5.0 to 5.0) at 1e-6. It costs"
    assert said in found.sentences()


def test_a_single_draw_has_no_interval() -> None:
    one = swept({"none": 1.0, "best": 1.0}, {("none", 1e-5): [0.5], ("best", 1e-5): [0.75]})
    found = Comparison(one, {"none": 0, "best": 4}, {})
    assert found.table().splitlines()[2].split() == ["none", "100.0", "50.0", "-", "-"]
    assert found.as_json()["best"]["faulty"][0]["interval"] is None
    assert json.loads(json.dumps(found.as_json()))["best"]["relative_run_time"] is None
    assert "It costs no clean accuracy and 4 B for the bounds." in found.sentences()


def test_numbers_are_written_as_people_read_them() -> None:
    assert [power(rate) for rate in (1e-6, 3e-5, 2.5e-4, 0.01, 1.0)] == ["1e-6", "3e-5", "2.5e-4", "1e-2", "1e0"]
    assert [size(count) for count in (0, 1023, 1024, 9232384, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "8.8 MiB",
        "3.0 GiB",
    ]
    assert share(0.91234) == "91.2"
    assert [clipped("abcdef", width) for width in (6, 4, 1)] == ["abcdef", "abc…", "…"]
