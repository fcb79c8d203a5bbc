"""The models of a campaign: copies that compute what the models do and leave them alone, and what is told of each."""

import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import module
from torch import Tensor, nn

import fitact_fx
from fitact_fx.ambience import threads_set
from fitact_fx.campaigns.fingerprints import fingerprint, identical, identical_trees
from fitact_fx.campaigns.samples import Samples
from fitact_fx.campaigns.variants import Injection, described, prepared
from fitact_fx.errors import CampaignError, UncalibratedWarning
from fitact_fx.faults import Memory, find_format
from fitact_fx.traced import TracedModule

Q = find_format("q15.16")
X = torch.randn(10, 3, generator=torch.Generator().manual_seed(2))
SAMPLES = Samples.read([X[:4], X[4:8], X[8:]])


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(3, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    )
    model(torch.randn(32, 3))  # BatchNorm has statistics
    return model


def hardened(model: nn.Module) -> nn.Module:
    hard = fitact_fx.harden(model, "neuron")
    fitact_fx.calibrate(hard, [X])
    return hard


def ready(model: nn.Module, samples: Samples = SAMPLES, injection: Injection | None = None) -> nn.Module:
    return prepared("m", model, samples, Q, injection)


def outputs(model: nn.Module, samples: Samples = SAMPLES) -> list[Any]:
    with torch.inference_mode():
        return [batch.run(model) for batch in samples.batches]


def storages(model: nn.Module, names: str) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for _, tensor in getattr(model, names)() if tensor.numel()}


