"""A campaign in words: what a TOML file may say, how wrong values are told, and what `run_campaign` is called with."""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.campaign_file import checked, read_file, variant_of
from fitact_fx.campaign_keys import KEYS
from fitact_fx.campaign_words import arguments, computing
from fitact_fx.campaigns.kinds import Exhaustive, SingleFaults
from fitact_fx.errors import CampaignError, FitactError
from fitact_fx.faults import BitFlip
from fitact_fx.faults.fault_models import find_fault_model

MODULE = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def pair():
    return torch.linspace(0, 1, 60).reshape(10, 6), torch.arange(10) % 3
"""
NET = "worded_networks:net"
EVERYTHING = """
model = "worded_networks:net"
weights = "w.safetensors"
data = "d.npz"
inputs = "pixels"
labels = "classes"
samples = 8
batch = 4
kind = "rates"
rates = [1e-6, 1]
fault = "burst"
bits = ["exponent", 31]
width = 2
format = "float32"
targets = "parameters"
at = ["0*", "2*"]
where = "after"
permanent = false
seed = 3
trials = 7
until = 0.25
minimum = 5
measure = "due"
confidence = 0.9
workers = 2
suffix_memory = "1.5MiB"
suffixes = false
skip = true
threads = 1
compile = true
store = "run.db"
html = "../out.html"
per = "bit"
margin = 0.5
scheduler = "tcp://host:8786"

[variants]
plain = "worded_networks:net"

[variants.hard]
hardened = "h.safetensors"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a user's own module in it, importable there and nowhere after the test."""
    (tmp_path / "worded_networks.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "worded_networks", raising=False)
    return tmp_path


def file_of(text: str, path: str = "exp.toml") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)
    return path


def test_every_key_can_stand_in_a_file_and_paths_are_relative_to_it() -> None:
    words = read_file(file_of(EVERYTHING, "inside/exp.toml"))
    assert words.keys() == {key.name for key in KEYS} | {"variants"}
    assert words["weights"] == str(Path("inside/w.safetensors"))
    assert words["data"] == str(Path("inside/d.npz"))
    assert words["html"] == str(Path("inside/../out.html"))
    assert words["variants"] == {"plain": {"model": NET}, "hard": {"hardened": str(Path("inside/h.safetensors"))}}
    assert words["rates"] == [1e-6, 1.0]
    assert words["targets"] == ["parameters"]
    assert words["bits"] == ["exponent", 31]
    assert words["suffix_memory"] == 3 << 19
    assert json.loads(json.dumps(words)) == words  # a store can keep them
    assert checked(words, "again") == words


def test_an_absolute_path_and_a_factory_stay_what_they_are(tmp_path: Path) -> None:
    words = read_file(file_of(f'data = "cifar10:{tmp_path}/c.npz"\nstore = "/x/run.db"\n', "inside/exp.toml"))
    assert words == {"data": f"cifar10:{tmp_path}/c.npz", "store": str(Path("/x/run.db"))}
    assert read_file(file_of('data = "a.b:c"', "inside/exp.toml")) == {"data": "a.b:c"}


