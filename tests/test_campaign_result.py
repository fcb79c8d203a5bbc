"""What a campaign's result says about its rows, against the same worked out by hand, and how it is exported."""

import csv
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from fitact_fx.campaigns import exporting
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.rows import Condition, Row
from fitact_fx.errors import CampaignError
from fitact_fx.statistics import Interval

SETTINGS: dict[str, Any] = {
    "kind": "rate sweep",
    "format": "q15.16",
    "until": None,
    "minimum": 4,
    "measure": "accuracy",
    "confidence": 0.9,
    "metrics": ["iou"],
    "variants": {
        "plain": {"clean": {"accuracy": 0.9, "iou": 0.7}},
        "fitact": {"clean": {"accuracy": 0.89, "iou": nan}},
    },
}
RATES = (
    Condition("1e-06", 12, 800, rate=1e-6),
    Condition("1e-05", 12, 800, rate=1e-5),
    Condition("0.001", 12, 800, rate=1e-3),
)
CHANCE = np.random.default_rng(0)
ACCURACY = {(v, c.name): CHANCE.uniform(0, 1, 12) for v in SETTINGS["variants"] for c in RATES}


def row(variant: str, cell: str, trial: int, accuracy: float | None = 0.5, **others: Any) -> Row:
    return replace(Row(variant, cell, trial, 3, "c0ffee", accuracy, 0.25, 0.125, 0.0, {"iou": 0.75}), **others)


def result(rows: list[Row], conditions: tuple[Condition, ...] = RATES, **changes: Any) -> CampaignResult:
    return CampaignResult(
        SETTINGS | changes, conditions, tuple(rows), ({"started": "now", "seconds": 1.0, "trials": 12},)
    )


def rows(*left_out: tuple[str, str, int]) -> list[Row]:
    return [
        row(variant, condition.name, trial, float(ACCURACY[variant, condition.name][trial]))
        for condition in RATES
        for trial in range(12)
        for variant in SETTINGS["variants"]
        if (variant, condition.name, trial) not in left_out
    ]


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(CampaignError) as refused:
        work()
    return str(refused.value)


