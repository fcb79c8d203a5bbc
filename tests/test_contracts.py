"""What every scheme, format and pass promises, walked over all there are: a new one is tested by being there."""

import dataclasses
import inspect
import json
import pkgutil
from importlib import import_module

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import passes, schemes
from fitact_fx.faults.formats import find_format
from fitact_fx.granularity import Layer
from fitact_fx.policies import Zero
from fitact_fx.spec import Spec


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 3), nn.Tanh()).eval()


def images():
    return torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def of_package(package):
    return [import_module(f"{package.__name__}.{module.name}") for module in pkgutil.iter_modules(package.__path__)]


def classes(module):
    """The dataclasses that a module defines itself."""
    own = (each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__)
    return [each for each in own if dataclasses.is_dataclass(each)]


@pytest.mark.parametrize("name", schemes.names())
class TestEveryScheme:
    def test_is_a_frozen_value_whose_options_are_json(self, name):
        scheme = schemes.named(name)
        assert scheme.name == name
        assert dataclasses.is_dataclass(scheme)
        assert type(scheme).__dataclass_params__.frozen
        json.dumps(dataclasses.asdict(scheme))

    def test_places_sites_that_exist_and_edits_nothing(self, name):
        graph_module = fitact_fx.trace(net())
        sites, before = fitact_fx.find_sites(graph_module), graph_module.code
        specs = schemes.named(name).place(sites, graph_module)
        assert specs
        assert set(specs) <= {site.name for site in sites}
        assert graph_module.code == before

    def test_calibrated_it_gives_the_clean_outputs_of_its_data_and_survives_saving(self, name, tmp_path):
        model, x = net(), images()
        hard = fitact_fx.harden(model, scheme=name)
        fitact_fx.calibrate(hard, [x])
        fitact_fx.save(hard, tmp_path / "bounds")
        with torch.no_grad():
            assert torch.equal(hard(x), model(x))
            assert torch.equal(fitact_fx.load(tmp_path / "bounds", model)(x), model(x))

    def test_stops_what_a_fault_blows_up(self, name):
        model, x = net(), images()
        hard = fitact_fx.harden(model, scheme=name)
        fitact_fx.calibrate(hard, [x])
        with torch.no_grad():
            model[0].weight[0] = torch.inf
            model[0].weight[1] = torch.nan
            assert hard(x).isfinite().all()


@pytest.mark.parametrize("name", ["float32", "q15.16", "q7.8", "q3.4"])
def test_every_format_gives_back_what_it_can_hold(name):
    format_ = find_format(name)
    values = torch.tensor([0.0, 1.0, -1.5, 0.25, 3.75])
    words = format_.encode(values)
    assert torch.equal(torch.as_tensor(format_.decode(words)), values)


OPTIONS = {"Bound": {"specs": {"1": Spec(Layer(), Zero())}}}
PASSES = [each for module in of_package(passes) for each in classes(module)]


def made(pass_):
    return pass_(**OPTIONS.get(pass_.__name__, {}))


@pytest.mark.parametrize("pass_", PASSES, ids=lambda each: each.__name__)
class TestEveryPass:
    def test_is_a_frozen_value_with_a_docstring(self, pass_):
        assert pass_.__dataclass_params__.frozen
        assert pass_.__doc__
        assert made(pass_) == made(pass_)

    def test_returns_the_names_it_touched_and_leaves_a_valid_graph(self, pass_):
        model, x = net(), images()
        if pass_.__name__ == "Lower":
            graph_module = fitact_fx.harden(model)
            fitact_fx.calibrate(graph_module, [x])
        else:
            graph_module = fitact_fx.trace(model)
            if pass_.__name__ == "Bound":
                passes.apply(graph_module, passes.functionalising.Functionalise())
        (touched,) = passes.apply(graph_module, made(pass_))
        assert touched
        assert all(isinstance(name, str) for name in touched)
        graph_module.graph.lint()
        with pytest.warns() if pass_.__name__ == "Bound" else torch.no_grad():
            assert torch.equal(graph_module(x.clone()), model(x.clone()))