def states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())  # noqa: NPY002


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": network,
    "hardened": lambda: hardened(network().eval()),
    "functional, in place": lambda: module(
        lambda self, x: self.b(torch.relu_(self.a(x) + x)) + x, a=nn.Linear(3, 3), b=nn.Linear(3, 3)
    ),
    "decides on values": lambda: module(lambda self, x: self.a(x) if x.sum() > 0 else -self.a(x), a=nn.Linear(3, 4)),
    "with a tensor of its own": lambda: module(lambda self, x: x @ self.w.clamp(min=0), w=torch.randn(3, 5)),
    "several outputs": lambda: module(lambda self, x: {"logits": self.a(x), "more": (x, None)}, a=nn.Linear(3, 4)),
    "an object": lambda: module(lambda self, x: SimpleNamespace(logits=self.a(x)), a=nn.Linear(3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [True, False])
def test_a_prepared_model_computes_what_the_model_does_bit_for_bit(name: str, training: bool) -> None:
    model = MODELS[name]().train(training)
    made = ready(model)
    modes = [each.training for each in model.modules()]
    assert modes == [training] * len(modes)
    assert not any(each.training for each in made.modules())
    assert identical_trees(outputs(made), outputs(model.eval()))


@pytest.mark.parametrize("name", MODELS)
def test_a_prepared_model_shares_the_parameters_and_nothing_else(name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    memory = {key: value.data_ptr() for key, value in model.state_dict(keep_vars=True).items()}
    made, again = ready(model), ready(model)
    assert storages(made, "named_parameters") == storages(model, "named_parameters")
    for one, other in ((made, model), (again, model), (made, again)):
        assert storages(one, "named_buffers").isdisjoint(storages(other, "named_buffers"))
    after = model.state_dict(keep_vars=True)
    assert {key: value.data_ptr() for key, value in after.items()} == memory
    assert all(identical(before[key], value.detach()) for key, value in after.items())
    assert {key for key, _ in made.named_parameters()} == {key for key, _ in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_the_global_generators_and_the_flags_of_parameters_are_kept(name: str) -> None:
    model = MODELS[name]()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad = bool(number % 2)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    before = states()
    ready(model)
    assert states() == before
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_a_model_that_draws_numbers_draws_none_of_the_users() -> None:
    before = states()
    for noise in (lambda y: torch.rand(4) + random.random(), torch.rand_like):
        noisy = module(
            lambda self, x, noise=noise: self.a(x) + noise(self.a(x)), a=nn.Linear(3, 4).requires_grad_(False)
        )
        torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
        for samples in (SAMPLES, Samples.read([{"x": X}])):
            ready(noisy, samples)
            assert states() == before


def test_a_model_that_can_be_traced_is_a_graph_and_another_is_itself() -> None:
    assert isinstance(ready(network()), TracedModule)
    odd = MODELS["decides on values"]()
    made = ready(odd)
    assert type(made) is type(odd)
    assert made is not odd


def test_a_graph_that_computes_something_else_is_not_taken() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 4), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1  # what a trace fixes
            return self.linear(x) * min(self.calls, 2)

    made = ready(Counts())
    assert not isinstance(made, TracedModule)


def test_a_graph_is_compared_on_a_batch_of_each_size() -> None:
    """What takes another way for some size shows only there."""

    class Odd(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) == 4 else -super().forward(x)

    class Wraps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.odd(x)

    made, model = ready(Wraps()), Wraps()
    model.load_state_dict(made.state_dict())
    assert identical_trees(outputs(made), outputs(model))


def test_an_activation_that_cannot_be_rewritten_leaves_the_model_as_it_is() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.relu_(y) + y
        return nn.functional.relu(z, inplace=self.training) + z

    model = module(forward, a=nn.Linear(3, 4))
    assert identical_trees(outputs(ready(model)), outputs(model.eval()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = fitact_fx.trace(model)
    assert identical_trees(outputs(ready(graph)), outputs(model))


def test_models_with_keyword_inputs_are_prepared() -> None:
    samples = Samples.read([{"x": X[:4], "scale": torch.tensor(2.0)}, {"x": X[4:], "scale": torch.tensor(3.0)}])
    model = module(lambda self, x, scale: self.a(x) * scale, a=nn.Linear(3, 4))
    made = ready(model, samples)
    assert isinstance(made, TracedModule)
    assert identical_trees(outputs(made, samples), outputs(model, samples))


def scaled(self: Any, x: Tensor, scale: Tensor | None = None) -> Tensor:
    out: Tensor = self.a(x)
    return out if scale is None else out * scale


SCALED = {
    "by name": ([{"x": X[:4], "scale": torch.tensor(2.0)}, {"x": X[4:], "scale": torch.tensor(3.0)}], False),
    "by place": ([((X[:4], torch.tensor(2.0)), None), ((X[4:], torch.tensor(3.0)), None)], True),
    "left out": ([X[:4], X[4:]], True),
    "now and then": ([X[:4], ((X[4:], torch.tensor(3.0)), None)], False),
}


@pytest.mark.parametrize("case", SCALED)
def test_an_argument_with_a_default_is_what_the_data_give(case: str) -> None:
    data, traced = SCALED[case]
    model, samples = module(scaled, a=nn.Linear(3, 4)), Samples.read(data)
    made = ready(model, samples)
    assert isinstance(made, TracedModule) is traced
    assert identical_trees(outputs(made, samples), outputs(model, samples))


def test_a_model_that_does_not_take_the_data_is_left_to_say_so_when_it_runs() -> None:
    made = ready(module(lambda self, x: self.a(x), a=nn.Linear(5, 4)))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        outputs(made)


def test_a_compiled_model_is_its_original() -> None:
    model = network().eval()
    made = ready(torch.compile(model, backend="eager"))
    assert identical_trees(outputs(made), outputs(model))
    assert storages(made, "named_parameters") == storages(model, "named_parameters")
    assert {name for name, _ in made.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert described(torch.compile(model, backend="eager"), made) == described(model, made)


def test_a_lowered_model_is_refused() -> None:
    lowered = fitact_fx.lower(hardened(network().eval()), (X[:4],), backend="eager")
    for model in (lowered, lowered._orig_mod):
        with pytest.raises(CampaignError) as told:
            ready(model)
        assert str(told.value) == (
            "variant 'm' is lowered: its bounds are constants that no fault could hit;\n"
            "  give the hardened model itself, and compile=True"
        )


@pytest.mark.parametrize("given", [None, "model", lambda x: x, nn.Linear])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(CampaignError, match=f"variant 'm' is a {type(given).__name__} and not an nn.Module"):
        ready(given)


@pytest.mark.parametrize("permanent", [True, False])
def test_injection_nodes_are_put_in_for_the_largest_batch(permanent: bool) -> None:
    model = hardened(network().eval())
    samples = Samples.read([X[:3], X[3:]])
    made = ready(model, samples, Injection(("*",), "before", permanent, 2))
    nodes = [cell for cell in Memory.of(made).cells if cell.kind == "activations"]
    assert {cell.name.removesuffix(":permanent") for cell in nodes} == {"2@before", "5@before"}
    assert all(cell.shape[0] == (1 if permanent else 7) for cell in nodes)
    assert all(cell.node.permanent is permanent for cell in nodes)
    assert identical_trees(outputs(made, samples), outputs(model, samples))
    assert storages(made, "named_parameters") == storages(model, "named_parameters")


def test_injection_needs_positional_inputs() -> None:
    model = module(lambda self, x: torch.relu(self.a(x)), a=nn.Linear(3, 4))
    with pytest.raises(CampaignError, match="models that are called with positional inputs; give tuples"):
        ready(model, Samples.read([{"x": X}]), Injection(("*",), "before", False, 1))


@dataclass
class Output:
    logits: Tensor
    more: Any = None


NUMBERS = torch.tensor([1.0, 0.0, torch.nan, torch.inf])


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        (NUMBERS, NUMBERS.clone(), True),
        (NUMBERS, NUMBERS.double(), False),
        (NUMBERS, NUMBERS.reshape(2, 2), False),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.tensor([torch.nan]), torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32), False),
        (torch.tensor([1, 0]), torch.tensor([1, 0]), True),
        ((NUMBERS, {"a": [NUMBERS]}), (NUMBERS, {"a": [NUMBERS.clone()]}), True),
        ((NUMBERS, {"a": [NUMBERS]}), (NUMBERS, {"b": [NUMBERS]}), False),
        ((NUMBERS, NUMBERS), (NUMBERS,), False),
        ([NUMBERS], (NUMBERS,), False),
        (Output(NUMBERS), Output(NUMBERS.clone()), True),
        (Output(NUMBERS), Output(NUMBERS, 1), False),
        (Output(torch.ones(3)), Output(torch.zeros(3)), False),
        (SimpleNamespace(x=NUMBERS), SimpleNamespace(x=NUMBERS.clone()), True),
        (SimpleNamespace(x=NUMBERS), SimpleNamespace(x=-NUMBERS), False),
        ("text", "text", True),
        (1, 1.0, False),
        (None, None, True),
        (None, NUMBERS, False),
        (torch.empty(0, 3), torch.empty(0, 3), True),
    ],
)
def test_outputs_are_compared_bit_for_bit_whatever_they_are_made_of(one: Any, other: Any, wanted: bool) -> None:
    assert identical_trees(one, other) is wanted
    assert identical_trees(other, one) is wanted


def with_change(change: Callable[[nn.Module], Any], model: nn.Module) -> str:
    with torch.no_grad():
        change(model)
    return fingerprint(model)


def hidden() -> nn.Module:
    model = network().eval()
    model.register_buffer("not_saved", torch.ones(3), persistent=False)
    return model


def test_a_fingerprint_is_changed_by_any_weight_buffer_bound_or_setting() -> None:
    changes: list[tuple[Callable[[], nn.Module], Callable[[nn.Module], Any]]] = [
        (hidden, lambda model: None),
        (hidden, lambda model: model[6].bias[3].add_(1e-6)),
        (hidden, lambda model: model[0].weight[7, 2].mul_(-1)),
        (hidden, lambda model: model[1].running_mean[0].add_(1)),
        (hidden, lambda model: model[1].num_batches_tracked.add_(1)),
        (hidden, lambda model: model.not_saved[1].add_(1)),
        (hidden, lambda model: setattr(model[1], "eps", 1e-3)),
        (hidden, lambda model: model.append(nn.ReLU())),
        (hidden, lambda model: model.double()),
        (lambda: hardened(network().eval()), lambda model: None),
    ]
    found = [with_change(change, make()) for make, change in changes]
    bounded = hardened(network().eval())
    bounds = [name for name, _ in bounded.named_buffers() if name.endswith(("upper", "lower"))]
    assert bounds
    found += [
        with_change(lambda model, name=name: model.get_buffer(name).view(-1)[0].add_(1), bounded) for name in bounds
    ]
    assert len(set(found)) == len(found)
    assert found[0] == fingerprint(hidden())


def test_values_that_are_no_tensors_are_part_of_a_fingerprint() -> None:
    class Packed(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def get_extra_state(self) -> Any:
            return {"packed": (torch.tensor(self.value), None)}

        def set_extra_state(self, state: Any) -> None: ...

    assert fingerprint(Packed(1.0)) == fingerprint(Packed(1.0)) != fingerprint(Packed(2.0))


SCRIPT = """
import torch
from torch import nn
import fitact_fx
from fitact_fx.ambience import threads_set
from fitact_fx.campaigns.fingerprints import fingerprint
def act(x): return x
class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 4)
    def extra_repr(self): return f"{act} {object()}"
    def forward(self, x): return torch.relu(self.a(x))
torch.manual_seed(0)
model = Holds().eval()
hard = fitact_fx.harden(model, "neuron")
fitact_fx.calibrate(hard, [torch.randn(9, 3)])
told = [fingerprint(model), fingerprint(hard)]
print(*told)
"""


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    here: dict[str, Any] = {}
    exec(SCRIPT, here)
    there = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True).stdout.split()
    assert here["told"] == there
    assert len(set(there)) == 2


def test_a_model_is_described_by_what_it_holds() -> None:
    model = network().eval()
    hard = hardened(model)
    plain = described(model, ready(model))
    assert plain["class"] == "Sequential"
    assert plain["frontend"] == "symbolic"
    weights = 3 * 8 + 8 + 8 + 8 + 8 * 8 + 8 + 8 * 4 + 4
    assert (plain["parameter_bytes"], plain["bound_bytes"]) == (4 * weights, 0)
    assert plain["coverage"] == [
        {"site": "2", "kind": "relu", "protected": False, "how": "no bound"},
        {"site": "5", "kind": "relu", "protected": False, "how": "no bound"},
    ]
    ours = described(hard, ready(hard))
    bounds = [buffer for name, buffer in hard.named_buffers() if name.endswith(("upper", "lower"))]
    assert ours["parameter_bytes"] == 4 * weights
    assert ours["bound_bytes"] == 4 * sum(buffer.numel() for buffer in bounds) > 0
    assert [(site["site"], site["protected"]) for site in ours["coverage"]] == [("2", True), ("5", True)]
    assert all(site["how"].startswith("neuron, ") for site in ours["coverage"])
    assert plain["fingerprint"] != ours["fingerprint"]


def test_tied_weights_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    model[2].weight = model[0].weight
    assert described(model, ready(model))["parameter_bytes"] == 4 * 9


def test_bounds_that_are_not_set_protect_nothing() -> None:
    hard = fitact_fx.harden(network().eval(), "neuron")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        told = described(hard, ready(hard))["coverage"]
    assert [(site["protected"], site["how"]) for site in told] == [(False, "its bounds are not set")] * 2


def test_a_model_that_is_no_graph_has_no_sites_to_tell_of() -> None:
    odd = MODELS["decides on values"]()
    told = described(odd, ready(odd))
    assert told["frontend"] is None
    assert told["coverage"] == []


def test_threads_are_set_inside_and_as_before_behind() -> None:
    before = torch.get_num_threads()
    with threads_set(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(KeyError), threads_set(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before