def assert_is_interval_of(found: Interval, samples: Any, confidence: float = 0.9) -> None:
    """Around the mean of the samples, and where SciPy's own bootstrap of other resamples puts it, nearly."""
    low, high = stats.bootstrap(
        (samples,), np.mean, confidence_level=confidence, rng=np.random.default_rng(5)
    ).confidence_interval
    assert found.mean == pytest.approx(np.mean(samples), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_values_come_in_the_order_of_trials_without_those_that_have_none() -> None:
    found = result([row("plain", "1e-06", 0, 0.25), row("plain", "1e-06", 3, None), row("plain", "1e-06", 7, 0.75)])
    assert found.values("plain", "1e-06").tolist() == [0.25, 0.75]
    assert found.values("plain", "1e-06", "due").tolist() == [0.0, 0.0, 0.0]
    assert found.values("plain", "1e-06", "iou").tolist() == [0.75] * 3
    assert found.values("plain", "1e-05").shape == (0,)
    assert found.variants == ("plain", "fitact")


def test_an_interval_has_the_confidence_of_the_campaign() -> None:
    assert_is_interval_of(result(rows()).interval("plain", "1e-05"), ACCURACY["plain", "1e-05"])
    assert_is_interval_of(result(rows(), confidence=0.6).interval("plain", "1e-05"), ACCURACY["plain", "1e-05"], 0.6)


def test_the_worst_draw_has_the_lowest_accuracy_or_the_most_harm() -> None:
    found = result(
        [row("plain", "1e-06", t, a, sdc1=1 - a, metrics={"iou": a}) for t, a in enumerate((0.5, 0.25, 1.0))]
    )
    assert [found.worst("plain", "1e-06", one) for one in ("accuracy", "sdc1", "iou")] == [0.25, 0.75, 0.25]


def test_a_difference_is_paired_over_the_trials_that_both_have() -> None:
    found = result(rows(("plain", "1e-06", 2), ("fitact", "1e-06", 5)))
    kept = [trial for trial in range(12) if trial not in (2, 5)]
    pairs = ACCURACY["fitact", "1e-06"][kept] - ACCURACY["plain", "1e-06"][kept]
    assert_is_interval_of(found.difference("fitact", "plain", "1e-06"), pairs)


def areas(variant: str, trials: list[int]) -> list[float]:
    """Two trapezoids, of one decade and of two, over three decades."""
    low, middle, high = (ACCURACY[variant, condition.name][trials] for condition in RATES)
    return list(((low + middle) / 2 * 1 + (middle + high) / 2 * 2) / 3)


def test_an_area_is_over_the_logarithm_of_the_rates_and_per_trial_that_all_rates_have() -> None:
    found = result(rows(("plain", "1e-05", 3), ("fitact", "0.001", 4)))
    plain, both = [t for t in range(12) if t != 3], [t for t in range(12) if t not in (3, 4)]
    assert_is_interval_of(found.area("plain"), areas("plain", plain))
    assert_is_interval_of(
        found.area_difference("fitact", "plain"), np.subtract(areas("fitact", both), areas("plain", both))
    )


def test_an_area_leaves_out_cells_about_a_part_of_the_network_and_needs_two_rates() -> None:
    part = Condition("conv at 1e-4", 1, 1, rate=1e-4, tensor="conv")
    assert result(rows(), (*RATES, part)).area("plain") == result(rows()).area("plain")
    single = [row("plain", "1e-06", trial) for trial in range(3)]
    assert "needs two different rates" in refusal(lambda: result(single, RATES[:1]).area("plain"))
    assert "this campaign has none" in refusal(lambda: result([], (Condition("bit 3", 1, 1, bit=3),)).area("plain"))
    assert "no trial has accuracy of 'plain' at 1e-06 and 1e-05" in refusal(lambda: result(single).area("plain"))


def test_what_never_happened_is_bounded_by_the_rule_of_three() -> None:
    found = result([row("plain", "1e-06", trial, sdc1=0.0, sdc5=float(trial == 9)) for trial in range(60)])
    assert found.interval("plain", "1e-06", "sdc1") == Interval(0.0, 0.0, pytest.approx(3 / 60))
    assert found.never("plain", "1e-06") == pytest.approx(3 / 60)
    assert found.never("plain", "1e-06", "sdc5") is None


def test_the_share_of_draws_with_an_event_has_wilsons_interval() -> None:
    found = result([row("plain", "1e-06", trial, due=0.001 * (trial < 7)) for trial in range(40)])
    share = found.share_of_draws("plain", "1e-06", "due")
    low, high = stats.binomtest(7, 40).proportion_ci(0.9, method="wilson")
    assert (share.mean, share.low, share.high) == pytest.approx((7 / 40, low, high))


def test_where_every_place_was_hit_the_mean_is_no_estimate() -> None:
    every = (Condition("conv", 12, 12, tensor="conv"),)
    found = [row("plain", "conv", trial, trial / 12) for trial in range(12)]
    mean = pytest.approx(11 / 24)
    exact = result(found, every, kind="exhaustive").interval("plain", "conv")
    assert (exact.mean, exact.low, exact.high) == (mean, mean, mean)
    some = result(found[:8], every, kind="exhaustive").interval("plain", "conv")
    assert some.low < some.mean < some.high


@pytest.mark.parametrize(
    ("trials", "until", "spread", "stopped"),
    [
        (8, 0.2, 0.01, True),
        (8, None, 0.01, False),
        (8, 0.001, 0.01, False),  # it was killed before it knew enough
        (12, 0.1, 0.01, False),  # all trials have run
        (3, 0.1, 0.01, False),  # fewer than the minimum: killed as well
        (8, 0.1, 0.01, False),  # what no draw has shown: 3/8 of all, 0.5 away, is more than 0.1
    ],
)
def test_a_cell_has_stopped_if_it_knew_enough_before_all_trials_had_run(
    trials: int, until: float | None, spread: float, stopped: bool
) -> None:
    found = [row("plain", "1e-06", trial, 0.5 + spread * (trial % 3)) for trial in range(trials)]
    assert result(found, until=until).stopped("plain", "1e-06") is stopped


def test_a_metric_that_fails_is_listed_and_asking_for_it_says_why() -> None:
    failed = [row("plain", "1e-06", t, metrics={}, error=f"iou: ValueError: {t}") for t in range(2)]
    found = result(failed)
    assert found.errors == (("plain", "1e-06", 0, "iou: ValueError: 0"), ("plain", "1e-06", 1, "iou: ValueError: 1"))
    assert refusal(lambda: found.interval("plain", "1e-06", "iou")) == (
        "none of the 2 trials of 'plain' at '1e-06' has iou: iou: ValueError: 0;\n"
        "  ask for another measure, such as 'due'"
    )


def test_an_estimate_from_nothing_is_refused_with_the_reason() -> None:
    found = result([row("plain", "1e-06", 0, None), row("plain", "1e-05", 0, metrics={"iou": nan})])
    assert "the outputs are no class scores with labels" in refusal(lambda: found.interval("plain", "1e-06"))
    assert "no trial of 'fitact' at '1e-06' has run yet" in refusal(lambda: found.worst("fitact", "1e-06"))
    assert "no trial has accuracy of 'plain' and 'fitact'" in refusal(
        lambda: found.difference("plain", "fitact", "1e-06")
    )
    said = refusal(lambda: found.interval("plain", "1e-05", "iou"))
    assert said.startswith("iou of 'plain' at '1e-05': 1 of 1 samples are NaN or infinite")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("plane", "1e-06"), "this campaign has no variant 'plane' (close: plain)"),
        (("plain", "bit x"), "this campaign has no cell 'bit x'; there are 1e-06, 1e-05, 0.001"),
        (("plain", "1e-06", "acuracy"), "this campaign has no measure 'acuracy' (close: accuracy"),
    ],
)
def test_a_name_that_is_not_there_is_refused_with_those_that_are(asked: tuple[str, ...], said: str) -> None:
    assert refusal(lambda: result(rows()).values(*asked)).startswith(said)


