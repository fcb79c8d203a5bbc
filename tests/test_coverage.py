"""What is open: against small models where it can be worked out by hand, and against faults that are put there."""

import json
import math
import os
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import module
from torch import Tensor, nn
from torch.fx import Interpreter, Node

import fitact_fx
from fitact_fx import Coverage, coverage
from fitact_fx.errors import RecipeError, SiteError, TracingError, UnprotectedWarning
from fitact_fx.faults import BitFlip
from fitact_fx.model_spec import load_model
from fitact_fx.naming import value_names
from fitact_fx.nodes import overwrites_input
from fitact_fx.reports.covered import text
from fitact_fx.testing import architectures

EVERY_PLACE = ("activations", "linear", "norm", "residual", "logits")
NO_BOUND = "no bound between here and the output; "
PASSES_ON = "passes on what it gets, and that is open"


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.pool, self.head = nn.AvgPool2d(2), nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.conv(x))))
        return self.head(x.flatten(1))


IMAGE = (torch.zeros(2, 3, 8, 8),)


def statuses(found: Coverage) -> dict[str, str]:
    return {call.name: call.status for call in found.calls}


def whys(found: Coverage) -> dict[str, str]:
    return {call.name: call.why for call in found.calls}


def opened(model: nn.Module, **options: Any) -> set[str]:
    return {call.name for call in coverage(model, **options).open}


def test_behind_the_last_bound_of_a_cnn_everything_is_open() -> None:
    found = coverage(Small())
    assert statuses(found) == {
        "conv": "contained",
        "norm": "contained",
        "act": "bounded",
        "pool": "open",
        "flatten": "open",
        "head": "open",
    }
    assert whys(found) == {
        "conv": "behind act",
        "norm": "behind act",
        "act": "a bound stands behind it",
        "pool": NO_BOUND + 'add "linear" or "logits" to sites to put one behind it, at head',
        "flatten": PASSES_ON,
        "head": NO_BOUND + 'add "linear" or "logits" to sites to put one here',
    }
    assert [call.name for call in found.protected] == ["conv", "norm", "act"]
    assert [call.name for call in found.bounded] == ["act"]
    assert not found.complete
    assert found.calls[1].operator == "batchnorm2d"
    assert found.calls[1].source.endswith("in forward: x = self.pool(self.act(self.norm(self.conv(x))))")


def test_with_the_logits_bounded_too_nothing_is_open() -> None:
    found = coverage(Small(), sites=("activations", "logits"))
    assert found.open == ()
    assert found.complete
    assert statuses(found)["head"] == "bounded"
    assert whys(found)["flatten"] == "behind head"
    assert found.counts == {"bounded": 2, "contained": 4, "open": 0}


def test_what_each_call_is_told_to_do_closes_it() -> None:
    for place in ("linear", "logits"):
        assert opened(Small(), sites=("activations", place)) == set()
    assert opened(Small(), sites=("activations", "norm")) == {"pool", "flatten", "head"}


def test_the_model_stays_as_it_is_and_no_warning_is_given() -> None:
    model = Small()
    coverage(model, IMAGE)
    assert model.training
    assert model.act.inplace
    assert [name for name, _ in model.named_children()] == ["conv", "norm", "act", "pool", "head"]


def test_a_hardened_model_has_the_bounds_that_it_has() -> None:
    hard = fitact_fx.harden(Small(), "channel", sites=lambda site: site.name == "norm")
    found = coverage(hard)
    assert {name for name, status in statuses(found).items() if status == "open"} == {"act", "pool", "flatten", "head"}
    assert whys(found)["act"] == NO_BOUND + 'add "activations" to sites to put one here'
    assert statuses(found)["norm"] == "bounded"
    assert found.missing is None
    assert found.unchecked == "this is a graph already: give the original model, and example inputs"


@pytest.mark.parametrize("where", ["before", "after"])
def test_injection_nodes_change_nothing(where: str) -> None:
    hard = fitact_fx.harden(Small())
    faulty = fitact_fx.inject(hard, at=["*"], fault=BitFlip(count=1), where=where, example_inputs=IMAGE)
    assert coverage(faulty).calls == coverage(hard).calls


def test_a_traced_model_is_taken_as_it_is() -> None:
    traced = fitact_fx.trace(Small())
    assert coverage(traced).calls == coverage(Small()).calls
    assert len(fitact_fx.find_sites(traced)) == 1, "nothing was put into the graph itself"


def test_a_model_without_a_site_is_open_everywhere() -> None:
    found = coverage(nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.LayerNorm(2)))
    assert statuses(found) == {"0": "open", "1": "open", "2": "open"}
    assert found.bounded == ()


