"""Small programs at the edge of what a graph can say: each once came out wrong, without a word."""

import warnings
from collections import OrderedDict
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx.errors import SiteError, TracingError, UnprotectedWarning

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
INFINITE = {"*": (-torch.inf, torch.inf)}
BOTH = pytest.mark.parametrize("frontend", ["symbolic", "export"])


def same(model, hard, *inputs):
    with torch.no_grad():
        ours, theirs = hard(*inputs), model(*inputs)
    return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def infinite(model, *inputs, **options):
    hard = fitact_fx.harden(model, "layer", example_inputs=inputs, **options)
    fitact_fx.set_bounds(hard, INFINITE)
    return hard


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, mask, scale=None):
        x = self.linear(x).relu()
        if mask is not None:
            x = x * mask
        return x if scale is None else x * scale


def test_an_argument_that_is_none_is_not_taken_for_a_tensor():
    model = Masked().eval()
    assert same(model, infinite(model, X, None), X, None)
    with pytest.raises(TracingError, match="argument 'mask' is None, and the graph was made for a tensor there"):
        fitact_fx.trace(model)(X, None)


def test_an_optional_argument_in_the_examples_is_not_fixed_to_its_default():
    model = Masked().eval()
    hard = infinite(model, X, X, X)
    assert hard.frontend == "symbolic"
    assert same(model, hard, X, X, X)


def test_a_flag_in_the_examples_is_what_the_graph_is_for():
    class Flagged(nn.Module):
        def forward(self, x, flag=True, power=2):
            return torch.tanh(x) ** power if flag else torch.relu(x) ** power

    model = Flagged().eval()
    hard = infinite(model, X, False, 3)
    assert same(model, hard, X, False, 3)
    with pytest.raises(TracingError, match="argument 'flag' was fixed to False, which it is in the example inputs"):
        hard(X)


def test_attention_without_weights_gives_none_for_them():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            attended, weights = self.attention(x, x, x, need_weights=False)
            return (attended if weights is None else attended * 2).relu()

    model = Attending().eval()
    assert fitact_fx.verify(model, fitact_fx.harden(model, "layer"), X[None])


@BOTH
def test_a_sum_in_place_keeps_its_type(frontend):
    class Mixed(nn.Module):
        def forward(self, x):
            half = x.bfloat16()
            half += x * 1.3
            return half.relu()

    model = Mixed().eval()
    assert same(model, infinite(model, X, sites=("activations", "residual"), frontend=frontend), X)


@BOTH
def test_a_gate_in_place_on_a_view_is_bounded(frontend):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            whole = self.linear(x)
            part = whole[:, :2]
            part *= torch.sigmoid(part)
            return whole

    model = Gated().eval()
    hard = infinite(model, X, frontend=frontend)
    assert list(fitact_fx.bounds(hard)) == ["sigmoid", "mul"]
    assert same(model, hard, X)


def test_the_models_own_train_does_not_reach_the_users_parameters():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x).relu()

        def train(self, mode=True):
            super().train(mode)
            return self.requires_grad_(False)

    model = Frozen()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    hard = infinite(model, X)
    fitact_fx.coverage(model, X)
    fitact_fx.verify(model, hard, X)
    fitact_fx.lower(hard, X, backend="eager")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_code_that_looks_at_the_gradient_mode_is_refused():
    class Looking(nn.Module):
        def forward(self, x):
            return x.relu() * 2 if torch.is_grad_enabled() else x.relu()

    with pytest.raises(TracingError, match="does something else each time it runs"):
        fitact_fx.trace(Looking())


def test_a_function_that_holds_a_module_is_refused_where_its_code_would_run():
    class Holding(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.function = lambda x: self.relu(x) if x.sum() > 0 else x

        def forward(self, x):
            return self.function(x)

    with pytest.raises(TracingError, match="attribute 'function' of the model itself is a function"):
        fitact_fx.trace(Holding(), frontend="partial")


def test_a_parameter_without_a_shape_is_refused():
    with pytest.raises(TracingError, match=r"0\.weight has no shape yet"):
        fitact_fx.harden(nn.Sequential(nn.LazyLinear(3), nn.ReLU()))


@BOTH
def test_an_ordered_dict_stays_one(frontend):
    class Ordered(nn.Module):
        def forward(self, x):
            return OrderedDict(first=x.relu(), others=[x])

    hard = infinite(Ordered().eval(), X, frontend=frontend)
    assert type(hard(X)) is OrderedDict
    assert list(hard(X)) == ["first", "others"]


def test_an_exported_graph_is_for_the_autocast_that_it_was_exported_under():
    hard = infinite(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), X, frontend="export")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TracingError, match="was exported with autocast off"),
    ):
        hard(X)


@torch.fx.wrap
def put(buffer, value):
    buffer[:, :2] = value[:, :2]


