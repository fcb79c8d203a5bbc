"""Traced, hardened, injected, exported and partial models through pickle, in this process and in another one."""

import io
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

import fitact_fx
from fitact_fx import coverage, find_sites, harden, inject, lower, trace
from fitact_fx.errors import TracingError
from fitact_fx.faults import BitFlip, Memory
from fitact_fx.models import resnet20
from fitact_fx.traced import TracedModule, parts

X = torch.linspace(-3, 3, 8).reshape(2, 4) + 0.5  # so that X and -X take different branches
IMAGES = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)

pytestmark = pytest.mark.filterwarnings("ignore::fitact_fx.UnprotectedWarning")


class ByShape(nn.Module):
    """Asks for a size, so that it must be exported; pools, which torch does in a function made in a function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 8), nn.Conv1d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 4:
            raise ValueError
        y = F.max_pool1d(F.relu(self.linear(x))[:, None], 2)
        return F.gelu(self.conv(y) + torch.ones(1))


class ByValue(nn.Module):
    """No graph holds its branch; a child with two names, tied weights, a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True))
        self.again = self.body
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.body[0].weight
        self.register_buffer("factor", torch.full((1,), 3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) if x.sum() > 0 else self.tied(self.again(-x)) * self.factor


class Plain(nn.Module):
    """Shared and tied like `ByValue`, but traced as a whole; a constant made in forward, pooling, keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.two.weight = self.one.weight
        self.act = self.same = nn.ReLU()
        self.register_buffer("shift", torch.ones(3, 1, 1), persistent=False)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        y = F.max_pool2d(self.act(self.one(x)), kernel_size=2)[:, :, 1:]
        return self.same(self.two(y)) * scale + self.shift + torch.arange(3.0).reshape(3, 1, 1)


def add_one(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 1


def add_two(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 2


def hooked() -> TracedModule:
    model = Plain()
    model.one.register_forward_hook(add_one)
    return trace(model)


def calibrated(model: nn.Module, *inputs: Tensor, **options: Any) -> TracedModule:
    hard = harden(model.eval(), **options)
    fitact_fx.calibrate(hard, inputs)
    return hard


def injected(example: Tensor | None) -> nn.Module:
    return inject(calibrated(resnet20(), IMAGES), ["layer1.*"], BitFlip(rate=1e-3), example_inputs=example)


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "traced": (lambda: trace(resnet20()), IMAGES),
    "shared": (lambda: trace(Plain()), IMAGES),
    "hooked": (hooked, IMAGES),
    "hardened": (lambda: calibrated(resnet20(), IMAGES), IMAGES),
    "injected": (lambda: injected(IMAGES), IMAGES),
    "injected at the first call": (lambda: injected(None), IMAGES),
    "exported": (lambda: calibrated(ByShape(), X, example_inputs=(X,), frontend="export"), X),
    "partial": (lambda: calibrated(ByValue(), X, -X), X),
    "partial in training mode": (lambda: trace(ByValue().train()), X),
}


def same(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any, Tensor]:
    """(model, the model after pickle, an input)."""
    torch.manual_seed(0)
    make, given = MODELS[request.param]
    model = make()
    return model, same(model), given


def outputs(model: nn.Module, given: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [model(given), model(-given)]


def described(model: nn.Module) -> Any:
    """Everything that names something in the graphs, in order, without the objects themselves."""
    return [
        (path, part.training, [(node.name, node.op, called(node), str(node.args)) for node in part.graph.nodes])
        for path, part in parts(model).items()
    ]


def called(node: Node) -> str:
    return node.target if isinstance(node.target, str) else f"{node.target.__module__}:{node.target.__name__}"


def tied(model: nn.Module) -> list[list[str]]:
    """The names of every module, Parameter and buffer, those of one object together."""
    found: dict[int, list[str]] = {}
    for names in (model.named_modules, model.named_parameters, model.named_buffers):
        for name, thing in names(remove_duplicate=False):
            found.setdefault(id(thing), []).append(name)
    return sorted(found.values())


class TestWhatComesBack:
    def test_it_gives_bitwise_the_same(self, pair: tuple[Any, Any, Tensor]) -> None:
        model, loaded, given = pair
        for one, other in zip(outputs(model, given), outputs(loaded, given), strict=True):
            assert torch.equal(one, other)

    def test_it_has_the_same_graphs_modes_and_names(self, pair: tuple[Any, Any, Tensor]) -> None:
        model, loaded, _ = pair
        assert isinstance(loaded, TracedModule)
        assert type(loaded).__name__ == type(model).__name__
        assert described(loaded) == described(model)
        assert tied(loaded) == tied(model)
        modes = [(name, module.training) for name, module in model.named_modules()]
        assert [(name, module.training) for name, module in loaded.named_modules()] == modes

    def test_it_has_the_same_state_and_saves_the_same(self, pair: tuple[Any, Any, Tensor]) -> None:
        model, loaded, _ = pair
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        gradients = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        assert {name: parameter.requires_grad for name, parameter in loaded.named_parameters()} == gradients

    def test_it_knows_the_same_of_itself(self, pair: tuple[Any, Any, Tensor]) -> None:
        model, loaded, _ = pair
        assert (loaded.frontend, loaded.unseen) == (model.frontend, model.unseen)
        assert loaded.meta["modes"] == model.meta["modes"]
        assert loaded.meta.get("scheme") == model.meta.get("scheme")
        sites = [(site.name, site.kind, site.module_path, site.source) for site in find_sites(model)]
        assert [(site.name, site.kind, site.module_path, site.source) for site in find_sites(loaded)] == sites
        assert coverage(loaded).table() == coverage(model).table()

    def test_it_draws_the_same_faults(self, pair: tuple[Any, Any, Tensor]) -> None:
        model, loaded, given = pair
        model(given)  # where injection nodes learn their shapes
        loaded(given)
        fault = BitFlip(rate=1e-3)
        assert fault.draw(Memory.of(loaded), "q15.16").checksum == fault.draw(Memory.of(model), "q15.16").checksum

    def test_it_can_be_pickled_again_and_copied(self, pair: tuple[Any, Any, Tensor]) -> None:
        import copy

        model, loaded, given = pair
        for again in (same(loaded), copy.deepcopy(loaded)):
            assert described(again) == described(model)
            assert torch.equal(outputs(again, given)[0], outputs(model, given)[0])


class TestWhatIsDoneWithIt:
    def test_bounds_can_be_set_and_hold(self) -> None:
        hard = same(harden(resnet20()))
        fitact_fx.set_bounds(hard, {"*": (None, 0.5)})
        assert list(fitact_fx.bounds(hard)) == [site.name for site in find_sites(trace(resnet20()))]
        assert all(upper == 0.5 for _, upper in fitact_fx.bounds(hard).values())

    def test_a_model_that_is_not_calibrated_still_warns_once(self) -> None:
        hard = same(harden(Plain()))
        with pytest.warns(fitact_fx.UncalibratedWarning):
            hard(IMAGES)
        hard(IMAGES)

    def test_it_is_injected_into_and_lowered(self) -> None:
        torch.manual_seed(0)
        hard = calibrated(Plain(), IMAGES)
        faulty = [inject(each, ["*"], BitFlip(rate=1e-3), example_inputs=IMAGES)(IMAGES) for each in (hard, same(hard))]
        assert torch.equal(*faulty)
        lowered = [lower(each, IMAGES, backend="eager")(IMAGES) for each in (hard, same(hard))]
        assert torch.equal(*lowered)

    def test_an_exported_one_is_lowered_and_still_checks_its_inputs(self) -> None:
        make, given = MODELS["exported"]
        hard = make()
        loaded = same(hard)
        assert torch.equal(lower(loaded, given, backend="eager")(given), hard(given))
        with pytest.raises(TracingError, match="exported for"):
            loaded(torch.ones(2, 5))
        with pytest.raises(TracingError, match="cannot change to training mode"):
            loaded.train()

    def test_code_that_is_not_seen_reads_the_tensors_that_faults_hit(self) -> None:
        hard, given = MODELS["partial"][0](), X
        loaded = same(hard)
        faults = BitFlip(rate=0.05).draw(Memory.of(hard), "float32", seed=3)
        with faults.applied(hard), faults.applied(loaded):
            for one, other in zip(outputs(hard, given), outputs(loaded, given), strict=True):
                assert torch.equal(one.nan_to_num(), other.nan_to_num())
        assert loaded.body is loaded.again

    def test_variants_that_share_parameters_still_do(self) -> None:
        model = resnet20()
        plain, hard = same((trace(model), harden(model)))
        assert all(hard.get_parameter(name) is parameter for name, parameter in plain.named_parameters())

    def test_views_of_one_buffer_stay_views_when_torch_saves_it(self) -> None:
        class Writes(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                whole = torch.zeros(4)
                self.register_buffer("whole", whole)
                self.register_buffer("first", whole[:2])

            def forward(self, x: Tensor) -> Tensor:
                return F.relu(x + self.whole) + self.first.sum()

        file = io.BytesIO()
        torch.save(trace(Writes()), file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        loaded.first += 1
        assert loaded.whole.tolist() == [1, 1, 0, 0]


def test_classes_that_are_local_to_a_function_come_back_with_cloudpickle() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")

    class Local(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) if x.sum() > 0 else x

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Local(), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model = trace(Around())
    loaded = pickle.loads(cloudpickle.dumps(model))
    assert described(loaded) == described(model)
    assert torch.equal(loaded(X), model(X))


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """A process that shares nothing with this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        yield pool


def run_there(pickled: bytes, given: Tensor) -> tuple[list[Tensor], Any, str]:
    model = pickle.loads(pickled)
    faults = BitFlip(rate=1e-3).draw(Memory.of(model), "q15.16")
    return outputs(model, given), described(model), faults.checksum


def test_a_fresh_process_computes_bitwise_the_same(
    pair: tuple[Any, Any, Tensor], elsewhere: ProcessPoolExecutor
) -> None:
    model, _, given = pair
    faults = BitFlip(rate=1e-3).draw(Memory.of(model), "q15.16")
    got, graphs, checksum = elsewhere.submit(run_there, pickle.dumps(model), given).result()
    assert (graphs, checksum) == (described(model), faults.checksum)
    for one, other in zip(outputs(model, given), got, strict=True):
        assert torch.equal(one, other)


def test_a_hook_that_is_registered_in_a_fresh_process_replaces_none(tmp_path: Path) -> None:
    model = hooked()
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    code = (
        "import pickle, torch, test_pickling as t\n"
        f"model = pickle.load(open({str(tmp_path / 'model')!r}, 'rb'))\n"
        "(number,) = model.one._forward_hooks\n"
        "handles = [model.one.register_forward_hook(t.add_two) for _ in range(number + 1)]\n"
        "print(len(model.one._forward_hooks) - len(handles))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["1"]