def test_a_model_that_cannot_be_traced_and_unknown_places_are_refused() -> None:
    with pytest.raises(RecipeError, match="unknown place 'logit'; choose one of"):
        coverage(Small(), sites="logit")
    with pytest.raises(TracingError, match=r"expected an nn\.Module, got int"):
        coverage(3)  # type: ignore[arg-type]


def test_the_residual_stream_of_a_transformer_is_open_under_activations_alone() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    found = coverage(layer)
    assert [call.name for call in found.protected] == ["norm2", "linear1", "relu"]
    assert {"norm1", "dropout1", "add", "linear2", "dropout2", "add_1"} <= {call.name for call in found.open}
    assert whys(found)["add_1"] == NO_BOUND + 'add "residual" or "logits" to sites to put one here'
    assert opened(layer, sites=("activations", "residual")) == set()


class Branch(nn.Module):
    """What it does depends on its values, so its own code cannot be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.tail = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if x.sum() > 0 else self.tail(x)


def test_what_a_part_returns_goes_to_code_that_could_not_be_seen() -> None:
    found = coverage(nn.Sequential(nn.Linear(4, 4), Branch(), nn.Dropout()), sites=("activations", "linear"))
    assert found.frontend == "partial"
    assert list(found.unseen) == ["1"]
    assert statuses(found) == {
        "0": "bounded",
        "1": "open",
        "1.block.0": "bounded",
        "1.block.1": "bounded",
        "1.tail.0": "bounded",
        "1.tail.1": "bounded",
        "1.tail.2": "bounded",
        "2": "open",
    }
    assert whys(found)["1"] == "its code could not be seen, and no bound stands behind it"
    unbounded = coverage(nn.Sequential(nn.Linear(4, 4), Branch(), nn.Dropout()))
    remedy = 'no bound between here and the code of 1, which could not be seen; add "linear" to sites'
    assert whys(unbounded)["1.tail.2"] == f"{remedy} to put one here"
    assert {call.name for call in unbounded.open} == {"0", "1", "1.tail.2", "2"}


def test_a_part_is_protected_by_a_bound_behind_the_code_around_it() -> None:
    found = coverage(nn.Sequential(Branch(), nn.Linear(4, 4), nn.ReLU()))
    assert found.frontend == "partial"
    assert found.open == ()
    assert found.complete
    assert whys(found)["0.tail.2"] == "behind 2"
    assert whys(found)["0"] == "behind 2"


def test_a_part_that_two_modules_share_is_open_if_one_of_them_is() -> None:
    one, other = Branch(), Branch()
    other.tail = one.tail
    model = module(lambda self, x: self.one(x).relu() + self.other(x), one=one, other=other)
    found = {call.name.rpartition("one.")[2]: call.status for call in coverage(model).calls}
    assert found["tail.2"] == "open"
    assert found["block.0"] == "contained"


def test_where_the_code_of_the_model_itself_is_not_seen_the_report_is_not_complete() -> None:
    found = coverage(Branch(), sites=EVERY_PLACE)
    assert found.open == ()
    assert list(found.unseen) == [""]
    assert not found.complete
    assert found.missing is None
    assert found.unchecked == "torch.export runs the model: give example inputs"
    branches = coverage(Branch(), (torch.ones(2, 4),))
    assert branches.missing is None
    assert branches.unchecked.startswith("torch.export cannot export this model: ")


def test_what_is_added_in_place_is_open_where_the_sum_is_read_later() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.act(self.fc1(x))
        z = self.fc2(x)
        y.add_(z)
        return y

    model = module(forward, fc1=nn.Linear(4, 4), fc2=nn.Linear(4, 4), act=nn.Sigmoid())
    assert statuses(coverage(model)) == {"fc1": "contained", "act": "bounded", "fc2": "open", "add": "open"}


def test_nothing_is_open_where_nobody_reads_the_memory_after_it_was_overwritten() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.fc1(x)
        z = self.act(y)
        y.add_(self.fc2(x))
        return z

    model = module(forward, fc1=nn.Linear(4, 4), fc2=nn.Linear(4, 4), act=nn.Sigmoid())
    found = coverage(model)
    assert found.open == ()
    assert whys(found)["fc2"] == "its value is not used"


def test_what_is_written_through_a_view_is_open_where_the_whole_is_read() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.fc(x)
        whole = self.act(y)
        whole[:, 1:].copy_(self.fc2(x))
        return whole

    model = module(forward, fc=nn.Linear(4, 4), fc2=nn.Linear(4, 3), act=nn.Sigmoid())
    assert {"fc2"} <= opened(model)
    assert "fc" not in opened(model)


def test_the_half_that_an_inplace_activation_leaves_alone_is_open() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.fc(x)
        F.relu_(y[:, :2])
        return y

    assert "fc" in opened(module(forward, fc=nn.Linear(4, 4)))


def test_what_is_kept_in_a_buffer_is_open_if_the_next_run_reads_it_past_the_bounds() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.act(self.fc(x)) + self.state
        self.state.copy_(self.fc2(x))
        return out

    model = module(forward, fc=nn.Linear(4, 4), fc2=nn.Linear(4, 4), act=nn.ReLU(), state=torch.zeros(2, 4))
    assert "fc2" in opened(model)
    assert "fc" not in opened(model)


def test_only_the_size_of_a_value_is_no_way_out_of_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.act(y).view(y.size(0), y.shape[1], 1).view_as(self.fc2(x)[..., None]).to(y.dtype)

    model = module(forward, fc=nn.Linear(4, 4), fc2=nn.Linear(4, 4), act=nn.Sigmoid())
    found = coverage(model)
    assert {"fc", "fc2"}.isdisjoint(call.name for call in found.open)
    assert whys(found)["fc"] == "behind act"


def test_a_value_that_nobody_uses_is_no_danger() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.fc2(x)
        return self.act(self.fc(x))

    model = module(forward, fc=nn.Linear(4, 4), fc2=nn.Linear(4, 4), act=nn.Sigmoid())
    found = coverage(model)
    assert found.complete
    assert whys(found).get("fc2", "its value is not used") == "its value is not used"


def test_a_value_behind_many_bounds_names_the_first_three() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.relu() + y.tanh() + y.sigmoid() + F.gelu(y)

    found = coverage(module(forward, fc=nn.Linear(4, 4)))
    assert whys(found)["fc"] == "behind relu, tanh, sigmoid and others"
    assert opened(module(forward, fc=nn.Linear(4, 4))) == {"add", "add_1", "add_2"}


def test_where_no_place_lies_ahead_that_is_said() -> None:
    model = module(lambda self, x: (self.fc(x).relu() * 2).chunk(2), fc=nn.Linear(4, 4))
    assert whys(coverage(model))["mul"] == "no bound between here and the output, and no call there is a place for one"


def of_both(results: tuple[Tensor, Tensor]) -> Tensor:
    return results[0] + results[1]


torch.fx.wrap("of_both")


def test_a_layer_with_several_results_is_one_call_for_each_that_is_taken_out() -> None:
    model = module(lambda self, x: self.gru(self.fc(x).relu()), fc=nn.Linear(4, 4), gru=nn.GRU(4, 4))
    assert coverage(model).complete
    assert statuses(coverage(model, sites="linear")) == {
        "fc": "bounded",
        "relu": "open",
        "gru": "open",
        "gru.h_n": "open",
    }


def test_so_it_is_where_they_go_together_into_another_call() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.act(x)
        return of_both(self.attention(x, x, x))

    attention = nn.MultiheadAttention(8, 2)
    assert opened(module(forward, act=nn.ReLU(), attention=attention)) == {
        "attention",
        "attention.weights",
        "of_both",
    }


class Weighing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.act = nn.MultiheadAttention(8, 2), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        attended, weights = self.attention(x, x, x)
        return self.act(attended + weights.mean())


def test_activations_that_only_export_sees_are_missing() -> None:
    found = coverage(Weighing(), (torch.randn(2, 3, 8),))
    assert found.frontend == "symbolic"
    assert found.missing == ("attention.softmax",)
    assert found.open == ()
    assert not found.complete


def test_the_count_agrees_with_export_in_models_that_have_both_graphs() -> None:
    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4), nn.GELU())
    model = module(lambda self, x: F.silu(self.block(self.block(x))).clamp(min=0), block=block)
    found = coverage(model, (torch.randn(2, 4),))
    assert found.missing == ()
    assert len(found.bounded) == 6


def test_an_exported_model_has_what_export_sees() -> None:
    model = module(lambda self, x: self.fc(x).relu() if x.shape[0] > 0 else x, fc=nn.Linear(4, 4))
    found = coverage(model, (torch.randn(2, 4),))
    assert found.frontend == "export"
    assert found.missing == ()
    assert statuses(found) == {"fc": "contained", "relu": "bounded"}


def test_json_holds_everything() -> None:
    found = json.loads(json.dumps(coverage(Small()).as_json()))
    assert found["total"] == {"calls": 6, "bounded": 1, "contained": 2, "open": 3}
    assert found["complete"] is False
    assert found["calls"][0]["why"] == "behind act"
    assert found["unchecked"] == "torch.export runs the model: give example inputs"


class Blocks(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x.relu())
        return x


def test_alike_calls_share_a_line_of_the_table() -> None:
    table = coverage(Blocks(12)).table()
    lines = [line.split() for line in table.splitlines()]
    assert ["blocks.*", "12", "x", "linear"] in [line[:4] for line in lines]
    assert ["add_*", "10", "x", "add"] in [line[:4] for line in lines]
    assert len([line for line in lines if line]) < 12
    limited = coverage(Blocks(12)).table(limit=1)
    assert limited.endswith("... and 12 more calls")
    assert "add" not in [line.split()[0] for line in limited.splitlines() if line]


def test_the_report_has_its_summary_first_and_stays_within_its_width() -> None:
    told = text(coverage(Small(), IMAGE), "small", 100)
    assert told.startswith("small: front end symbolic, 6 calls: 1 bounded, 2 contained, 3 open\n\nOpen calls (3): ")
    assert max(map(len, told.splitlines())) <= 100
    assert told.endswith("torch.export sees no other activation in this model.")
    every = text(coverage(Small()), "small", 100, every=True)
    assert "norm     batchnorm2d  contained  behind act" in every
    assert every.endswith("Not compared with what torch.export sees: torch.export runs the model: give example inputs")


def test_the_report_names_what_was_not_seen() -> None:
    assert "Code that could not be seen (1):\n  the model itself: cannot trace" in text(coverage(Branch()), "branch")
    weighing = text(coverage(Weighing(), (torch.randn(2, 3, 8),)), "weighing")
    assert weighing.endswith("Activations that torch.export sees and that are no sites here (1):\n  attention.softmax")


class Struck(Interpreter):
    """Runs a graph in which one node's result is `fault` in every element, for whoever reads it from then on."""

    def __init__(self, hard: Any, node: Node, fault: float) -> None:
        super().__init__(hard)
        self.node, self.fault = node, fault

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        return self._hit(result, n) if n is self.node else result

    def _hit(self, result: Any, node: Node) -> Any:
        if isinstance(result, tuple):
            return tuple(self._hit(each, node) for each in result)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        given = [self.env[each] for each in node.all_input_nodes]
        pointers = [each.data_ptr() for each in given if isinstance(each, Tensor)]
        if result.data_ptr() in pointers and not overwrites_input(node):  # a view: the fault is in what it passes on
            return torch.full_like(result, self.fault)
        return result.fill_(self.fault)


