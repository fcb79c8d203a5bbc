"""The resilience report: what it says, that it is whole and safe, and that it needs nothing but itself."""

import re
import shlex
import stat
from dataclasses import replace
from functools import partial
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_campaigns as synthetic
import torch
from scipy import stats
from torch import nn

import fitact_fx
from fitact_fx import cli
from fitact_fx.campaigns.kinds import Exhaustive, SingleFaults
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip, Burst, FaultList
from fitact_fx.reports.campaigns.compared import compared, compared_json
from fitact_fx.reports.campaigns.estimates import Stratum, pooled, sampled
from fitact_fx.reports.campaigns.page import page, write_page
from fitact_fx.reports.campaigns.text import text
from fitact_fx.reports.campaigns.words import duration, estimate, percent, verdict
from fitact_fx.statistics import Interval

VOID = {"meta", "link", "br"}
ORDER = """summary fault-model campaign clean-cost results comparison breakdown coverage overheads failures limits
environment""".split()


class Reader(HTMLParser):
    """Text by section, the sections' order, every tag and attribute; a tag that is not closed is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sections: dict[str, str] = {}
        self.headed: dict[str, str] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._now = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._now = dict(attrs)["id"] or ""
            self.sections[self._now] = ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "h2" in self.open:
            self.headed[self._now] = data
        if self._now and not {"title", "desc", "style"} & set(self.open):
            self.sections[self._now] += data + " "


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def one_line(text: str) -> str:
    return " ".join(text.split())


def sections(result: CampaignResult) -> dict[str, str]:
    return {name: one_line(text) for name, text in read(page(result)).sections.items()}


@pytest.fixture(scope="module")
def sweep() -> CampaignResult:
    return synthetic.rate_sweep()


@pytest.mark.parametrize(
    "make",
    [
        synthetic.rate_sweep,
        synthetic.per_tensor,
        synthetic.per_bit,
        synthetic.per_site,
        synthetic.exhaustive,
        synthetic.single,
    ],
)
def test_every_kind_of_campaign_has_all_sections_in_order(make: Any) -> None:
    reader = read(page(make()))
    assert list(reader.sections) == ORDER
    assert list(reader.headed) == ORDER
    assert all(reader.headed.values())
    assert all(one_line(text) for text in reader.sections.values())


def test_the_page_needs_no_network_and_no_script(sweep: CampaignResult) -> None:
    reader = read(page(sweep))
    assert not {"script", "iframe", "img", "object"} & set(reader.tags)
    outside = [value for name, value in reader.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:")) for value in outside)
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org/)", page(sweep))
    assert not [name for name, _ in reader.attributes if name.startswith("on")]


def test_ids_are_unique_and_every_link_leads_somewhere() -> None:
    for result in (synthetic.rate_sweep(trials=5), synthetic.exhaustive()):
        attributes = read(page(result)).attributes
        ids = [value for name, value in attributes if name == "id"]
        assert len(set(ids)) == len(ids)
        links = {value[1:] for name, value in attributes if name in ("href", "xlink:href") and value[0] == "#"}
        used = {name for _, value in attributes for name in re.findall(r"url\(#([^)]+)\)", value)}
        assert links | used <= set(ids)


def test_the_same_result_gives_the_same_page(sweep: CampaignResult) -> None:
    assert page(sweep) == page(replace(sweep))


def test_names_are_escaped_everywhere() -> None:
    evil = '<script>alert("1")</script>&amp;'
    plain = synthetic.rate_sweep((evil, "fitact"), trials=4)
    settings = dict(plain.settings) | {"fault": evil, "data": evil, "metrics": [evil]}
    settings["variants"][evil]["coverage"] = [{"site": evil, "kind": evil, "protected": False, "how": evil}]
    rows = tuple(replace(row, error=evil, checksum=evil) for row in plain.rows)
    result = replace(plain, settings=settings, rows=rows, sessions=({"platform": evil, "versions": {evil: evil}},))
    html = page(result)
    assert "<script" not in html
    told = read(html).sections
    shown_in = {name for name, text in told.items() if evil in text}
    expected = {"summary", "fault-model", "campaign", "results", "coverage", "failures", "environment"}
    assert expected <= shown_in


def test_the_summary_says_what_is_lost_and_whether_protection_helped(sweep: CampaignResult) -> None:
    told = sections(sweep)["summary"]
    means = {
        name: 100 * np.mean([row.accuracy for row in sweep.rows if row.variant == name and row.cell == "0.0001"])
        for name in sweep.variants
    }
    assert "At a bit error rate of 1e-4, plain keeps" in told
    assert f"plain keeps {means['plain']:.1f} % [" in told
    assert f"({92.4 - means['plain']:.1f} points lost)" in told
    gained = f"{means['fitact'] - means['plain']:.1f} points ["
    assert f"On the same faults (40 draws), fitact is {gained}" in told
    assert "better than plain" in told
    assert "what ruins fewer than 7.5 % of draws may not have been seen" in told


def test_accuracies_are_in_per_cent_with_one_decimal_and_their_interval(sweep: CampaignResult) -> None:
    told = sections(sweep)["results"]
    found = sweep.interval("ranger", "1e-05")
    assert f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]" in told
    worst = min(row.accuracy or 0 for row in sweep.rows if row.variant == "ranger" and row.cell == "1e-05")
    assert f"{100 * worst:.1f}" in told


def test_an_event_that_no_draw_showed_is_bounded_by_the_rule_of_three(sweep: CampaignResult) -> None:
    assert "none (< 7.5)" in sections(sweep)["results"]  # 3 / 40


def test_the_share_of_draws_with_any_due_has_the_interval_of_wilson(sweep: CampaignResult) -> None:
    hit = sum(row.due > 0 for row in sweep.rows if row.variant == "plain" and row.cell == "0.0001")
    oracle = stats.binomtest(hit, 40).proportion_ci(0.95, "wilson")
    assert f"{100 * hit / 40:.1f} [{100 * oracle.low:.1f}, {100 * oracle.high:.1f}]" in sections(sweep)["results"]


def test_every_variant_is_compared_with_the_first_and_the_last_with_the_others(sweep: CampaignResult) -> None:
    told = sections(sweep)["comparison"]
    for pair in ("ranger - plain", "fitact - plain", "fitact - ranger"):
        assert pair in told
    assert "ranger - fitact" not in told
    assert "Area under the curve" in told
    assert "nothing to compare" in sections(synthetic.rate_sweep(("plain",), trials=5))["comparison"]


def test_what_a_campaign_cannot_tell_apart_it_says_with_the_command_that_would(sweep: CampaignResult) -> None:
    told = sections(sweep)["breakdown"]
    for part in ("site", "tensor", "bit"):
        assert f"did not tell {part}s apart; this one would: fitact-fx campaign … --kind single --per {part}" in told
    assert "--per site --at '*'" in told
    assert "did not tell bits of each tensor apart; this one would: fitact-fx campaign … --kind exhaustive" in told
    assert "--per tensor" not in sections(synthetic.per_tensor(4))["breakdown"]


def test_a_long_campaign_shows_its_20_worst_and_folds_the_rest() -> None:
    result = synthetic.per_tensor(60, trials=4)
    html = page(result)
    found = re.search(r'id="breakdown".*?By tensor, in % of samples(.*?)<details>(.*?)</details>', html, re.DOTALL)
    assert found is not None
    shown, folded = found.groups()
    body = re.compile(r"<td class=\"words\">([^<]+)</td>")
    worst = body.findall(shown)
    hurt = {c.name: np.mean(result.values("plain", c.name, "sdc1")) for c in result.conditions}
    assert len(worst) == 20
    assert min(hurt[name] for name in worst) >= max(hurt[name] for name in hurt if name not in worst)
    assert body.findall(folded) == [condition.name for condition in result.conditions]
    assert "Folded rows show means alone" in html


def test_an_exhaustive_campaign_is_put_together_without_intervals() -> None:
    result = synthetic.exhaustive(("plain",))
    told = sections(result)["breakdown"]
    # Each place counts once, whatever cell it is in.
    harm = [row.sdc1 or 0.0 for row in result.rows if row.cell.startswith("conv1.weight")]
    assert f"conv1.weight 64 {100 * np.mean(harm):.1f} {50 * np.mean(harm):.1f} 0.0" in told
    assert "nothing is estimated" in sections(result)["summary"]
    half = replace(result, rows=tuple(row for row in result.rows if row.trial < 2))
    assert "not a sample" in sections(half)["summary"]


def test_draws_of_several_faults_are_not_called_single() -> None:
    several = synthetic.single()
    told = sections(replace(several, settings=dict(several.settings) | {"kind": "draws"}))
    assert "One draw of faults, wherever it strikes, makes wrong" in told["summary"]
    assert "What one draw of faults does" in told["results"]
    assert "faults that come together" not in told["limits"]
    assert "faults that come together" in sections(several)["limits"]


def test_coverage_names_each_site_and_why_it_is_skipped(sweep: CampaignResult) -> None:
    told = sections(sweep)["coverage"]
    assert "18 of 27 sites protected" in told
    assert "layer3.0.relu relu skipped no bound" in told
    assert "layer1.0.relu relu protected neuron, zero" in told


def test_overheads_are_measured_against_the_first_variant(sweep: CampaignResult) -> None:
    told = sections(sweep)["overheads"]
    assert "fitact 304.7 KiB - 28.9 % 550 ms 1.10x" in told
    assert "480 trials in 62 s, 7.8 trials per second, in 1 session." in told


def test_metrics_that_raised_are_listed_trial_by_trial(sweep: CampaignResult) -> None:
    assert "No metric failed in any of 480 trials." in sections(sweep)["failures"]
    rows = tuple(replace(row, error="iou: ZeroDivisionError") if row.trial == 3 else row for row in sweep.rows)
    assert "1e-6 ranger 3 iou: ZeroDivisionError" in sections(replace(sweep, rows=rows))["failures"]


def test_limits_name_their_numbers(sweep: CampaignResult) -> None:
    told = sections(sweep)["limits"]
    for said in (
        "No failure rate in time (FIT) and no ASIL claim",
        "each mean stands on 40 draws",
        "rarer than 3 / 40 draws, 7.5 %, could not be seen",
        "256 samples of one data set, so that one sample is 0.4 points",
        "Not hit: buffers (such as the running means of BatchNorm), activations while they are computed",
    ):
        assert said in told


def test_the_stop_rule_says_which_cells_stopped_and_that_looking_often_has_a_price() -> None:
    whole = synthetic.rate_sweep(("plain", "fitact"), until=0.1)
    rows = tuple(row for row in whole.rows if row.trial < 35 or row.variant == "plain" or row.cell != "1e-06")
    told = sections(replace(whole, rows=rows))["campaign"]
    assert "no wider than ±10.0 points, after 30 draws at least" in told
    assert "Stopped early: fitact at 1e-6." in told
    assert "Looking often makes intervals a bit optimistic" in told


def test_a_campaign_that_has_not_begun_says_so(sweep: CampaignResult) -> None:
    told = sections(replace(sweep, rows=(), sessions=()))
    assert "No trial has run yet" in told["summary"]
    assert "4 conditions" in text(replace(sweep, rows=()))


def test_outputs_without_classes_are_reported_by_their_metric() -> None:
    plain = synthetic.rate_sweep(("plain", "fitact"), trials=6, metrics=["iou"], measure="iou", labelled=0)
    rows = tuple(
        replace(row, accuracy=None, sdc1=None, sdc5=None, metrics={"iou": row.accuracy or 0.0}) for row in plain.rows
    )
    told = sections(replace(plain, rows=rows))
    assert "plain has iou 0." in told["summary"]
    assert "higher than plain" in told["summary"]
    assert "SDC-1" not in told["breakdown"]
    broken = tuple(replace(row, metrics={"iou": float("nan")}) for row in rows)
    assert "not finite in some draws" in sections(replace(plain, rows=broken))["results"]


REPLAYED: dict[str, dict[str, Any]] = {
    "rates": {"rates": [0.01], "trials": 5},
    "a field of the word": {"rates": [0.01], "trials": 5, "fault": partial(BitFlip, bits=["sign", 30])},
    "a fault model of its own": {"fault": Burst(count=2, width=2), "trials": 5},
    "tensors": {"kind": SingleFaults("tensor"), "trials": 5},
    "bits": {"kind": SingleFaults("bit"), "trials": 2},
    "sites": {"kind": SingleFaults("site"), "at": "*", "trials": 5},
    "exhaustive": {"kind": Exhaustive(bits="sign"), "targets": ["parameters:2.*"]},
    "activations": {"rates": [0.01], "trials": 5, "at": ["*"], "permanent": False},
}


@pytest.mark.parametrize("asked", REPLAYED.values(), ids=REPLAYED)
def test_the_lines_that_replay_a_trial_draw_the_very_list(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    inputs = torch.randn(16, 5)
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [inputs])
    variants = {"plain": model, "fitact": hard}
    result = run_campaign(variants, (inputs, model(inputs).argmax(1)), progress=False, **asked)
    shown = re.search(r"as they were given:</p>\s*<pre><code>(.*?)</code>", page(result), re.DOTALL)
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    done: dict[str, Any] = {"variants": variants, "inputs": inputs}
    exec(unescape(shown[1]), done)  # holds an assertion on the checksum
    (saved,) = tmp_path.iterdir()
    assert FaultList.load(saved) == done["faults"]


def test_the_command_that_draws_a_trial_draws_the_very_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net_of_page.py").write_text("from torch import nn\nnet = lambda: nn.Linear(40, 30)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, inputs = nn.Linear(40, 30).eval(), torch.randn(8, 40)
    result = run_campaign(
        {"plain": model}, (inputs, model(inputs).argmax(1)), rates=[0.001], trials=3, seed=5, progress=False
    )
    shown = re.search(r"In a shell:</p>\s*<pre><code>(.*?)</code>", page(result), re.DOTALL)
    assert shown is not None
    draw, _ = unescape(shown[1]).replace("\\\n", "").splitlines()
    assert cli.main(shlex.split(draw.replace("MODEL", "net_of_page:net"))[1:]) in (0, None)
    (saved,) = tmp_path.glob("*.safetensors")
    assert FaultList.load(saved).checksum in {row.checksum for row in result.rows}


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, sweep: CampaignResult) -> None:
    path = write_page(sweep, tmp_path / "report.html")
    assert path.read_text("utf-8") == page(sweep)
    assert stat.S_IMODE(path.stat().st_mode) & 0o400
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(
        CampaignError, match=r"cannot be written: No such file.*\n  give a path in a folder that can be"
    ):
        write_page(sweep, tmp_path / "nowhere" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(CampaignError, match="cannot be written"):
        write_page(sweep, tmp_path / "folder.html")
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder.html", path]


def test_the_terminal_gets_settings_table_answer_and_stop_rule(sweep: CampaignResult) -> None:
    told = text(sweep, 80)
    assert told.startswith("rate sweep: a bit flips; q15.16 parameters and bounds; seed 7, 40 draws")
    assert sweep.table() in told
    assert "fitact is 51" in told
    assert "No stop rule" in told
    prose = told.replace(sweep.table(), "")
    assert max(map(len, prose.splitlines())) <= 80


def test_a_long_table_is_cut_in_the_terminal() -> None:
    told = text(synthetic.per_tensor(40, trials=3))
    assert len(told.splitlines()) < 80
    assert "more lines: the report has all of them" in told


def test_campaigns_on_the_same_faults_are_compared_in_pairs() -> None:
    results = {"A.db": synthetic.rate_sweep(("plain",)), "B.db": synthetic.rate_sweep(("fitact",))}
    told = compared(results)
    here, there = (
        np.array([row.accuracy for row in result.rows if row.cell == "1e-05"]) for result in results.values()
    )
    assert f"1e-5, 40 pairs: B.db: fitact is {100 * (there - here).mean():.1f} points [" in told
    assert "not paired" not in told
    (found,) = [one for one in compared_json(results)["differences"] if one["condition"] == "1e-05"]
    assert found["mean"] == pytest.approx((there - here).mean())
    assert (found["of"], found["against"], found["pairs"]) == ("B.db: fitact", "A.db: plain", 40)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"format": "float32"}, "format is 'float32' and not 'q15.16'"),
        ({"seed": 8}, "seed is 8 and not 7"),
        ({"data": "other"}, "data is 'other' and not '5b0c9d'"),
    ],
)
def test_campaigns_on_other_faults_are_not_subtracted(changed: dict[str, Any], reason: str) -> None:
    results = {"A": synthetic.rate_sweep(trials=3), "B": synthetic.rate_sweep(("fitact",), trials=3, **changed)}
    told = compared(results)
    assert f"B is not paired with A: {reason}. Their draws cannot be subtracted." in told
    assert "B: fitact is" not in told
    assert compared_json(results)["unpaired"] == {"B": [reason]}


def test_campaigns_without_a_common_condition_and_a_single_one_are_told() -> None:
    sweep, bits = synthetic.rate_sweep(("plain",), trials=3), synthetic.per_bit(("plain",))
    assert "they have no condition in common" in compared({"A": sweep, "B": bits})
    with pytest.raises(CampaignError, match="two campaigns or more; got 1"):
        compared({"A": sweep})


def test_strata_are_pooled_by_population() -> None:
    chance = np.random.default_rng(0)
    values = [chance.uniform(size=50) < share for share in (0.1, 0.6)]
    strata = [
        Stratum(population, sampled(sample.astype(float), lambda: Interval(0, 0, 1), 0.95, event=True), sample * 1.0)
        for population, sample in zip((300, 100), values, strict=True)
    ]
    found = pooled(strata, 0.95)
    assert found is not None
    assert found.mean == pytest.approx(0.75 * values[0].mean() + 0.25 * values[1].mean())
    # Against many repetitions of the draw: the interval is as wide as 2 * 1.96 standard deviations of the mean.
    shares = [sample.mean() for sample in values]
    again = [
        0.75 * chance.binomial(50, shares[0]) / 50 + 0.25 * chance.binomial(50, shares[1]) / 50 for _ in range(4000)
    ]
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(again), rel=0.08)


def test_the_rule_of_three_over_strata_holds_where_it_is_worst() -> None:
    strata = [
        Stratum(900, sampled(np.zeros(n), lambda: Interval(0, 0, 0), 0.95, event=True), np.zeros(n)) for n in (30, 90)
    ]
    found = pooled(strata, 0.95)
    assert found is not None
    # All harm in the stratum with few draws: this much, and none is seen in one of twenty campaigns.
    assert found.high == pytest.approx(0.5 * 3 / 30)
    assert pytest.approx(0.05, abs=0.01) == (1 - 3 / 30) ** 30


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.5234, "52.3"), (0.0, "0.0"), (-0.00001, "-0.0010"), (0.00034, "0.034"), (3e-9, "3e-7"), (1.0, "100.0")],
)
def test_small_shares_keep_two_digits(share: float, shown: str) -> None:
    assert percent(share) == shown


def test_words_for_intervals() -> None:
    assert estimate(None, "due") == "-"
    one = sampled(np.array([0.5]), lambda: Interval(0.5, -np.inf, np.inf), 0.95, event=False)
    assert estimate(one, "accuracy") == "50.0"
    assert verdict(Interval(0.1, 0.05, 0.15), "accuracy") == "better"
    assert verdict(Interval(0.1, 0.05, 0.15), "sdc1") == "worse"
    assert verdict(Interval(0.1, -0.05, 0.15), "sdc1") == "not to be told apart"
    assert [duration(seconds) for seconds in (3.24, 61.5, 600, 9000)] == ["3.2 s", "62 s", "10.0 min", "2.5 h"]
