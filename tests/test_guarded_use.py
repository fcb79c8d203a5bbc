"""What a guarded model is used for: copying, casting, training, campaigns, lowering, saving, threads, interrupts."""

import copy
import math
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from guarded_networks import inputs, net, run
from torch import nn

import fitact_fx
from fitact_fx import guarded as guarding
from fitact_fx.batches import Batch
from fitact_fx.campaigns.suffix import UNCHANGED, Suffixes
from fitact_fx.errors import RecipeError
from fitact_fx.faults import BitFlip
from fitact_fx.guarded import limits_of
from fitact_fx.places import NAMES


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), fitact_fx.trace])
def test_copies_run_on_their_own_parameters_behind_their_own_limits(how):
    model, x = net(), inputs()
    copied = how(fitact_fx.guard(model))
    assert torch.equal(run(copied, x), run(model, x))
    with torch.no_grad():
        dict(copied.named_parameters())["conv.weight"][0, 0, 0, 0] = math.nan
    found = run(copied, x)
    with torch.no_grad():
        dict(copied.named_parameters())["conv.weight"][0, 0, 0, 0] = 0.0
    assert found.isfinite().all()
    assert torch.equal(found, run(copied, x))


def test_a_cast_model_still_lets_its_clean_parameters_pass():
    model, x = net().double(), inputs().double()
    guarded = fitact_fx.guard(model).float()
    assert torch.equal(run(guarded, x.float()), run(copy.deepcopy(model).float(), x.float()))
    assert not model.training
    assert guarded.train().limits.training
    assert not any(module.training for module in guarded.eval().modules())


def test_gradients_reach_the_parameters_and_hooks_run():
    model, x, seen = net(), inputs(), []
    model.conv.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    guarded = fitact_fx.guard(model)
    for each in (model, guarded):
        model.zero_grad()
        each(x).square().sum().backward()
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        if each is model:
            expected = grads
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(grads, expected, strict=True))
    assert seen == [(4, 8, 6, 6)] * 2


def test_sites_places_and_faults_are_those_of_the_model_without_guard():
    model = net()
    guarded, plain = fitact_fx.guard(model), fitact_fx.trace(model)
    sites = [fitact_fx.find_sites(each, NAMES) for each in (guarded, plain)]
    assert sites[0] == sites[1]
    rows = [
        BitFlip(rate=1e-2).draw(each, format="q15.16", seed=1, targets=["parameters"]).rows for each in (guarded, model)
    ]
    assert list(rows[0]) == list(rows[1])
    hit = {one.name for one in BitFlip(rate=0.1).draw(guarded, seed=1, targets=["bounds"]).hits}
    assert "limits.conv.weight.copy0" in hit


def test_a_hit_reruns_the_graph_from_the_check_on_and_gives_what_the_whole_model_gives():
    model, x = net(), inputs()
    guarded = fitact_fx.guard(model)
    suffixes = Suffixes.of(guarded, [Batch((x,), {}, None)], 1 << 30, {"norm.weight": 1.0})  # which keeps conv's output
    faults = BitFlip(rate=1e-3)
    for trial, targets in enumerate((["parameters"], ["bounds"], ["parameters:conv.weight"])):
        drawn = faults.draw(guarded, seed=3, trial=trial, targets=targets)
        with drawn.applied(guarded):
            found = suffixes.outputs(0, [one.name for one in drawn.hits])
            expected = run(guarded, x)
            assert torch.equal(run(guarded, x) if found is UNCHANGED else found, expected)
    assert suffixes.outputs(0, ["limits.conv.weight.copy1"]) is UNCHANGED