# As a table


def words(line: str) -> list[str]:
    return [part for part in line.split("  ") if part]


def test_a_table_has_a_line_per_variant_and_a_column_per_condition() -> None:
    draws = [row("plain", "1e-06", t, a) for t, a in enumerate((0.5, 0.7))] + [row("fitact", "1e-05", 0, 0.25)]
    lines = result(draws).table().splitlines()
    assert lines[0].split() == ["variant", "clean", "1e-6", "1e-5", "1e-3"]
    assert [word.strip() for word in words(lines[2])][:2] == ["plain", "90.0"]
    assert "60.0 [50.0, 70.0]" in lines[2]
    assert lines[3].split() == ["fitact", "89.0", "-", "25.0", "-"]  # of one draw there is no interval
    assert lines[4] == "accuracy in %: mean and 90 % interval over 0 to 2 draws each"


def test_a_table_of_what_never_happened_says_what_it_stays_below() -> None:
    found = result([row("plain", "1e-06", trial, sdc1=0.0) for trial in range(40)])
    assert "none (< 7.5)" in found.table("sdc1")


def test_a_table_of_a_metric_has_its_own_unit_and_no_cell_for_a_nan() -> None:
    found = result(
        [row("plain", "1e-06", t, metrics={"iou": 12.5}) for t in range(3)]
        + [row("plain", "1e-05", 0, metrics={"iou": nan})]
    )
    lines = found.table("iou").splitlines()
    assert lines[2].split() == ["plain", "0.7", "12.5", "[12.5,", "12.5]", "-", "-"]
    assert lines[-1].startswith("iou: mean")


def test_many_conditions_get_a_line_each() -> None:
    bits = tuple(Condition(f"bit {bit}", 40, 100, bit=bit) for bit in range(9))
    draws = [row("plain", "bit 7", trial, 0.5 + 0.01 * trial, sdc1=0.5 * (trial < 4)) for trial in range(40)]
    lines = result(draws, bits).table().splitlines()
    assert lines[0].split() == "condition variant draws accuracy worst % with SDC % with DUE".split()
    assert len(lines) == 2 + 2 * 9 + 1
    assert [word.strip() for word in words(lines[2 + 2 * 7])][::2] == ["bit 7", "40", "50.0", "none (< 7.5)"]
    low, high = stats.binomtest(4, 40).proportion_ci(0.9, method="wilson")
    assert f"10.0 [{100 * low:.1f}, {100 * high:.1f}]" in lines[2 + 2 * 7]


# For other programs

ODD = [
    row("plain", "1e-06", 0, 0.1 + 0.2, metrics={"iou": nan}, error='it said "no",\nü', seconds=1 / 3),
    row("fitact", "1e-06", 0, None, sdc1=None, metrics={}, way="skipped"),
    row("plain", "conv", 1, 5e-324, metrics={"iou": -inf}),
]
MIXED = (RATES[0], Condition("conv", 5, 96, tensor="conv.weight", bit=31, site=None))


