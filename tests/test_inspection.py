"""What `inspect` finds, against numbers worked out by hand."""

import json
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_torchvision
from torch import Tensor, nn

from fitact_fx.errors import FitactError
from fitact_fx.inspection import inspect
from fitact_fx.model_spec import load_model
from fitact_fx.reports.inspected import text


class Small(nn.Module):
    """A one-sided site of 4x6x6, a two-sided one of 4x6x6, and one behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.head = nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.act(self.conv(x)))
        return torch.relu(self.head(self.drop(x).flatten(1)))


IMAGE = (torch.zeros(2, 3, 8, 8),)


def test_every_site_with_its_shape_bounds_and_bytes() -> None:
    found = inspect(Small(), IMAGE)
    assert [(s.name, s.kind, s.shape) for s in found.sites] == [
        ("act", "relu", (4, 6, 6)),
        ("gelu", "gelu", (4, 6, 6)),
        ("relu", "relu", (5,)),
    ]
    assert [dict(s.bounds) for s in found.sites] == [
        {"neuron": 144, "channel": 4, "layer": 1},
        {"neuron": 288, "channel": 8, "layer": 2},
        {"neuron": 5, "channel": 5, "layer": 1},
    ]
    assert found.bounds == {"neuron": 437, "channel": 17, "layer": 4}
    assert found.bytes == {"neuron": 4 * 437, "channel": 68, "layer": 16}
    assert (found.parameters, found.parameter_bytes) == (3 * 4 * 9 + 4 + 144 * 5 + 5, 4 * 837)
    assert "x = F.gelu(self.act(self.conv(x)))" in found.sites[1].source
    assert found.limits == ()
    assert found.obstacle is None


def test_a_model_in_half_precision_has_bounds_of_two_bytes() -> None:
    assert inspect(Small().to(torch.bfloat16)).bytes["layer"] == 2 * 4


def test_without_an_input_what_needs_a_shape_is_unknown() -> None:
    found = inspect(Small())
    assert [s.shape for s in found.sites] == [None] * 3
    assert found.bounds == {"neuron": None, "channel": 17, "layer": 4}
    assert "you give an input: --input 1,3,224,224" in text(found, "small", 1000)


def test_the_model_is_not_changed() -> None:
    model = Small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.get_rng_state()
    inspect(model, IMAGE)
    assert model.training
    assert model.act.inplace
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in before.items())
    assert torch.get_rng_state().equal(generator)


@needs_torchvision
def test_resnet18_has_as_many_neuron_bounds_as_it_has_activations() -> None:
    found = inspect(load_model("torchvision:resnet18"), (torch.zeros(1, 3, 224, 224),))
    stem = 64 * 112 * 112
    stages = [4 * channels * side * side for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7))]
    assert found.kinds == {"relu": 17}
    assert found.bounds == {"neuron": stem + sum(stages), "channel": 64 + 4 * (64 + 128 + 256 + 512), "layer": 17}
    assert found.parameters == 11_689_512
    assert found.sites[0].name == "relu"
    assert found.sites[-1].name == "layer4.1.relu_1"


def test_json_holds_everything() -> None:
    found = json.loads(json.dumps(inspect(Small(), IMAGE).as_json()))
    assert found["total"] == {
        "sites": 3,
        "kinds": {"relu": 2, "gelu": 1},
        "bounds": {"neuron": 437, "channel": 17, "layer": 4},
        "bytes": {"neuron": 1748, "channel": 68, "layer": 16},
    }
    assert found["sites"][0]["shape"] == [4, 6, 6]
    assert found["obstacle"] is None


def limits(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    return {limit.where: limit.why for limit in inspect(model, inputs or None).limits}


@pytest.mark.parametrize(
    "layer",
    [
        nn.TransformerEncoderLayer(8, 2, 16),
        nn.TransformerEncoderLayer(8, 2, 16, activation=nn.GELU()),
        nn.GRUCell(8, 8),
    ],
)
def test_layers_of_torch_with_activations_inside_are_looked_into(layer: nn.Module) -> None:
    found = inspect(nn.Sequential(nn.ReLU(), layer))
    assert [site.name.split(".")[0] for site in found.sites] == ["0", "1"]
    assert not any(limit.inside for limit in found.limits)


class Holder(nn.Module):
    """A leaf for torch.fx: it takes what stands in torch.nn to be one operator."""

    __module__ = "torch.nn.modules.holder"

    def __init__(self, *children: nn.Module) -> None:
        super().__init__()
        self.inside = nn.Sequential(*children)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inside(x)
        return result


def test_an_activation_module_inside_a_leaf_is_counted() -> None:
    found = limits(nn.Sequential(nn.ReLU(), Holder(nn.GELU(), nn.GELU())))
    assert found["1"] == "Holder is called whole: 2 GELU inside it cannot be bounded"


def squash(x: Tensor) -> Tensor:
    return F.silu(x) * 2


def quietly(x: Tensor) -> Tensor:
    return squash(x) + 1


def double(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


for name in ("quietly", "double"):
    torch.fx.wrap(name)


class Wrapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(double(x))
        x = quietly(x)
        return quietly(x)


def test_a_wrapped_function_is_named_if_it_or_what_it_calls_holds_an_activation() -> None:
    ((where, why),) = limits(Wrapped(), torch.zeros(2, 3)).items()
    assert where.endswith("in forward: x = quietly(x)")
    assert why == "quietly is a wrapped function, called 2 times, with silu inside"


class Unreached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.gate = nn.ReLU(), nn.ReLU(), nn.GLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.gate(x).reshape(3, -1, 2).movedim(0, 1))


def test_what_is_never_called_or_has_no_known_channel_is_named() -> None:
    found = limits(Unreached(), torch.zeros(6, 4))
    assert found["unused"] == "ReLU: forward does not call it in evaluation mode"
    assert found["used"].startswith("where its channels lie cannot be told from the graph")
    assert inspect(Unreached(), (torch.zeros(6, 4),)).sites[1].bounds == {"neuron": 6, "channel": None, "layer": 1}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) if x.sum() > 0 else x


def test_code_that_cannot_be_seen_is_named_and_what_it_calls_is_protected() -> None:
    found = inspect(Branching())
    assert (found.frontend, [site.name for site in found.sites]) == ("partial", ["act"])
    ((where, why),) = [(limit.where, limit.why) for limit in found.limits if limit.inside]
    assert where == "the model itself"
    assert "return self.act(x) if x.sum() > 0 else x" in why
    assert found.obstacle is None


class Indexing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return apply_if_positive(self.act, x)


def apply_if_positive(act: nn.Module, x: Tensor) -> Tensor:
    result: Tensor = act(x) if x.sum() > 0 else x
    return result


def test_a_model_without_a_graph_says_why_and_where_its_activations_are() -> None:
    found = inspect(Indexing())
    assert found.sites == ()
    assert [(limit.where, limit.why) for limit in found.limits] == [("act", "ReLU: out of reach without a graph")]
    assert found.obstacle is not None
    assert "result: Tensor = act(x) if x.sum() > 0 else x" in found.obstacle
    assert "This model cannot be hardened:\n  cannot trace" in text(found, "indexing")


def test_a_model_without_activations_has_nothing_to_protect() -> None:
    found = inspect(nn.Linear(2, 2))
    assert found.obstacle == "no activation was found in this model, so there is nothing to protect"


def test_an_input_that_does_not_fit_is_refused() -> None:
    with pytest.raises(FitactError) as caught:
        inspect(Small(), (torch.zeros(1, 4, 8, 8),))
    assert str(caught.value).startswith("the model does not take (1, 4, 8, 8) float32:\n  ")


class Deep(nn.Module):
    """Sites with long names."""

    def __init__(self) -> None:
        super().__init__()
        block: Any = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 100))
        self.a_rather_long_name = nn.Sequential(block)

    def forward(self, x: Tensor) -> Tensor:
        return self.a_rather_long_name(x).relu().relu().relu().relu().relu().relu().relu().relu().relu().relu().relu()


def test_tables_stay_within_the_width_they_are_given() -> None:
    for width in (100, 120):
        lines = text(inspect(Deep(), (torch.zeros(1, 50, 100),)), "deep", width).splitlines()
        assert max(map(len, lines)) <= width
    assert any(line.startswith("a_rather_long_name.0.1") and line.endswith("…") for line in lines)


def test_the_number_of_the_line_is_never_cut_from_a_source() -> None:
    for width in (100, 110):
        lines = text(inspect(Deep(), (torch.zeros(1, 50, 100),)), "deep", width).splitlines()
        rows = [line for line in lines if line.startswith(("relu", "a_rather"))]
        assert len(rows) == 12
        assert all(re.search(r"\.py:\d+(: .*)?…?$", row) for row in rows), rows
