"""What must hold on any architecture: rewrites change no clean value, and nothing of the user's."""

import copy
import glob
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import SiteError, UncalibratedWarning, UnprotectedWarning
from fitact_fx.faults import BitFlip
from fitact_fx.kinds import module_kind
from fitact_fx.testing import architectures

INFINITE = {"*": (-torch.inf, torch.inf)}
GRANULARITIES = ("neuron", "channel", "layer")

# `make fuzz` sets the number; by default the whole file stays within a minute.
settings.register_profile(
    "architectures",
    max_examples=int(os.environ.get("FITACT_FUZZ", "25")),
    deadline=None,
    derandomize="FITACT_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
PROFILE = settings.get_profile("architectures")
NETWORKS = architectures(max_steps=12)


def tensors_of(output):
    values = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
    return list(values)


def run(model, inputs, seed=0):
    """The outputs on copies of the inputs, and those copies as the model left them, as raw numbers without NaN."""
    own = [each.clone(memory_format=torch.preserve_format) for each in inputs]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        torch.manual_seed(seed)
        return [each.detach().clone().nan_to_num() for each in (*tensors_of(model(*own)), *own)]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)
    )


def hardened(model, **options):
    """The model hardened, or None if it has no activation at all; with infinite bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprotectedWarning)
        try:
            hard = fitact_fx.harden(model, **options)
        except SiteError as error:
            assert "no activation was found" in str(error)  # noqa: PT017
            return None
    return hard


@settings(PROFILE)
@given(NETWORKS, st.sampled_from(GRANULARITIES), st.sampled_from(("fitact", "ranger")))
def test_unset_and_infinite_bounds_give_bitwise_the_clean_output(architecture, granularity, scheme):
    for training in (False, True):
        model = architecture.module().train(training)
        hard = hardened(model, granularity={"*": "layer"} if granularity == "channel" else granularity, scheme=scheme)
        if hard is None:
            return
        inputs = architecture.inputs()
        for bounds in (None, INFINITE):
            if bounds is not None:
                fitact_fx.set_bounds(hard, bounds)
            assert equal(run(hard, inputs), run(copy.deepcopy(model), inputs))


@settings(PROFILE)
@given(NETWORKS, st.sampled_from(("before", "after")), st.sampled_from(("float32", "q15.16", "bfloat16")))
def test_injection_without_faults_is_the_identity(architecture, where, stored):
    model, inputs = architecture.module(), architecture.inputs()
    dtypes = {each.dtype for each in (*model.parameters(), *inputs)}
    if not dtypes <= set(fitact_fx.faults.find_format(stored).dtypes):
        return
    try:
        faulty = fitact_fx.inject(model, "*", BitFlip(rate=0), where, format=stored, example_inputs=inputs)
    except SiteError as error:
        # The second: a module that gives several tensors, such as attention.
        refusals = ("it shares memory with another value", "its value is a tuple and not a tensor")
        assert any(each in str(error) for each in refusals)  # noqa: PT017
        return
    ours, theirs = run(faulty, inputs), run(model, inputs)
    if not fitact_fx.find_sites(fitact_fx.trace(model)):
        # Then "*" means the inputs as well: what the model would write into those goes into the hit copies.
        ours, theirs = ours[: -len(inputs)], theirs[: -len(inputs)]
    assert equal(ours, theirs)


@settings(PROFILE)
@given(NETWORKS, st.sampled_from(GRANULARITIES))
def test_the_users_model_and_the_random_state_are_never_changed(architecture, granularity):
    model, inputs = architecture.module(), architecture.inputs()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    hard = hardened(model, granularity=granularity)
    if hard is not None:
        try:
            fitact_fx.calibrate(hard, [inputs[0] if len(inputs) == 1 else (inputs, None)])
        except SiteError as error:  # the one refusal that is meant; it must leave the model alone as well
            assert granularity == "channel"
            assert "where its channels lie could not be told" in str(error)  # noqa: PT017
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained


@settings(PROFILE)
@given(NETWORKS)
def test_a_second_trace_finds_the_same_sites_and_hardening_twice_is_refused(architecture):
    model = architecture.module()
    first, second = ([site.name for site in fitact_fx.find_sites(fitact_fx.trace(model))] for _ in range(2))
    assert first == second
    hard = hardened(model)
    if hard is not None:
        with pytest.raises(SiteError, match="hardened already"):
            fitact_fx.harden(hard)


@settings(PROFILE)
@given(NETWORKS, st.sampled_from(("neuron", "layer")), st.sampled_from(("fitact", "ranger")))
def test_calibration_data_pass_through_their_own_bounds_and_survive_saving(
    tmp_path_factory, architecture, granularity, scheme
):
    model, inputs = architecture.module(), architecture.inputs()
    hard = hardened(model, granularity=granularity, scheme=scheme)
    if hard is None:
        return
    batch = inputs[0] if len(inputs) == 1 else (inputs, None)
    fitact_fx.calibrate(hard, [batch])
    expected = run(model, inputs)
    assert equal(run(hard, inputs), expected)
    path = tmp_path_factory.mktemp("saved") / "bounds"
    fitact_fx.save(hard, path)
    assert equal(run(fitact_fx.load(path, model), inputs), expected)


@settings(PROFILE)
@given(NETWORKS)
def test_layer_bounds_are_at_least_the_neurons(architecture):
    model, inputs = architecture.module(), architecture.inputs()
    found = {}
    for granularity in ("neuron", "layer"):
        hard = hardened(model, granularity=granularity)
        if hard is None:
            return
        fitact_fx.calibrate(hard, [inputs[0] if len(inputs) == 1 else (inputs, None)])
        found[granularity] = fitact_fx.bounds(hard)
    for name, (low, high) in found["neuron"].items():
        whole_low, whole_high = found["layer"][name]
        assert high is None or (high <= whole_high).all()
        assert low is None or (low >= whole_low).all()


@settings(PROFILE)
@given(NETWORKS)
def test_channel_bounds_are_the_extremes_of_the_neurons_of_each_channel(architecture):
    model, inputs = architecture.module(), architecture.inputs()
    batch = inputs[0] if len(inputs) == 1 else (inputs, None)
    neurons = hardened(model, granularity="neuron")
    if neurons is None:
        return
    fitact_fx.calibrate(neurons, [batch])
    known = {
        name: bounded.spec.granularity.dim
        for name, bounded in bounded_sites(hardened(model, granularity="channel")).items()
        if bounded.spec.granularity.dim is not None
    }
    if not known:
        return
    hard = hardened(model, granularity={"*": "layer", **{glob.escape(name): "channel" for name in known}})
    fitact_fx.calibrate(hard, [batch])
    for name, dim in known.items():
        for ours, theirs, extreme in zip(
            fitact_fx.bounds(hard)[name], fitact_fx.bounds(neurons)[name], (torch.amin, torch.amax), strict=True
        ):
            if theirs is None:
                continue
            channel = 1 if theirs.ndim == 2 else dim % theirs.ndim
            assert torch.equal(
                ours, extreme(theirs, tuple(each for each in range(theirs.ndim) if each != channel), True)
            )


@settings(PROFILE)
@given(NETWORKS)
def test_each_call_of_an_activation_module_is_a_site_of_its_own(architecture):
    model, calls = architecture.module(), []
    for module in model.modules():
        if module_kind(module) is not None:
            module.register_forward_hook(lambda *_: calls.append(1))
    run(model, architecture.inputs())
    sites = fitact_fx.find_sites(fitact_fx.trace(architecture.module()))
    assert sum(site.node.op == "call_module" for site in sites) == len(calls)


@settings(PROFILE)
@given(NETWORKS, st.sampled_from(("neuron", "layer")), st.sampled_from(("fitact", "ranger")))
def test_what_a_bound_lets_through_is_finite_and_inside_it(architecture, granularity, scheme):
    model, inputs = architecture.module(), architecture.inputs()
    hard = hardened(model, granularity=granularity, scheme=scheme)
    if hard is None:
        return
    fitact_fx.calibrate(hard, [inputs[0] if len(inputs) == 1 else (inputs, None)])
    sites = bounded_sites(hard)
    limits = {name: bounded.bounds.limits(next(iter(inputs)).dtype) for name, bounded in sites.items()}
    for parameter in hard.parameters():
        parameter.data = parameter.data * 1e4

    def check(bounded, args, output):
        low, high = limits[bounded.site]
        assert not output.isnan().any()
        assert (output <= high.to(output.dtype)).all() or (output == 0).any()
        assert ((output >= low) | (output == 0)).all()
        assert ((output <= high) | (output == 0)).all()

    for bounded in sites.values():
        bounded.register_forward_hook(check)
    run(hard, inputs)