def results(model: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        output = model(*(each.clone() for each in inputs))
    flat = list(output.values()) if isinstance(output, dict) else output
    return list(flat) if isinstance(flat, tuple | list) else [flat]


NETWORKS = architectures(dtypes=(torch.float32,), max_steps=8, gradients=False)


@settings(
    max_examples=int(os.environ.get("FITACT_FUZZ", "40")),
    deadline=None,
    derandomize="FITACT_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
@given(NETWORKS, st.sampled_from(["activations", EVERY_PLACE]))
def test_a_fault_in_what_is_contained_never_comes_to_the_output(architecture: Any, sites: Any) -> None:
    inputs = architecture.inputs()
    batch = inputs[0] if len(inputs) == 1 else (inputs, None)
    with warnings.catch_warnings(action="ignore", category=UnprotectedWarning):
        try:
            hard = fitact_fx.harden(architecture.module(), "layer", sites=sites)
        except SiteError as error:
            assert "no " in str(error)  # noqa: PT017
            return
    fitact_fx.calibrate(hard, [batch])
    nodes = {name: node for node, name in value_names(hard).items()}
    for call in coverage(hard).calls:
        if call.status == "contained":
            for fault in (math.nan, 1e30):
                struck = results(Struck(hard, nodes[call.name], fault).run, inputs)
                assert not any(each.isnan().any() or (each.abs() > 1e25).any() for each in struck), call


@pytest.mark.parametrize("sites", ["activations", ("activations", "residual")])
def test_a_fault_in_what_is_open_comes_to_the_output_of_a_transformer(sites: Any) -> None:
    hard = fitact_fx.harden(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "layer", sites=sites).eval()
    inputs = (torch.randn(2, 3, 8),)
    fitact_fx.calibrate(hard, [inputs])
    nodes = {name: node for node, name in value_names(hard).items()}
    for call in coverage(hard).calls:
        if "mask" not in call.name:
            arrived = results(Struck(hard, nodes[call.name], math.nan).run, inputs)[0].isnan().any()
            assert bool(arrived) == (call.status == "open"), call


@needs_torchvision
def test_a_resnet_is_open_from_its_last_activation_on() -> None:
    found = coverage(load_model("torchvision:resnet18"))
    assert [call.name for call in found.open] == ["avgpool", "flatten", "fc"]
    assert len(found.bounded) == 17
    assert coverage(load_model("torchvision:resnet18"), sites=("activations", "logits")).complete
