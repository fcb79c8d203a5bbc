"""A lowered guard runs its graph without checks where every parameter is clean, and only there."""

import copy
import math

import pytest
import torch
from guarded_networks import inputs, net, run
from torch import nn

import fitact_fx


def which_ran(fast, x):
    """The compiled forms of a lowered guard that a run calls, by name, and its output."""
    called, path = [], fast.forward
    forms = {name: getattr(path, name) for name in ("checked", "unchecked")}
    for name, form in forms.items():
        setattr(path, name, lambda *args, name=name, form=form: (called.append(name), form(*args))[1])
    output = run(fast, x)
    vars(path).update(forms)
    return called, output


def lowered_net():
    model, x = net(), inputs()
    torch.compiler.reset()
    return model, x, fitact_fx.lower(fitact_fx.guard(model), x, backend="eager")


def test_a_lowered_guard_checks_in_the_graph_only_where_something_is_outside():
    model, x, fast = lowered_net()
    assert which_ran(fast, x)[0] == ["unchecked"]
    with torch.no_grad():
        before = model.conv.weight[0, 0, 0, 0].item()
        model.conv.weight[0, 0, 0, 0] = math.nan
        called, output = which_ran(fast, x)
        assert called == ["checked"]
        model.conv.weight[0, 0, 0, 0] = 0.0
        assert torch.allclose(output, run(model, x), atol=1e-6)
        model.conv.weight[0, 0, 0, 0] = before
    assert which_ran(fast, x)[0] == ["unchecked"]


def assigned(model, fast):
    fast._orig_mod.conv.weight = nn.Parameter(torch.full_like(model.conv.weight, math.nan))


def filled(model, fast):
    model.conv.weight.data = torch.full_like(model.conv.weight, math.nan)


def a_copy_of_limits_hit(model, fast):
    filled(model, fast)
    next(buffer for name, buffer in fast.named_buffers() if name.endswith("conv.weight.copy1")).fill_(math.inf)


@pytest.mark.parametrize("change", [assigned, filled, a_copy_of_limits_hit])
def test_a_lowered_guard_looks_at_the_parameters_that_its_graph_runs_on(change):
    model, x, fast = lowered_net()
    change(model, fast)
    called, output = which_ran(fast, x)
    assert called == ["checked"]
    zeroed = copy.deepcopy(model)
    zeroed.conv.weight.data.zero_()
    assert torch.allclose(output, run(zeroed, x), atol=1e-6)


def replaced_part(model, fast):
    fast.one = nn.Linear(6, 6)


def hooked(model, fast):
    fast._orig_mod.register_forward_hook(lambda module, args, output: output + 1)


@pytest.mark.parametrize("change", [replaced_part, hooked])
def test_a_lowered_guard_honours_what_is_done_to_its_graph(change):
    model, x, fast = lowered_net()
    change(model, fast)
    called, output = which_ran(fast, x)
    assert called == ["checked"]
    assert not torch.allclose(output, run(model, x))


def test_a_lowered_guard_is_in_evaluation_mode():
    _, _, fast = lowered_net()
    assert not any(module.training for module in (fast, fast._orig_mod))


def test_a_guard_with_faults_in_its_parameters_is_lowered():
    model, x = net(), inputs()
    guarded = fitact_fx.guard(model)
    model.conv.weight.data.fill_(math.nan)
    torch.compiler.reset()
    called, output = which_ran(fitact_fx.lower(guarded, x, backend="eager"), x)
    assert called == ["checked"]
    assert torch.equal(output, run(guarded, x))


def test_a_guard_inside_of_another_model_keeps_watching_its_own_parameters():
    first, inner = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)).eval()
    first.load_state_dict(inner[0].state_dict())
    outer, x = nn.Sequential(first, fitact_fx.guard(inner)).eval(), torch.ones(1, 3)
    torch.compiler.reset()
    fast = fitact_fx.lower(fitact_fx.trace(outer), x, backend="eager")
    assert which_ran(fast, x)[0] == ["unchecked"]
    inner[0].weight.data[0, 0] = math.nan
    assert which_ran(fast, x)[0] == ["checked"]
    assert run(fast, x).isfinite().all()


def test_a_lowered_guard_compiles_into_one_graph_that_checks():
    model, x, fast = lowered_net()
    whole = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.allclose(run(whole, x), run(model, x), atol=1e-6)
    model.conv.weight.data.fill_(math.nan)
    assert torch.equal(run(whole, x), run(fast, x))
    assert run(whole, x).isfinite().all()


def test_a_copy_of_a_lowered_guard_has_parameters_of_its_own():
    _, x, fast = lowered_net()
    copied = copy.deepcopy(fast)
    copied.conv.weight.data.fill_(math.nan)
    assert run(copied, x).isfinite().all()
    assert which_ran(fast, x)[0] == ["unchecked"]