class Putting(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        kept = self.one(x).relu() * 2
        put(kept, self.other(x))
        return kept


def test_a_users_function_whose_result_nobody_reads_is_kept_and_may_write():
    model = Putting().eval()
    hard = infinite(model, X)
    assert torch.allclose(fitact_fx.lower(hard, X, backend="aot_eager")(X), model(X))
    assert {call.name for call in fitact_fx.coverage(hard).open} == {"mul", "other", "put"}


def test_what_a_caller_writes_through_a_view_is_written_in_any_layout():
    class Writing(nn.Module):
        def forward(self, x):
            x[:, :2].relu_()
            return torch.tanh(x)

    model = Writing().eval()
    given = torch.randn(4, 2).t()
    hard = infinite(model, given, frontend="export")
    ours, theirs = (given.clone(memory_format=torch.preserve_format) for _ in range(2))
    assert torch.equal(hard(ours), model(theirs))
    assert torch.equal(ours, theirs)


def test_inputs_in_containers_can_be_calibrated_and_lowered_and_stay_what_they_are():
    class Listed(nn.Module):
        def forward(self, xs):
            return xs[0].relu_() + xs[1]

    hard = fitact_fx.harden(Listed().eval(), "layer")
    given = X.clone()
    fitact_fx.calibrate(hard, [(([given, X],), None)])
    fitact_fx.lower(hard, ([given, X],), backend="eager")
    assert torch.equal(given, X)


def test_complex_values_are_refused_and_do_not_pass():
    class Complex(nn.Module):
        def forward(self, x):
            return torch.fft.ifft(torch.tanh(torch.fft.fft(x))).real

    hard = fitact_fx.harden(Complex().eval(), "layer")
    with pytest.raises(SiteError, match="its value is a complex tensor"):
        fitact_fx.calibrate(hard, [X])


def test_a_view_that_is_returned_and_written_to_is_refused_with_both_lines():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            whole = self.linear(x)
            view = whole.view(-1)
            whole.add_(1)
            return view

    with pytest.raises(SiteError, match=r"it shares memory with another value, and .*whole\.add_\(1\) overwrites that"):
        fitact_fx.harden(Viewed().eval(), "layer", sites="logits")


def test_a_softplus_that_turns_over_has_no_least_value():
    model = nn.Sequential(nn.Softplus(beta=-1.0), nn.Softplus()).eval()
    assert [site.minimum for site in fitact_fx.find_sites(fitact_fx.trace(model))] == [-torch.inf, 0.0]


def test_a_dataclass_with_a_field_of_its_own_is_returned_whole():
    @dataclass
    class Returned:
        value: torch.Tensor
        count: int = field(init=False, default=3)

    class Returning(nn.Module):
        def forward(self, x):
            return Returned(x.relu())

    assert infinite(Returning().eval(), X)(X).count == 3


@pytest.mark.parametrize("frontend", ["export", "partial"])
def test_a_graph_that_was_made_otherwise_is_not_traced_again(frontend):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(x) if frontend == "export" or x.sum() > 0 else x

    graph = fitact_fx.trace(Deciding().eval(), X, frontend=frontend)
    with warnings.catch_warnings(action="ignore", category=UnprotectedWarning):  # of the code that was not seen
        hard = infinite(graph, X)
    assert hard.frontend == frontend
    assert same(Deciding().eval(), hard, X)


def test_the_container_that_is_returned_is_no_call_of_its_own():
    class Returning(nn.Module):
        def forward(self, x):
            return OrderedDict(only=x.relu())

    found = fitact_fx.coverage(Returning().eval())
    assert [call.name for call in found.calls] == ["relu"]
    assert found.complete


def test_an_argument_that_is_asked_about_is_a_place_for_faults():
    class Asking(nn.Module):
        def forward(self, x):
            return x.relu() if isinstance(x, torch.Tensor) else x

    flip = fitact_fx.faults.BitFlip(places=[("x@after", 0, 31)])
    faulty = fitact_fx.inject(Asking().eval(), "x", flip, example_inputs=X)
    assert torch.equal(faulty(X) != X.relu(), torch.arange(8).reshape(2, 4) == 0)


def test_a_users_own_attention_may_return_what_it_likes():
    class Single(nn.MultiheadAttention):
        def forward(self, query, key, value, need_weights=True):
            return torch.relu(self.out_proj(query + key)) * (2 if need_weights else 3)

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Single(4, 2)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)

    model = Attending().eval()
    assert same(model, infinite(model, X), X)


def test_a_model_that_copies_itself_with_fewer_modules_is_hardened():
    class Forgetting(nn.Module):
        def __init__(self, cache=True):
            super().__init__()
            self.relu = nn.ReLU()
            if cache:
                self.cache = nn.Identity()

        def __deepcopy__(self, memo):
            return Forgetting(cache=False)

        def forward(self, x):
            return self.relu(x)

    model = Forgetting()
    assert same(model, infinite(model, X), X)
