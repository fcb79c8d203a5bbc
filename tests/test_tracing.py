"""The front end: the graph does what the model does, or an error says where and why it cannot."""

import builtins
import copy
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import hardened_like, module, run
from torch import Tensor, nn

from fitact_fx.errors import TracingError
from fitact_fx.hardening import harden
from fitact_fx.sites import find_sites
from fitact_fx.tracing import trace

X = torch.linspace(-3, 3, 8).reshape(2, 4)


def refusal(model: Any) -> str:
    with pytest.raises(TracingError) as refused:
        trace(model, frontend="symbolic")
    return str(refused.value)


class Leaf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return F.relu(x)
        return x


class TestWhatIsNoModel:
    def test_another_object_is_refused_with_its_type(self) -> None:
        assert refusal(len) == (
            "expected an nn.Module, got builtin_function_or_method;\n  pass the model object itself"
        )

    def test_a_compiled_model_is_refused_at_any_depth(self) -> None:
        compiled = torch.compile(nn.ReLU())
        assert refusal(compiled) == "this model is compiled already;\n  pass the original, and compile the result"
        assert "module '0' of this model is compiled already" in refusal(nn.Sequential(compiled))

    def test_a_model_compiled_in_place_is_traced(self) -> None:
        model = nn.Sequential(nn.ReLU())
        model.compile()
        assert len(find_sites(trace(model))) == 1

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
    def test_a_scripted_model_is_refused_at_any_depth(self) -> None:
        scripted = torch.jit.script(nn.ReLU())
        assert refusal(scripted).startswith("this model is a ScriptModule, which has no Python code left to trace")
        assert "module '0' of this model is a ScriptModule" in refusal(nn.Sequential(scripted))

    def test_data_parallel_is_refused_with_what_to_pass(self) -> None:
        assert refusal(nn.DataParallel(nn.ReLU())) == ("a DataParallel only calls another model;\n  pass its .module")

    def test_a_forward_replaced_on_the_object_is_refused(self) -> None:
        model = nn.Sequential(nn.ReLU())
        model.forward = lambda x: x
        assert "the forward of this Sequential was replaced on the object" in refusal(model)


