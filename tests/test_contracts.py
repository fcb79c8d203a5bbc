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
from fitact_fx.faults import FaultList, fault_models, find_fault_model, find_format, formats
from fitact_fx.granularity import Layer
from fitact_fx.injected import Injected
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
        followers = {name for name, spec in specs.items() if spec.carries}  # Ranger's: no sites, and they carry some
        assert set(specs) - followers <= {site.name for site in sites}
        assert all(set(specs[name].carries) <= set(specs) for name in followers)
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


FORMATS = [format_ for module in of_package(formats) for name in module.NAMES if (format_ := module.parse(name))]
FORMATS += [find_format("q15.16"), find_format("q7.8"), find_format("q3.4")]


@pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
def test_every_format_gives_back_what_it_can_hold_and_names_each_bit_once(format_):
    values = torch.tensor([0.0, 1.0, -1.5, 0.25, 3.5]) if format_.name[:4] != "int8" else torch.tensor([127.0, -5.0])
    scale = format_.scale(values)
    words = format_.encode(values, scale)
    assert torch.equal(format_.decode(words, scale).to(torch.float32), values)
    assert sorted(bit for bits in format_.fields.values() for bit in bits) == list(range(format_.bits))
    assert find_format(format_.name) == format_


@pytest.mark.parametrize("name", fault_models.names())
class TestEveryFaultModel:
    def made(self, name, **often):
        return find_fault_model(name)(**often, **({"width": 2} if name == "burst" else {}))

    def test_is_a_frozen_value_that_says_what_it_is(self, name):
        fault = self.made(name, rate=0.5)
        assert dataclasses.is_dataclass(fault)
        assert type(fault).__dataclass_params__.frozen
        assert fault == self.made(name, rate=0.5)
        assert fault.describe().startswith(fault.event)

    @pytest.mark.parametrize("format_", FORMATS, ids=lambda each: each.name)
    def test_hits_its_count_in_every_format_and_nothing_is_left_behind(self, name, format_):
        model = net()
        before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
        faults = self.made(name, count=5).draw(model, format_, seed=1)
        with faults.applied(model):
            changed = sum(int((parameter != before[path]).sum()) for path, parameter in model.named_parameters())
        assert changed <= 5
        assert faults.applied(model) is not None
        assert len({(row[0], row[1]) for row in faults.rows}) <= 5 <= len(faults.rows)
        assert all(torch.equal(parameter, before[path]) for path, parameter in model.named_parameters())

    def test_is_drawn_again_alike_saved_and_loaded(self, name, tmp_path):
        faults = self.made(name, rate=0.05).draw(net(), seed=3, trial=4)
        assert faults == self.made(name, rate=0.05).draw(net(), seed=3, trial=4)
        assert faults != self.made(name, rate=0.05).draw(net(), seed=3, trial=5)
        faults.save(tmp_path / "faults")
        assert FaultList.load(tmp_path / "faults") == faults


OPTIONS = {
    "Bound": {"specs": {"1": Spec(Layer(), Zero())}},
    "Inject": {"at": ("1",), "format": find_format("float32")},
}
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
            if pass_.__name__ in ("Bound", "Inject"):
                passes.apply(graph_module, passes.functionalising.Functionalise())
        (touched,) = passes.apply(graph_module, made(pass_))
        assert touched
        assert all(isinstance(name, str) for name in touched)
        graph_module.graph.lint()
        for node in graph_module.modules():
            if isinstance(node, Injected):
                node.prepare((8, 4, 2, 2), 1, torch.device("cpu"))
        with pytest.warns() if pass_.__name__ == "Bound" else torch.no_grad():
            assert torch.equal(graph_module(x.clone()), model(x.clone()))