def test_pandas_gets_one_line_per_row_with_types_that_do_not_depend_on_what_is_missing() -> None:
    table = result(ODD, MIXED).to_pandas()
    assert list(table) == (
        "variant cell rate tensor bit site trial faults accuracy sdc1 sdc5 due iou way seconds error checksum".split()
    )
    assert table["accuracy"].tolist()[::2] == [0.1 + 0.2, 5e-324]
    assert table["accuracy"].isna().tolist() == [False, True, False]
    assert table["bit"].tolist() == [pd.NA, pd.NA, 31]
    assert table["rate"].tolist()[:2] == [1e-6, 1e-6]
    assert table["iou"].tolist()[2] == -inf
    assert (table.dtypes == result([]).to_pandas().dtypes).all()


def bits(number: float) -> bytes:
    return struct.pack("d", number)


def test_csv_is_read_by_others_to_the_last_bit(tmp_path: Path) -> None:
    result(ODD, MIXED).export(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [bits(float(lines[i]["accuracy"])) for i in (0, 2)] == [bits(0.1 + 0.2), bits(5e-324)]
    assert lines[1]["accuracy"] == ""
    assert lines[0]["error"] == 'it said "no",\nü'
    assert [line["bit"] for line in lines] == ["", "", "31"]


def test_parquet_is_read_by_others_to_the_last_bit(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result(ODD, MIXED).export(str(tmp_path / "rows.parquet"))
    lines = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [bits(lines[i]["accuracy"]) for i in (0, 2)] == [bits(0.1 + 0.2), bits(5e-324)]
    assert lines[1]["accuracy"] is None
    assert [line["bit"] for line in lines] == [None, None, 31]
    assert bits(lines[0]["seconds"]) == bits(1 / 3)


def test_json_has_everything_and_is_read_by_strict_readers(tmp_path: Path) -> None:
    def strict(text: str) -> None:
        raise AssertionError(text)

    found = result(ODD, MIXED)
    found.export(tmp_path / "all.json")
    read = json.loads((tmp_path / "all.json").read_text("utf-8"), parse_constant=strict)
    assert read == found.as_json()
    assert list(read) == ["settings", "conditions", "sessions", "rows"]
    assert [one["metrics"] for one in read["rows"]] == [{"iou": "NaN"}, {}, {"iou": "-Infinity"}]
    assert read["settings"]["variants"]["fitact"]["clean"]["iou"] == "NaN"
    assert read["conditions"][1]["tensor"] == "conv.weight"
    assert bits(read["rows"][2]["accuracy"]) == bits(5e-324)


@pytest.mark.parametrize("name", ["rows.xlsx", "rows"])
def test_another_ending_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    said = refusal(lambda: result(ODD, MIXED).export(tmp_path / name))
    assert said.endswith(";\n  export to .csv, .parquet or .json")
    assert not list(tmp_path.iterdir())


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    said = refusal(lambda: result(ODD, MIXED).export(tmp_path / "rows.parquet"))
    assert said.endswith("pip install fitact-fx[parquet]")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fails(table: object, path: Path, **options: object) -> None:
        path.write_text("half")
        raise error

    target = tmp_path / "rows.csv"
    target.write_text("before")
    monkeypatch.setattr(pd.DataFrame, "to_csv", fails)
    with pytest.raises((CampaignError, KeyboardInterrupt)) as raised:
        result(ODD, MIXED).export(target)
    assert isinstance(raised.value, KeyboardInterrupt) or "No space left on device" in str(raised.value)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]
    assert target.read_text() == "before"


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    assert "there is no folder" in refusal(lambda: result(ODD, MIXED).export(tmp_path / "none" / "rows.csv"))
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in refusal(lambda: result(ODD, MIXED).export(tmp_path / "folder.csv"))


def test_a_result_without_rows_has_a_table_and_exports(tmp_path: Path) -> None:
    empty = result([])
    assert "over 0 draws each" in empty.table()
    for suffix in ("csv", "json"):
        empty.export(tmp_path / f"rows.{suffix}")
    assert (tmp_path / "rows.csv").read_text().startswith("variant,cell,rate,")
