"""`fitact-fx campaign`, `resume`, `report` and `compare`: what reaches the library, and what is printed where."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import cli_campaigns, cli_report
from fitact_fx.campaigns.kinds import SingleFaults
from fitact_fx.campaigns.result import CampaignResult
from fitact_fx.campaigns.running import run_campaign
from fitact_fx.campaigns.store import Store
from fitact_fx.cli import main
from fitact_fx.errors import CampaignError
from fitact_fx.faults import BitFlip

Streams = pytest.CaptureFixture[str]

MODULE = """
import torch
from torch import nn

import fitact_fx


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def hard():
    hardened = fitact_fx.harden(net(), granularity="layer")
    fitact_fx.set_bounds(hardened, {"*": (None, 2.0)})
    return hardened


def data():
    return torch.linspace(0, 1, 60).reshape(10, 6), torch.arange(10) % 3
"""
NET, HARD, DATA = (f"told_networks:{name}" for name in ("net", "hard", "data"))
BOTH = ["--variant", f"plain={NET}", "--variant", f"hard={HARD}", "--data", DATA]
SWEEP = [*BOTH, "--rate", "0.01", "--rate", "0.1", "--trials", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's own module in it, importable there and nowhere after the test."""
    (tmp_path / "told_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "told_networks", raising=False)
    return tmp_path


def printed(capsys: Streams, *words: str) -> str:
    assert main(words) == 0, capsys.readouterr().err
    streams = capsys.readouterr()
    assert streams.err == ""
    return streams.out


def stopped_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, the user presses Ctrl-C once a store holds that many rows."""
    add = Store.add

    def counted(store: Store, new: Any) -> None:
        add(store, new)
        if len(store.result().rows) >= rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "add", counted)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run_campaign` is called with."""
    seen: dict[str, Any] = {}

    def run(**given: Any) -> CampaignResult:
        seen.update(given)
        raise CampaignError("this test only looks at the call")

    monkeypatch.setattr(cli_campaigns, "run_campaign", run)
    return seen


FLAGS = [
    (["--rate", "1e-6", "--rate", "1e-5"], {"rates": [1e-6, 1e-5], "fault": BitFlip}),
    (["--kind", "single", "--per", "bit", "--margin", "0.1"], {"kind": SingleFaults("bit", 0.1)}),
    (["--rate", "0.1", "--format", "float32", "--target", "bounds"], {"format": "float32", "targets": ["bounds"]}),
    (["--rate", "0.1", "--at", "1", "--where", "after", "--transient"], {"at": ["1"], "permanent": False}),
    (["--rate", "0.1", "--at", "1", "--permanent"], {"at": ["1"], "permanent": True}),
    (["--rate", "0.1", "--trials", "5", "--until", "0.02", "--minimum", "4"], {"trials": 5, "until": 0.02}),
    (["--rate", "0.1", "--measure", "due", "--confidence", "0.9"], {"measure": "due", "confidence": 0.9}),
    (["--rate", "0.1", "--seed", "-3", "--workers", "2", "--threads", "2"], {"seed": -3, "workers": 2, "threads": 2}),
    (["--rate", "0.1", "--compile", "--no-suffixes", "--no-skip"], {"compile": True, "suffixes": False, "skip": False}),
    (["--rate", "0.1", "--suffix-memory", "512MiB", "--quiet"], {"suffix_memory": 1 << 29, "progress": False}),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS, ids=[" ".join(row[0]) for row in FLAGS])
def test_every_flag_reaches_run_campaign(flags: list[str], expected: dict[str, Any], call: dict[str, Any]) -> None:
    main(["campaign", *BOTH, "--store", "run.db", *flags])
    assert {name: call[name] for name in expected} == expected
    assert list(call["variants"]) == ["plain", "hard"]
    assert call["store"] == Path("run.db")
    assert call["words"]["folder"] == "."


def test_flags_win_over_the_file_and_what_they_say_is_kept_as_words(call: dict[str, Any]) -> None:
    text = f'model = "{NET}"\ndata = "{DATA}"\nrates = [0.5]\ntrials = 9\nscheduler = "x"\nstore = "in.db"\n'
    Path("exp.toml").write_text(f"{text}[variants.a]\n[variants.b]\n")
    main(["campaign", "exp.toml", "--rate", "0.1", "--workers", "2", "--variant", "c", "--html", "out.html"])
    assert (call["rates"], call["trials"], call["workers"]) == ([0.1], 9, 2)
    assert "executor" not in call
    assert call["store"] == Path("in.db")
    words = {"model": NET, "data": DATA, "rates": [0.1], "trials": 9, "workers": 2, "variants": {"c": {}}}
    assert call["words"] == words | {"folder": "."}
    main(["campaign", "exp.toml", "--kind", "single", "--workers", "1"])
    assert call["kind"] == SingleFaults()


def test_a_campaign_is_the_one_that_python_runs(capsys: Streams) -> None:
    out = printed(capsys, "campaign", *SWEEP, "--store", "run.db", "--html", "run.html", "--seed", "4")
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    hard = fitact_fx.harden(plain, granularity="layer")
    fitact_fx.set_bounds(hard, {"*": (None, 2.0)})
    data = torch.linspace(0, 1, 60).reshape(10, 6), torch.arange(10) % 3
    result = run_campaign({"plain": plain, "hard": hard}, data, rates=[0.01, 0.1], trials=3, seed=4)
    compared = ("variant", "cell", "trial", "checksum", "accuracy", "sdc1", "due")
    rows = [[getattr(row, name) for name in compared] for row in Store.read("run.db").rows]
    assert rows == [[getattr(row, name) for name in compared] for row in result.rows]
    assert all(line in out for line in result.table().splitlines())
    assert out.endswith("\n\nWritten: run.html.\n")
    assert Path("run.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_stopped_campaign_is_told_and_resumed_from_any_folder(
    capsys: Streams, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    whole = printed(capsys, "campaign", *SWEEP, "--store", "whole.db")
    Path("stores").mkdir()
    with monkeypatch.context() as interrupted:
        stopped_after(4, interrupted)
        assert main(["campaign", *SWEEP, "--store", "stores/run.db"]) == 130
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err == "stopped; `fitact-fx resume stores/run.db` goes on\nfitact-fx: interrupted\n"
    done = len(Store.read("stores/run.db").rows)
    told = printed(capsys, "report", "stores/run.db")
    far = f"Not finished: {done} of 12 draws. If nothing is running it: `fitact-fx resume stores/run.db` goes on."
    assert told.endswith(f"\n\n{far}\n")
    monkeypatch.chdir(Path("stores"))
    monkeypatch.delitem(sys.modules, "told_networks")
    assert printed(capsys, "resume", "run.db") == whole
    assert Path.cwd() == folder / "stores"
    assert printed(capsys, "report", "run.db") == whole
    assert printed(capsys, "resume", "run.db") == whole  # there is nothing left to do


def test_the_folder_and_its_store_can_move_together(
    capsys: Streams, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (folder / "before").mkdir()
    (folder / "told_networks.py").rename(folder / "before" / "told_networks.py")
    monkeypatch.chdir(folder / "before")
    with monkeypatch.context() as interrupted:
        stopped_after(2, interrupted)
        assert main(["campaign", *SWEEP, "--store", "run.db"]) == 130
    capsys.readouterr()
    monkeypatch.chdir(folder)
    (folder / "before").rename(folder / "after")
    monkeypatch.delitem(sys.modules, "told_networks")
    assert "3 draws of 3 per condition" in printed(capsys, "resume", "after/run.db")


def test_resume_changes_who_computes_and_nothing_else(capsys: Streams, call: dict[str, Any]) -> None:
    run = cli_campaigns.run_campaign
    with pytest.MonkeyPatch.context() as real:
        real.setattr(cli_campaigns, "run_campaign", run_campaign)
        printed(capsys, "campaign", *SWEEP, "--store", "run.db", "--seed", "5")
    assert cli_campaigns.run_campaign is run
    main(["resume", "run.db", "--workers", "3", "--suffix-memory", "1GB"])
    assert (call["workers"], call["suffix_memory"], call["seed"], call["trials"]) == (3, 10**9, 5, 3)
    with pytest.raises(SystemExit):
        main(["resume", "run.db", "--seed", "3"])
    assert "unrecognized arguments: --seed 3" in capsys.readouterr().err


def made(path: str, **given: Any) -> CampaignResult:
    """A finished campaign, made from Python."""
    x = torch.linspace(-1, 1, 60).reshape(10, 6)
    torch.manual_seed(0)
    nets = {name: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for name in ("plain", "other", "third")}
    defaults: dict[str, Any] = {"rates": [0.01, 0.1], "trials": 4, "store": path}
    return run_campaign(nets, (x, torch.arange(10) % 3), **(defaults | given))


def test_a_store_made_from_python_cannot_say_how_to_go_on(capsys: Streams) -> None:
    made("run.db")
    assert main(["resume", "run.db"]) == 2
    remedy = "run the same run_campaign call again: it goes on from it"
    assert capsys.readouterr().err == f"fitact-fx: error: run.db was made from Python;\n  {remedy}\n"


def test_a_report_is_text_json_tables_and_figures(capsys: Streams) -> None:
    result = made("run.db")
    document = json.loads(printed(capsys, "report", "run.db", "--json"))
    assert document == json.loads(json.dumps(result.as_json()))
    out = printed(capsys, "report", "run.db", "--export", "rows.csv", "--figures", "drawn", "--html", "out.html")
    assert out.endswith("\n\nWritten: rows.csv, drawn, out.html.\n")
    assert len(Path("rows.csv").read_text().splitlines()) == 1 + 24
    (figure,) = Path("drawn").glob("*.svg")
    assert figure.read_text("utf-8").startswith("<svg ")


def test_a_cell_that_stopped_early_is_finished(capsys: Streams) -> None:
    made("run.db", rates=[0.0], trials=40, until=0.4, minimum=5)
    assert len(Store.read("run.db").rows) < 120
    assert "Not finished" not in printed(capsys, "report", "run.db")


def difference(result: CampaignResult, variant: str, reference: str, cell: str, measure: str) -> float:
    return float((result.values(variant, cell, measure) - result.values(reference, cell, measure)).mean())


def test_variants_are_compared_with_the_reference(capsys: Streams) -> None:
    result = made("run.db")
    found = json.loads(printed(capsys, "compare", "run.db", "--json", "--reference", "other", "--measure", "sdc1"))
    assert (found["reference"], found["measure"], list(found["clean"])) == ("other", "sdc1", ["plain", "third"])
    means = {(row["variant"], row["condition"]): row["mean"] for row in found["differences"]}
    expected = {
        (name, cell): pytest.approx(difference(result, name, "other", cell, "sdc1"))
        for cell in ("0.01", "0.1")
        for name in ("plain", "third")
    }
    assert means == expected
    assert all(row["interval"][0] <= row["mean"] <= row["interval"][1] for row in found["differences"])
    lines = printed(capsys, "compare", "run.db").splitlines()
    assert lines[0] == "run.db: accuracy of each variant less that of plain, on the same faults, in points"
    assert lines[1] == "(mean and 95 % interval over the draws that both have)"
    assert lines[3].split() == ["condition", "other", "third", "draws"]
    clean: Mapping[str, Any] = {name: each["clean"] for name, each in result.settings["variants"].items()}
    less = [100 * (clean[name]["accuracy"] - clean["plain"]["accuracy"]) for name in ("other", "third")]
    assert [float(word) for word in lines[5].split()[2:]] == pytest.approx(less, abs=0.051)
    assert [line.split()[-1] for line in lines[6:]] == ["4", "4"]


def test_several_campaigns_stand_side_by_side(capsys: Streams) -> None:
    made("a.db")
    made("b.db", format="float32")
    out = printed(capsys, "compare", "a.db", "b.db", "--reference", "third")
    assert out.index("a.db: third") < out.index("a.db: plain") < out.index("b.db: third")
    assert "format is 'float32' and not 'q15.16'" in out
    assert "b.db" in json.loads(printed(capsys, "compare", "a.db", "b.db", "--json"))["unpaired"]


def test_metrics_have_no_points_to_compare_in(capsys: Streams) -> None:
    made("run.db", metrics={"mean": lambda outputs, _: float(outputs.nan_to_num(0, 0, 0).mean())}, measure="mean")
    first = printed(capsys, "compare", "run.db").splitlines()[0]
    assert first == "run.db: mean of each variant less that of plain, on the same faults"


ERRORS = [
    ("campaign", "nothing says where the campaign is kept;\n  add --store FILE, such as --store run.db"),
    ("campaign no.toml", "there is no file no.toml;\n  give the path of a TOML file, or say it all with flags"),
    (f"campaign --store x.db --variant a={NET}", "nothing says how often faults strike;\n  add --rate 1e-6"),
    (
        f"campaign --store x.db --variant a={NET} --variant a",
        "--variant gives two variants the same name;\n  give each",
    ),
    (f"campaign --store no/x.db {' '.join(SWEEP)}", "there is no folder no for the store x.db;\n  make it, or choose"),
    (f"campaign --store x.db {' '.join(SWEEP)} --html no/x.html", "there is no folder no for the report;\n  make it"),
    (f"campaign --store run.db {' '.join(SWEEP)}", "run.db holds another campaign;\n  "),
    (f"campaign --store x.db {' '.join(SWEEP)} --seed 3 --until 3", "until is 3.0, and it is the half-width of an int"),
    (f"campaign --store x.db {' '.join(SWEEP)} --rate nan", "rates in the command line is [0.01, 0.1, nan];\n  give a"),
    (f"campaign --store x.db {' '.join(SWEEP)} --suffix-memory x", "suffix_memory in the command line is 'x';\n  give"),
    ("resume no.db", "there is no file no.db;\n  give the path of a campaign's store"),
    ("report told_networks.py", "told_networks.py is cut, damaged or not a campaign's store"),
    ("report run.db --export x.txt", "x.txt ends in '.txt';\n  export to .csv, .parquet or .json"),
    ("compare run.db run.db", "a store is given twice;\n  name each once"),
    (
        "compare run.db --reference palin",
        "there is no variant 'palin' (close: plain);\n  the variants of run.db are pla",
    ),
    ("compare run.db --measure iou", "this campaign has no measure 'iou'"),
    ("compare one.db", "one.db has one variant, plain;\n  give another store to compare it with"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[row[0] for row in ERRORS])
def test_an_error_is_told_on_stderr(words: str, message: str, capsys: Streams) -> None:
    if "run.db" in words:
        made("run.db", trials=2)
    if "one.db" in words:
        printed(capsys, "campaign", "--variant", f"plain={NET}", "--data", DATA, "--rate", "0", "--store", "one.db")
    assert main(words.split()) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(f"fitact-fx: error: {message}")
    assert "a mistake of fitact-fx" not in streams.err
    assert not Path("x.db").exists()


def test_a_page_that_could_not_be_drawn_is_refused_before_the_work(
    capsys: Streams, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any]
) -> None:
    monkeypatch.setattr(cli_report, "find_spec", lambda name: None)
    assert main(["campaign", *SWEEP, "--store", "x.db", "--html", "x.html"]) == 2
    needs = "the report has figures, which need matplotlib;\n  pip install 'fitact-fx[plot]'"
    assert capsys.readouterr().err == f"fitact-fx: error: {needs}\n"
    assert not call


def test_ctrl_c_before_there_is_a_store_says_so(capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(**given: Any) -> CampaignResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_campaigns, "run_campaign", pressed)
    assert main(["campaign", *SWEEP, "--store", "x.db"]) == 130
    assert capsys.readouterr().err == "stopped; nothing was kept yet\nfitact-fx: interrupted\n"