@pytest.mark.parametrize("compiled", [False, True])
def test_campaigns_compare_a_guarded_model_with_its_original(compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the graph, and no machine code
    torch.manual_seed(0)
    model, x = (nn.Linear(4, 4).eval(), torch.randn(4, 4)) if compiled else (net(), inputs())
    variants = {"none": model, "guard": fitact_fx.guard(model)}
    asked = {"fault": BitFlip, "rates": [1e-2], "format": "q15.16", "trials": 4, "seed": 0}
    tables = [
        fitact_fx.run_campaign(
            variants, [(x, torch.tensor([0, 1, 2, 3]))], suffixes=suffixes, compile=compiled, **asked
        ).to_pandas()
        for suffixes in (True, False)
    ]
    assert tables[0]["sdc1"].tolist() == pytest.approx(tables[1]["sdc1"].tolist())
    assert sorted(set(tables[0]["variant"])) == ["guard", "none"]


def parametrized():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    return nn.Sequential(
        nn.Embedding(11, 8), nn.GRUCell(8, 8), normed, nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()


@pytest.mark.parametrize(("model", "x"), [(net(), inputs()), (parametrized(), torch.arange(6))])
def test_a_lowered_guard_is_plain_operators_and_still_guards(model, x):
    guarded = fitact_fx.guard(model)
    torch.compiler.reset()
    fast = fitact_fx.lower(guarded, x, backend="eager")
    ours = [type(each).__module__ for each in fast._orig_mod.modules()]
    assert not [name for name in ours if name.startswith("fitact_fx")]
    assert torch.allclose(run(fast, x), run(model, x), atol=1e-6)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan
    assert torch.allclose(run(fast, x), run(guarded, x), atol=1e-6)
    assert run(fast, x).isfinite().all()


def test_saved_limits_come_back_and_are_not_recorded_anew(tmp_path):
    model, x = net(), inputs()
    clean = run(model, x)
    hard = fitact_fx.harden(model, "layer", "ranger", [x], guard="parameters")
    for number, each in enumerate((fitact_fx.guard(model), hard)):
        fitact_fx.save(each, tmp_path / str(number))
        with torch.no_grad():
            before = model.conv.weight[0, 0, 0, 0].item()
            model.conv.weight[0, 0, 0, 0] = math.nan
            loaded = fitact_fx.load(tmp_path / str(number), model)
            assert torch.equal(run(loaded, x), run(each, x))
            model.conv.weight[0, 0, 0, 0] = before
        assert torch.equal(run(loaded, x), clean)


@pytest.mark.parametrize(
    ("stored", "used"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.float64),
    ],
)
def test_limits_of_a_coarser_type_than_the_parameters_are_refused_and_not_taken_for_theirs(tmp_path, stored, used):
    fitact_fx.save(fitact_fx.guard(net().to(stored)), tmp_path / "limits")
    with pytest.raises(RecipeError, match=rf"conv.weight are {stored}.* {used} here.*\n  .*model.to\({stored}\)"):
        fitact_fx.load(tmp_path / "limits", net().to(used))


@pytest.mark.parametrize("used", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_limits_of_a_finer_type_let_every_clean_parameter_pass(tmp_path, used):
    model = net().double()
    fitact_fx.save(fitact_fx.guard(model), tmp_path / "limits")
    loaded = fitact_fx.load(tmp_path / "limits", model.to(used))
    for name, (limits, *_) in limits_of(loaded).items():
        assert limits(model.get_parameter(name)) is model.get_parameter(name)


def test_an_interrupt_leaves_every_parameter_in_its_place():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3)).eval(), torch.ones(2, 4)
    guarded = fitact_fx.guard(model)
    weights = guarded.get_submodule("1")._flat_weights
    handle = guarded.get_submodule("1").register_forward_pre_hook(raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        guarded(x)
    handle.remove()
    assert dict(guarded.named_parameters()) == dict(model.named_parameters())
    assert guarded.get_submodule("1")._flat_weights is weights
    with torch.no_grad():
        model[0].weight.zero_()  # no old copy is run on
        model[0].bias.zero_()
        assert torch.equal(guarded(x)[0], model(x)[0])


def raise_interrupt(module, args):
    raise KeyboardInterrupt


def test_threads_that_call_a_model_at_the_same_time_leave_every_parameter_in_its_place(monkeypatch):
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval(), torch.ones(2, 4)
    guarded, exchange_of = fitact_fx.guard(model), guarding.exchange_of

    def slow(*given):
        put_in, put_back = exchange_of(*given)

        def late():
            time.sleep(1e-4)
            put_back()

        return put_in, late

    monkeypatch.setattr(guarding, "exchange_of", slow)
    expected = run(model, x)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: run(guarded, x), range(200)))
    assert all(torch.equal(each, expected) for each in found)
    for name, parameter in model.named_parameters():
        assert guarded.get_parameter(name) is parameter


def test_a_hook_that_raises_before_the_guard_ran_is_all_that_is_heard_of():
    guarded, x = fitact_fx.guard(nn.Sequential(nn.Linear(4, 4)).eval()), torch.ones(2, 4)

    def refuse(module, args):
        if isinstance(module, nn.Linear):
            raise ValueError("refused")

    handle = nn.modules.module.register_module_forward_pre_hook(refuse)
    try:
        with pytest.raises(ValueError, match="refused"):  # and no warning, which would be an error here
            guarded(x)
    finally:
        handle.remove()
    assert run(guarded, x).shape == (2, 4)


class Unseen(nn.Module):
    """Code that no graph can hold, which reads its own tensors as Parameters."""

    def __init__(self):
        super().__init__()
        self.linear, self.scale, self.act = nn.Linear(4, 4), nn.Parameter(torch.randn(4)), nn.ReLU()

    def forward(self, x):
        assert isinstance(self.scale, nn.Parameter)
        return self.act(self.linear(x) * self.get_parameter("scale") if x.sum() > -100 else x)


@pytest.mark.parametrize("inside", [False, True])
def test_code_that_was_not_seen_runs_on_guarded_values_that_it_takes_for_its_parameters(inside):
    torch.manual_seed(0)
    model, x = Unseen().eval(), torch.ones(2, 4)
    model = nn.Sequential(model, nn.Linear(4, 3)).eval() if inside else model
    guarded = fitact_fx.guard(model, frontend="partial")
    assert set(limits_of(guarded)) == dict(model.named_parameters()).keys()
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            assert torch.equal(guarded(x), model(x))
    for parameter in model.parameters():
        flat = parameter.detach().view(-1)
        before = flat[1].item()
        flat[1] = math.nan
        found = run(guarded, x)
        flat[1] = 0.0
        assert torch.equal(found, run(model, x))
        flat[1] = before
    with torch.no_grad():
        model.get_parameter("0.scale" if inside else "scale")[2] = math.inf
    assert len(fitact_fx.scrub(guarded)) == 1


def test_a_guard_alone_can_be_verified():
    model, x = net(), inputs()
    guarded = fitact_fx.guard(model)
    assert fitact_fx.verify(model, guarded, x).equal
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] = 100.0
    assert not fitact_fx.verify(model, guarded, x).equal


def test_any_number_of_models_compile_beside_each_other():
    """torch.compile gives up where the code of one function is compiled for the ninth module."""
    torch._dynamo.reset()  # other tests compile as well
    x = torch.randn(2, 3, 6, 6)
    for number in range(10):
        guarded = fitact_fx.guard(nn.Sequential(nn.Conv2d(3, 2 + number, 3), nn.ReLU()).eval())
        compiled = torch.compile(guarded, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x), guarded(x))