WRONG = [
    (
        "trails = 3",
        "exp.toml has an unknown key 'trails' (close: trials, threads, until);\n  see fitact-fx campaign --help",
    ),
    ("rate = 1e-6", "exp.toml has an unknown key 'rate' (close: rates"),
    ("[variant.plain]\nmodel='x'", "exp.toml has an unknown key 'variant' (close: variants"),
    ("[variants.plain]\nweight='x'", "exp.toml has an unknown key 'variants.plain.weight' (close: variants.plain.weig"),
    ("trials = '100'", "trials in exp.toml is '100';\n  give a whole number"),
    ("trials = true", "trials in exp.toml is True;\n  give a whole number"),
    ("seed = 0.5", "seed in exp.toml is 0.5;\n  give a whole number"),
    ("rates = ['x']", "rates in exp.toml is ['x'];\n  give a number, or a list of numbers"),
    ("rates = []", "rates in exp.toml is [];\n  give a number, or a list of numbers"),
    ("until = nan", "until in exp.toml is nan;\n  give a number"),
    ("compile = 1", "compile in exp.toml is 1;\n  give true or false"),
    ("at = [1]", "at in exp.toml is [1];\n  give text, or a list of texts"),
    ("data = ''", "data in exp.toml is '';\n  give text"),
    ("bits = [1.5]", "bits in exp.toml is [1.5];\n  give a field such as 'exponent', the number of a bit"),
    ("suffix_memory = '3 bananas'", "suffix_memory in exp.toml is '3 bananas';\n  give a size such as '512MiB'"),
    ("[trials]\nx = 1", "trials in exp.toml is a table;\n  give a whole number"),
    ("variants = 3", "variants in exp.toml is no table;\n  write [variants.plain], and under it"),
    ("variants.plain = 3", "variants.plain in exp.toml is 3;\n  write [variants.plain], and under it"),
    ("variants.plain.model = 3", "variants.plain.model in exp.toml is 3;\n  give text"),
    ("trials = ", "exp.toml is no TOML: Invalid value (at end of document);\n  see"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_key_or_value_is_named_with_its_file(text: str, message: str) -> None:
    with pytest.raises(CampaignError) as refused:
        read_file(file_of(text))
    assert str(refused.value).startswith(message)


def test_a_file_that_is_not_there_or_no_text_is_refused() -> None:
    with pytest.raises(CampaignError, match=r"there is no file no\.toml;\n  give the path of a TOML file"):
        read_file("no.toml")
    Path("raw.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CampaignError, match=r"raw\.toml is no TOML: 'utf-8' codec"):
        read_file("raw.toml")


def test_a_variant_is_one_flag() -> None:
    assert variant_of("plain") == ("plain", {})
    assert variant_of("a=b.c:d,hardened=h,weights=w=1") == ("a", {"model": "b.c:d", "hardened": "h", "weights": "w=1"})
    for wrong in ("a=b:c,weight=x", "a=b:c,h", "a,model=b:c,model=d:e", "a,weights="):
        with pytest.raises(CampaignError, match=r"is none;\n  write NAME\[=SPEC\]\[,weights=FILE\]"):
            variant_of(wrong)
    with pytest.raises(CampaignError, match="has no name"):
        variant_of("=b:c")


BASE: dict[str, Any] = {"model": NET, "data": "worded_networks:pair", "rates": [1e-3]}


def test_words_become_the_arguments_of_run_campaign() -> None:
    same = {"format": "float32", "targets": ["parameters"], "at": ["1"], "where": "after", "permanent": False}
    same |= {"trials": 7, "until": 0.25, "minimum": 5, "measure": "due", "confidence": 0.9, "seed": 3}
    same |= {"threads": 1, "compile": True, "suffixes": False, "skip": True, "suffix_memory": 5}
    found = arguments(BASE | same)
    assert {name: value for name, value in found.items() if name in same} == same
    assert found.keys() == same.keys() | {"variants", "data", "fault", "rates"}
    assert (found["fault"], found["rates"], list(found["variants"])) == (BitFlip, [1e-3], ["plain"])


def test_what_is_not_said_is_left_to_run_campaign() -> None:
    assert arguments(BASE).keys() == {"variants", "data", "fault", "rates"}


def test_a_fault_gets_its_options_and_a_kind_its_own() -> None:
    found = arguments(BASE | {"fault": "burst", "width": 3, "bits": ["fraction"]})["fault"]
    assert isinstance(found, partial)
    assert found(count=1) == find_fault_model("burst")(count=1, width=3, bits=["fraction"])
    without_rates = {name: value for name, value in BASE.items() if name != "rates"}
    single = arguments(without_rates | {"kind": "single", "per": "bit", "margin": 0.1, "confidence": 0.9})
    assert single["kind"] == SingleFaults("bit", 0.1, 0.9)
    assert "rates" not in single
    assert arguments(without_rates | {"kind": "exhaustive"})["kind"] == Exhaustive()


def test_models_are_the_seeded_ones_and_bounds_and_weights_come_from_files() -> None:
    torch.manual_seed(5)
    trained: nn.Module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    save_file(trained.state_dict(), "w.safetensors")
    hard = fitact_fx.harden(trained, granularity="layer")
    fitact_fx.set_bounds(hard, {"*": (None, 0.75)})
    fitact_fx.save(hard, "h.safetensors")
    variants = {"plain": {}, "hard": {"hardened": "h.safetensors"}, "other": {"model": NET}}
    found = arguments(BASE | {"weights": "w.safetensors", "variants": variants})["variants"]
    assert list(found) == ["plain", "hard", "other"]
    assert found["plain"][0].weight.equal(trained[0].weight)
    assert found["hard"].get_parameter("0.weight").equal(trained[0].weight)
    assert [float(site.upper) for site in bounded_sites(found["hard"]).values()] == [0.75]
    assert not found["other"][0].weight.equal(trained[0].weight)
    assert found["other"][0].weight.equal(arguments(BASE)["variants"]["plain"][0].weight)


CONFLICTS = [
    ({"rates": None}, "nothing says how often faults strike;\n  add --rate 1e-6"),
    ({"kind": "single"}, "kind single has no rates;\n  leave out --rate, or choose --kind rates"),
    ({"per": "bit"}, "kind rates has no per;\n  leave out --per, or choose --kind single"),
    ({"kind": "exhaustive", "rates": None, "margin": 0.1}, "kind exhaustive has no margin;\n  leave out --margin"),
    ({"kind": "sinlge"}, "unknown kind of campaign 'sinlge'; choose one of exhaustive, rates, single"),
    ({"kind": "single", "rates": None, "per": "layer"}, "unknown stratum 'layer'; choose one of "),
    ({"fault": "burst"}, "the fault 'burst' needs a width;\n  add --width"),
    ({"width": 3}, "the fault 'bit-flip' has no width;\n  leave out --width"),
    ({"fault": "flip"}, "unknown fault model 'flip'; choose one of "),
    ({"where": "after"}, "nothing says which activations;\n  add --at GLOB"),
    ({"permanent": True}, "nothing says which activations;\n  add --at GLOB"),
    ({"model": None}, "nothing says what to measure;\n  add --variant plain=SPEC"),
    ({"model": None, "variants": {"a": {}}}, "variant 'a' has no model;\n  add --variant a=SPEC, or --model SPEC"),
    ({"model": "nowhere:net"}, "variant 'plain': cannot find nowhere:net:\n  ModuleNotFoundError"),
    ({"weights": "no.safetensors"}, "variant 'plain': no weights at no.safetensors"),
    (
        {"variants": {"a": {"hardened": "no.file"}}},
        "variant 'a': there is no file no.file;\n  pass the path that fitac",
    ),
    ({"data": None}, "nothing says what to measure on;\n  add --data: digits, cifar10:FILE.npz, FILE.npz, or "),
]


@pytest.mark.parametrize(("change", "message"), CONFLICTS, ids=[str(row[0]) for row in CONFLICTS])
def test_words_that_make_no_sense_are_refused_with_the_remedy(change: dict[str, Any], message: str) -> None:
    words = {name: value for name, value in (BASE | change).items() if value is not None}
    with pytest.raises(FitactError) as refused:
        arguments(words)
    assert str(refused.value).startswith(message)


def test_workers_are_processes_here_and_both_at_once_are_refused() -> None:
    with computing({}) as where:
        assert where == {}
    with computing({"workers": 3}) as where:
        assert where == {"workers": 3}
    with (
        pytest.raises(CampaignError, match="workers and a scheduler both say who computes"),
        computing({"workers": 1, "scheduler": "x"}),
    ):
        pass


def test_a_scheduler_without_dask_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = r"a scheduler needs Dask;\n  install it with: pip install 'fitact-fx\[distributed\]'"
    with pytest.raises(CampaignError, match=message), computing({"scheduler": "tcp://host:1"}):
        pass


def test_a_scheduler_is_connected_to_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Client:
        def __init__(self, address: str, timeout: str) -> None:
            if address == "tcp://gone:1":
                raise OSError("timed out")
            log.append(address)

        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None:
            log.append("left")

    monkeypatch.setitem(sys.modules, "distributed", type(sys)("distributed"))
    monkeypatch.setattr(sys.modules["distributed"], "Client", Client, raising=False)
    with computing({"scheduler": "tcp://host:1"}) as where:
        assert isinstance(where["executor"], Client)
    assert log == ["tcp://host:1", "left"]
    gone = r"no scheduler answers at tcp://gone:1: timed out;\n  start one with: dask scheduler"
    with pytest.raises(CampaignError, match=gone), computing({"scheduler": "tcp://gone:1"}):
        pass