class TestControlFlow:
    def test_a_branch_on_values_names_the_module_and_the_line(self) -> None:
        message = refusal(nn.Sequential(nn.Sequential(nn.ReLU(), Leaf())))
        assert message.startswith("cannot trace module '0.1' (test_tracing.py:")
        assert "in forward: if x.sum() > 0:)" in message
        assert 'move that line into a function marked with torch.fx.wrap("name")' in message

    def test_a_branch_in_the_model_itself_names_its_class(self) -> None:
        assert refusal(Leaf()).startswith("cannot trace the model itself (Leaf) (test_tracing.py:")

    def test_a_branch_on_a_buffer_is_refused_and_not_frozen(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return F.relu(x) if self.flag else x

        assert "in forward: return F.relu(x) if self.flag else x)" in refusal(module(forward, flag=torch.tensor(True)))

    def test_a_branch_on_the_shape_of_a_parameter_or_buffer_is_a_constant(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if self.weight.shape[0] != 4 or self.buffer.ndim != 1 or len(self.buffer) != self.buffer.size(0):
                return x
            return F.relu(x @ self.weight + self.buffer)

        hardened_like(module(forward, weight=nn.Parameter(torch.eye(4)), buffer=torch.ones(4)), X)

    def test_isinstance_sees_a_tensor(self) -> None:
        def forward(self: nn.Module, x: Any) -> Tensor:
            if isinstance(x, list | tuple) or not isinstance(x, Tensor) or not torch.is_tensor(x):
                x = x[0]
            return F.relu(x) if isinstance(x * 2, torch.Tensor) else x

        hardened_like(module(forward), X)

    def test_a_size_is_no_tensor(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return x if isinstance(x.shape, Tensor) or isinstance(x.size(0) * 2, Tensor) else F.relu(x)

        hardened_like(module(forward), X)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda self, x: isinstance(x.size(0), int),
            lambda self, x: isinstance(x.shape[0], int),
            lambda self, x: isinstance(x.shape, tuple),
            lambda self, x: isinstance(x.size(), torch.Size),
            lambda self, x: isinstance(x.shape[1:], tuple),
            lambda self, x: isinstance(x.ndim, int),
            lambda self, x: isinstance(x.chunk(2), tuple),
            lambda self, x: isinstance(x.chunk(2)[0], Tensor),
            lambda self, x: isinstance(x.max(1), tuple),
            lambda self, x: isinstance(x.max(), Tensor),
            lambda self, x: isinstance(x.topk(2).values, Tensor),
            lambda self, x: isinstance(x.mT, list | Tensor),
            lambda self, x: isinstance(x.dtype, torch.dtype),
            lambda self, x: isinstance(self.weight, nn.Parameter),
            lambda self, x: not isinstance(x, nn.Parameter),
            lambda self, x: not isinstance(x.add, Tensor),
        ],
    )
    def test_isinstance_answers_as_for_the_value(self, ask: Callable[..., bool]) -> None:
        model = module(lambda self, x: F.relu(x) if ask(self, x) else x, weight=nn.Parameter(torch.ones(4)))
        assert ask(model, X)
        hardened_like(model, X)

    def test_isinstance_of_what_may_be_several_things_is_refused(self) -> None:
        model = module(lambda self, x: F.relu(x) if isinstance(x.shape[0] / 2, int) else x)
        assert "forward asks whether a value is a <class 'int'>, which is not known of it" in refusal(model)

    def test_isinstance_is_pythons_own_again_after_tracing(self) -> None:
        own = builtins.isinstance
        trace(module(lambda self, x: F.relu(x)))
        assert builtins.isinstance is own
        refusal(Leaf())
        assert builtins.isinstance is own

    def test_a_factory_that_takes_no_stand_ins_says_what_does(self) -> None:
        message = refusal(module(lambda self, x: F.relu(x) + torch.zeros(x.size(0), 4)))
        assert message.endswith(
            "torch.zeros cannot take sizes of tensors one by one;\n"
            "  give all sizes as one tuple, torch.zeros((x.size(0), ...)), or write x.new_zeros(...)"
        )
        hardened_like(module(lambda self, x: F.relu(x) + torch.zeros((x.size(0), 4))), X)
        hardened_like(module(lambda self, x: F.relu(x) + x.new_zeros(x.size(0), 4)), X)


# Each is an expression of x that torch's C code takes apart itself.
READ_BY_C = """
torch.where(x > 0, x, 0.)
torch.where(x > 0, x, -1)
torch.as_tensor(x)
torch.asarray(x)
torch.tensor(x)
torch.tensor([1., x.mean()])
torch.full((1,), x.sum())
torch.isin(x, 0.)
torch.result_type(x, 1.)
torch.Tensor(x)
torch.FloatTensor(x)
torch.scalar_tensor(x.sum())
torch.nn.Parameter(x)
torch.from_numpy(x)
torch.zeros(2, 4).copy_(x)
torch.zeros(2, 4).new_tensor(x)
torch.zeros(2, 4)[x > 0]
torch.linspace(0, x.sum(), 4)
torch.clamp(x, min=x.mean())
torch.ones((x.size(0), 4))
torch.tensor(x.shape)
""".strip()
TRACE_EACH = """
import sys, torch, fitact_fx.tracing, fitact_fx.errors
from torch import nn
torch.set_num_threads(1)
for line in sys.stdin.read().splitlines():
    space = {"torch": torch, "nn": nn}
    exec(f"class M(nn.Module):\\n  def forward(self, x):\\n    return {line}", space)
    model, x = space["M"](), torch.linspace(-3, 3, 8).reshape(2, 4)
    try:
        got, expected = fitact_fx.tracing.trace(model)(x), model(x)
        same = torch.equal(got, expected) if isinstance(got, torch.Tensor) else got == expected
        print("same" if same else "other", line, sep=": ", flush=True)
    except fitact_fx.errors.TracingError:
        print("refused", line, sep=": ", flush=True)
"""


def test_code_of_torchs_that_is_not_python_never_takes_a_stand_in_for_a_tensor() -> None:
    """It would read memory that is not there, so this runs in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", TRACE_EACH], input=READ_BY_C, capture_output=True, text=True, check=False
    )
    done = dict(reversed(line.split(": ", 1)) for line in ran.stdout.splitlines())
    assert list(done) == READ_BY_C.splitlines(), ran.stderr
    assert set(done.values()) == {"same", "refused"}
    assert done["torch.where(x > 0, x, 0.)"] == done["torch.full((1,), x.sum())"] == "same"
    assert ran.returncode == 0


class TestWhatPythonWouldForget:
    def test_adding_in_place_changes_every_name_of_the_tensor(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y = F.relu(x)
            z, half = y, y[:, :2]
            z += 1
            z -= x
            z *= 2
            z /= 3
            half **= 2
            return y, half

        hardened_like(module(forward), X)

    def test_adding_in_place_keeps_the_type_of_the_tensor(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            y = F.relu(x.half())
            y += x
            return y

        hardened_like(module(forward), X)

    def test_adding_to_a_size_only_moves_the_name(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            n = rows = x.shape[0]
            n += 2
            n *= 2
            shape = x.shape[1:]
            shape += (1,)
            return F.relu(x).reshape(rows, *[1], -1) * n + x.new_zeros(rows, 1, 1)

        hardened_like(module(forward), X)

    def test_setting_an_item_is_recorded(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            y = F.relu(x)
            y[:, 0] = 5.0
            out = torch.zeros(2, 4)
            out[:, 1:] = y[:, 1:]
            return y, out

        hardened_like(module(forward), X)

    def test_setting_an_attribute_of_a_tensor_is_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            y = F.relu(x)
            y.tag = 1
            return y

        assert "forward sets 'tag' on a tensor, which a graph would lose" in refusal(module(forward))


class TestConstantsMadeInForward:
    def test_a_constant_that_forward_changes_starts_anew_each_time(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            total = torch.zeros(4)
            for row in range(2):
                total += x[row]
            return F.relu(total)

        model = module(forward)
        hardened_like(model, X)
        assert trace(model).eval().train().training

    def test_a_constant_changed_after_its_first_use_is_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            shift = torch.ones(4)
            y = x + shift
            shift += 1
            return F.relu(y)

        message = refusal(module(forward))
        assert message.startswith("the model itself (test_tracing.py:")
        assert "uses a tensor made in forward, and later changes it or another view of its memory" in message

    def test_two_views_of_a_constant_that_the_input_changes_are_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            shift = torch.ones(4)
            view = shift[:2]
            view += x[0, :2]
            return F.relu(x + shift)

        assert "or another view of its memory" in refusal(module(forward))

    def test_a_constant_is_not_the_users_own_tensor(self) -> None:
        outside = torch.ones(4)
        graph_module = trace(module(lambda self, x: F.relu(x + outside)))
        outside.zero_()
        assert torch.equal(run(graph_module, (X,))[0], F.relu(X + 1))

    def test_a_constant_is_in_no_state(self) -> None:
        graph_module = trace(module(lambda self, x: F.relu(x + torch.ones(4))))
        assert list(graph_module.state_dict()) == []
        assert list(copy.deepcopy(graph_module).state_dict()) == []


class TestRandomNumbers:
    @pytest.mark.parametrize(
        "draw",
        [
            lambda: torch.rand(4),
            lambda: torch.zeros(4).uniform_(),
            random.random,
            np.random.rand,
        ],
    )
    def test_global_generators_are_refused_and_left_alone(self, draw: Callable[[], Any]) -> None:
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        message = refusal(module(lambda self, x: F.relu(x + draw())))
        assert "draws random numbers that do not depend on its inputs (at this line or before it)" in message
        assert "nn.Dropout" in message
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002

    @pytest.mark.parametrize("part", [np.random.default_rng(0), random.Random(0)])
    def test_a_generator_of_its_own_is_refused(self, part: Any) -> None:
        message = refusal(module(lambda self, x: F.relu(x) * self.source.random(), source=part))
        assert message.startswith("forward does something else each time it runs (test_tracing.py:")

    def test_a_torch_generator_of_its_own_is_refused(self) -> None:
        model = module(lambda self, x: F.relu(x + torch.rand(4, generator=self.source)), source=torch.Generator())
        assert "a random generator of its own, which a graph would freeze" in refusal(model)

    def test_a_count_of_calls_is_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            self.calls += 1
            return F.relu(x) * self.calls

        assert "such as counting its calls" in refusal(module(forward, calls=0))

    def test_a_table_kept_from_the_first_call_is_no_change(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(4.0)
            return F.relu(x + self.table)

        hardened_like(module(forward, table=None), X)

    def test_random_numbers_made_from_the_input_stay_random(self) -> None:
        hardened_like(module(lambda self, x: F.relu(x + torch.rand_like(x))), X)


class TestAutocast:
    @pytest.mark.parametrize("enabled", [True, False])
    def test_a_region_in_forward_is_refused_at_its_line(self, enabled: bool) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                return F.relu(x)

        message = refusal(module(forward))
        assert message.startswith("the model itself (test_tracing.py:")
        assert "in forward: return F.relu(x))\n  runs inside an autocast region of its own" in message
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")

    def test_autocast_around_the_call_is_the_callers(self) -> None:
        model = module(lambda self, x: F.relu(self.linear(x)), linear=nn.Linear(4, 4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hardened_like(model, X)


class TestBuffers:
    def test_a_buffer_is_read_when_the_graph_runs(self) -> None:
        model = module(lambda self, x: F.relu(x * self.scale[None].exp()), scale=torch.zeros(4))
        graph_module = trace(model)
        graph_module.load_state_dict({"scale": torch.ones(4)})
        assert torch.equal(run(graph_module, (X,))[0], F.relu(X * torch.ones(4).exp()))
        assert torch.equal(model.scale, torch.zeros(4))

    def test_a_buffer_changed_in_place_changes_in_the_graphs_own(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            self.mean.mul_(0.5).add_(x.mean(0), alpha=0.5)
            return F.relu(x - self.mean)

        model = module(forward, mean=torch.zeros(4))
        hardened_like(model, X)
        assert torch.equal(model.mean, torch.zeros(4))

    def test_a_buffer_replaced_in_forward_is_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            self.mean = self.mean + 1
            return F.relu(x - self.mean)

        message = refusal(module(forward, mean=torch.zeros(4)))
        assert "forward changes the model's own buffer 'mean', and a graph would lose that" in message
        assert "change it in place (self.name.copy_(value))" in message


class TestArguments:
    def test_a_default_is_fixed_and_another_value_is_refused_by_name(self) -> None:
        def forward(
            self: nn.Module, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, flip: bool = False
        ) -> Any:
            x = x if mask is None else x * mask
            return F.relu(-x if flip else x) * scale

        graph_module = trace(module(forward))
        for call in (lambda m: m(X), lambda m: m(X, None, 2.0), lambda m: m(x=X, flip=False, scale=2)):
            assert torch.equal(call(graph_module), F.relu(X) * 2)
        for name, value in {"mask": torch.ones(4), "scale": 3.0, "flip": True}.items():
            with pytest.raises(TracingError, match=rf"argument '{name}' was fixed to its default") as refused:
                graph_module(X, **{name: value})
            assert "wrap the model in a module whose forward passes the value you want" in str(refused.value)

    def test_positions_names_and_variable_arguments_are_the_models(self) -> None:
        def forward(self: nn.Module, x: Tensor, y: Tensor, *more: Tensor, **named: Tensor) -> Tensor:
            return F.relu(x - y) + more[0] * named["z"]

        model = module(forward)
        graph_module = trace(model)
        arguments = (X, X * 2, X + 1)
        assert torch.equal(graph_module(*arguments, z=X), model(*arguments, z=X))

    def test_arguments_by_name_only_keep_their_names(self) -> None:
        def forward(self: nn.Module, x: Tensor, *, y: Tensor, scale: float = 2.0) -> Tensor:
            return F.relu(x - y) * scale

        model = module(forward)
        assert torch.equal(trace(model)(X, y=X * 2), model(X, y=X * 2))

    def test_a_required_name_behind_a_default_is_refused(self) -> None:
        def forward(self: nn.Module, x: Tensor, mask: Tensor | None = None, *, y: Tensor) -> Tensor:
            return F.relu(x - y)

        message = refusal(module(forward))
        assert message.startswith("forward takes 'y' by name only, behind arguments that may be left out")

    def test_no_arguments_at_all_is_a_model_too(self) -> None:
        model = module(lambda self: F.relu(self.weight), weight=nn.Parameter(X.clone()))
        assert torch.equal(trace(model)(), F.relu(X))


@dataclass
class Outputs:
    logits: Tensor
    sizes: tuple[int, int]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class TestOutputs:
    @pytest.mark.parametrize(
        "make",
        [
            lambda y: (y, [y + 1, None]),
            lambda y: {"out": y, "aux": {"deep": y * 2}},
            lambda y: Pair(y, None),
            lambda y: [y],
        ],
    )
    def test_nested_outputs_keep_their_form(self, make: Callable[[Tensor], Any]) -> None:
        model = module(lambda self, x: make(F.relu(x)))
        expected, got = model(X), trace(model)(X)
        assert type(got) is type(expected)
        assert str(got) == str(expected)

    def test_a_dataclass_keeps_its_form(self) -> None:
        got = trace(module(lambda self, x: Outputs(F.relu(x), (1, 2))))(X)
        assert isinstance(got, Outputs)
        assert torch.equal(got.logits, F.relu(X))
        assert got.sizes == (1, 2)


def note(module: nn.Module, *arguments: Any) -> None:
    """A hook that does nothing."""


class TestHooks:
    @pytest.mark.parametrize(
        "register",
        [
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_full_backward_hook",
            "register_full_backward_pre_hook",
        ],
    )
    def test_hooks_on_the_model_are_refused_with_their_line(self, register: str) -> None:
        model = nn.Sequential(nn.ReLU())
        getattr(model, register)(note)
        message = refusal(model)
        assert message.startswith("the model itself (Sequential) has a hook, note (")
        assert f"test_tracing.py:{note.__code__.co_firstlineno})" in message
        assert "remove it (handle.remove()) before hardening, and register it on the hardened model" in message

    def test_a_hook_on_a_container_is_refused_before_it_meets_a_stand_in(self) -> None:
        seen: list[Any] = []
        model = nn.Sequential(nn.Sequential(nn.ReLU()))
        model[0].register_forward_hook(lambda module, args, output: seen.append(output))
        assert refusal(model).startswith("0 has a hook, ")
        assert seen == []

    def test_a_hook_on_a_module_that_is_never_called_is_no_matter(self) -> None:
        model = module(lambda self, x: F.relu(x), unused=nn.Sequential(nn.ReLU()))
        model.unused.register_forward_hook(note)
        assert len(find_sites(trace(model))) == 1

    def test_hooks_on_what_is_called_whole_still_run(self) -> None:
        seen: list[int] = []
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        model[1].register_forward_hook(lambda module, args, output: seen.append(len(output)))
        hard = hardened_like(model, X)
        seen.clear()
        run(hard, (X,))
        assert seen == [2]


class Inner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)  # innermost line


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Inner(), nn.Sequential(Inner()))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.act(x)


class TestSourceLines:
    def test_a_site_tells_file_line_and_code(self) -> None:
        sites = find_sites(trace(Outer()))
        line = Inner.forward.__code__.co_firstlineno + 1
        inner = f"test_tracing.py:{line}, in forward: return F.relu(x)  # innermost line"
        assert [site.source for site in sites[:2]] == [inner, inner]
        assert [site.module_path for site in sites] == ["blocks.0", "blocks.1.0", ""]
        line = Outer.forward.__code__.co_firstlineno + 2
        assert sites[2].source == f"test_tracing.py:{line}, in forward: return self.act(x)"

    def test_a_model_without_code_of_its_own_says_so(self) -> None:
        (site,) = find_sites(trace(nn.Sequential(nn.ReLU())))
        assert site.source == "source line not recorded, node _0"

    def test_the_line_is_the_models_and_not_torchs(self) -> None:
        torchvision = pytest.importorskip("torchvision")
        site = find_sites(trace(torchvision.models.resnet18(weights=None)))[1]
        assert site.source.startswith("resnet.py:")
        assert site.source.endswith("in forward: out = self.relu(out)")

    def test_code_without_a_file_is_a_users_too(self) -> None:
        space: dict[str, Any] = {"nn": nn, "F": F}
        exec(compile("class M(nn.Module):\n def forward(self, x):\n  return F.relu(x)", "<stdin>", "exec"), space)
        (site,) = find_sites(trace(space["M"]()))
        assert site.source.startswith("<stdin>:3, in forward")


@pytest.fixture(autouse=True)
def _generators_and_autocast_are_left_alone() -> Iterator[None]:
    states = torch.get_rng_state(), random.getstate()
    yield
    assert not torch.is_autocast_enabled("cpu")
    torch.set_rng_state(states[0])
    random.setstate(states[1])


def test_tracing_leaves_every_generator_as_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    harden(module(lambda self, x: self.drop(F.relu(x)), drop=nn.Dropout(0.5)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


def test_gradients_flow_through_a_no_grad_region_whose_values_are_kept() -> None:
    """What `trace` documents: the region is not kept."""

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.linear(x)
        return F.relu(h)

    model = module(forward, linear=nn.Linear(4, 4))
    hard = hardened_like(model, X)
    assert hard(X).requires_grad
    assert not model(X).requires_grad
