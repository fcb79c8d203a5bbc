"""What must hold on any architecture: rewrites change no clean value, and nothing of the user's."""

import copy
import dataclasses
import glob
import os
import re
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fitact_fx
from fitact_fx import policies, schemes
from fitact_fx.ambience import slow_path
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import SiteError, TracingError, UncalibratedWarning, UnprotectedWarning
from fitact_fx.faults import BitFlip
from fitact_fx.kinds import module_kind
from fitact_fx.places import NAMES
from fitact_fx.policies import Clamp, FeatureMaps, Zero
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.testing import architectures

INFINITE = {"*": (-torch.inf, torch.inf)}

# `make fuzz` sets the number; by default the whole file stays within 75 seconds.
EXAMPLES = int(os.environ.get("FITACT_FUZZ", "80"))
PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FITACT_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    database=None,
)
QUICK = settings(PROFILE, max_examples=max(3, EXAMPLES // 4))
SLOW = settings(PROFILE, max_examples=max(3, EXAMPLES // 8))  # each example takes a second

NETWORKS = architectures(max_steps=12)


def every_second(site):
    """A predicate over sites."""
    return len(site.name) % 2 == 0


MAPPED = tuple(name for name in policies.names() if isinstance(policies.named(name), FeatureMaps))


def with_each_policy(scheme):
    """The scheme as it is, and with each policy that needs no feature maps where that is an option of it."""
    options = {field.name for field in dataclasses.fields(scheme)}
    named = sorted(set(policies.names()) - set(MAPPED)) if "policy" in options else ()
    return [scheme, *(dataclasses.replace(scheme, policy=policy) for policy in named)]


SCHEMES = st.sampled_from([each for name in schemes.names() for each in with_each_policy(schemes.named(name))])
GRANULARITIES = st.sampled_from(("neuron", "channel", "layer"))
SITES = st.sampled_from(("activations", *NAMES[1:], ("activations", "linear"), NAMES, every_second))


def run(model, inputs, seed=0):
    """The outputs on copies of the inputs, and those copies as the model left them, as raw numbers without NaN."""
    own = [each.clone(memory_format=torch.preserve_format) for each in inputs]
    with torch.random.fork_rng(devices=[]), torch.no_grad(), slow_path(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        torch.manual_seed(seed)
        output = model(*own)
        values = (
            output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else [output]
        )
        return [each.detach().clone().nan_to_num() for each in (*values, *own)]


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(ours, theirs, strict=True)
    )


def close(ours, theirs):
    """Equal up to rounding, relative to the greatest value."""
    tolerance = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.25}
    return len(ours) == len(theirs) and all(
        one.dtype == other.dtype
        and one.shape == other.shape
        and (one.double() - other.double()).abs().max() <= tolerance[one.dtype] * max(1.0, float(other.abs().max()))
        for one, other in zip(ours, theirs, strict=True)
    )


def hardened(model, **options):
    """The model hardened, with bounds not set; None if it has no such site at all."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprotectedWarning)
        try:
            return fitact_fx.harden(model, **options)
        except SiteError as error:
            # The second: a view that is returned, and whose memory is written to through another value.
            refusals = r"no (activation|site that is .*) was found|it shares memory with another value"
            refusals += r"|policy '\w+' needs to know where its channels lie"
            assert re.search(refusals, str(error))  # noqa: PT017
            return None


def calibrated(model, inputs, granularity="neuron", **options):
    """The model hardened and calibrated on these inputs; where a site refuses a bound per channel, it gets one."""
    rule = {"*": granularity}
    batch = inputs[0] if len(inputs) == 1 else (inputs, None)
    while (hard := hardened(model, granularity=rule, **options)) is not None:
        try:
            fitact_fx.calibrate(hard, [batch])
        except SiteError as error:
            refused = re.match(r"site (\S+) .*\n.*where its channels lie could not be told", str(error))
            assert refused
            assert granularity == "channel"
            rule[glob.escape(refused[1])] = "layer"
        else:
            return hard
    return None


class Caller(torch.nn.Module):
    """Calls a model by code that looks at values, which no graph can hold."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, *inputs):
        if inputs[0].isinf().all():
            raise ValueError("infinite inputs")
        return self.body(*inputs)


@QUICK
@given(NETWORKS, GRANULARITIES, st.sampled_from(("activations", "linear", "residual", NAMES)))
def test_a_model_that_is_called_by_code_that_was_not_seen_stays_what_it_was(architecture, granularity, sites):
    for training in (False, True):
        model, inputs = Caller(architecture.module()).train(training), architecture.inputs()
        try:
            hard = hardened(model, granularity=granularity, sites=sites, frontend="partial")
        except TracingError as error:
            assert "no part of this model could be traced" in str(error)  # noqa: PT017
            return
        if hard is None:
            return
        assert hard.unseen.keys() == {""}
        inside = hardened(architecture.module().train(training), granularity=granularity, sites=sites)
        names = [f"body.{name}" for name in bounded_sites(inside)]
        # What the body returns are no logits of the model: code that was not seen stands between them.
        assert list(bounded_sites(hard)) == [name for name in names if name in bounded_sites(hard)]
        assert "logits" in sites or len(names) == len(bounded_sites(hard))
        fitact_fx.set_bounds(hard, INFINITE)
        assert equal(run(hard, inputs), run(copy.deepcopy(model), inputs))


@PROFILE
@given(NETWORKS, GRANULARITIES, SCHEMES, SITES)
def test_unset_and_infinite_bounds_give_bitwise_the_clean_output(architecture, granularity, scheme, sites):
    for training in (False, True):
        model, inputs = architecture.module().train(training), architecture.inputs()
        hard = hardened(model, granularity=granularity, scheme=scheme, sites=sites)
        if hard is None:
            return
        for bounds in (None, INFINITE):
            if bounds is not None:
                fitact_fx.set_bounds(hard, bounds)
            assert equal(run(hard, inputs), run(copy.deepcopy(model), inputs))


@PROFILE
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


def registries(model):
    """Every module's hooks."""
    return [
        {name: dict(held) for name, held in vars(each).items() if name.endswith("_hooks")} for each in model.modules()
    ]


@PROFILE
@given(NETWORKS, GRANULARITIES, SCHEMES, SITES)
def test_the_users_model_and_the_random_state_are_never_changed(architecture, granularity, scheme, sites):
    model, inputs = architecture.module(), architecture.inputs()
    state = {name: tensor.clone() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    modules = [(name, id(module), type(module), module.training) for name, module in model.named_modules()]
    parameters = [(name, id(each), each.requires_grad) for name, each in model.named_parameters()]
    hooks, random = registries(model), torch.get_rng_state()
    hard = calibrated(model, inputs, granularity, scheme=scheme, sites=sites)
    if hard is not None:
        for training in (False, True):
            run(hard.train(training), inputs)
    assert torch.equal(torch.get_rng_state(), random)
    now = dict((*model.named_parameters(), *model.named_buffers()))
    assert now.keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in now.items())
    assert [(name, id(module), type(module), module.training) for name, module in model.named_modules()] == modules
    assert [(name, id(each), each.requires_grad) for name, each in model.named_parameters()] == parameters
    assert registries(model) == hooks


@PROFILE
@given(NETWORKS, SITES)
def test_a_second_trace_finds_the_same_sites_and_hardening_twice_is_refused(architecture, sites):
    model = architecture.module()
    first, second = ([site.name for site in fitact_fx.find_sites(fitact_fx.trace(model), NAMES)] for _ in range(2))
    assert first == second
    assert len(set(first)) == len(first)
    hard = hardened(model, sites=sites)
    if hard is not None:
        with pytest.raises(SiteError, match="hardened already"):
            fitact_fx.harden(hard)


@PROFILE
@given(NETWORKS, GRANULARITIES, SCHEMES, SITES)
def test_calibration_data_pass_through_their_own_bounds_and_survive_saving(
    tmp_path_factory, architecture, granularity, scheme, sites
):
    model, inputs = architecture.module(), architecture.inputs()
    hard = calibrated(model, inputs, granularity, scheme=scheme, sites=sites)
    if hard is None:
        return
    expected = run(model, inputs)
    assert equal(run(hard, inputs), expected)
    path = tmp_path_factory.mktemp("saved") / "bounds"
    fitact_fx.save(hard, path)
    loaded = fitact_fx.load(path, model)
    assert equal(run(loaded, inputs), expected)
    others = architecture.inputs(seed=1)
    assert equal(run(loaded, others), run(hard, others))


@PROFILE
@given(NETWORKS, SITES)
def test_layer_bounds_are_at_least_channel_bounds_are_at_least_the_neurons(architecture, sites):
    model, inputs = architecture.module(), architecture.inputs()
    granularities = ("neuron", "channel", "layer")
    hard = [calibrated(model, inputs, granularity, sites=sites) for granularity in granularities]
    if hard[0] is None:
        return
    neuron, channel, layer = map(fitact_fx.bounds, hard)
    for fine, coarse in ((neuron, channel), (channel, layer)):
        for name, (low, high) in fine.items():
            coarse_low, coarse_high = coarse[name]
            assert high is None or (high <= coarse_high).all()
            assert low is None or (low >= coarse_low).all()


@PROFILE
@given(NETWORKS, SITES)
def test_channel_bounds_are_the_extremes_of_the_neurons_of_each_channel(architecture, sites):
    model, inputs = architecture.module(), architecture.inputs()
    neurons = calibrated(model, inputs, "neuron", sites=sites)
    if neurons is None:
        return
    hard = calibrated(model, inputs, "channel", sites=sites)
    dims = {
        name: bounded.spec.granularity.dim
        for name, bounded in bounded_sites(hard).items()
        if bounded.spec.granularity.name == "channel"
    }
    for name, dim in dims.items():
        for ours, theirs, extreme in zip(
            fitact_fx.bounds(hard)[name], fitact_fx.bounds(neurons)[name], (torch.amin, torch.amax), strict=True
        ):
            if theirs is None:
                continue
            assert theirs.ndim == 2 or dim is not None
            channel = 1 if theirs.ndim == 2 else dim % theirs.ndim
            others = tuple(each for each in range(theirs.ndim) if each != channel)
            assert torch.equal(ours, extreme(theirs, others, keepdim=True))


@PROFILE
@given(NETWORKS)
def test_each_call_of_an_activation_module_is_a_site_of_its_own(architecture):
    model, calls = architecture.module(), []
    for module in model.modules():
        if module_kind(module) is not None:
            module.register_forward_hook(lambda *_: calls.append(1))
    run(model, architecture.inputs())
    sites = fitact_fx.find_sites(fitact_fx.trace(architecture.module()))
    assert sum(module_kind(called) is not None for called in modules_called(sites)) == len(calls)


def modules_called(sites):
    return [
        site.node.graph.owning_module.get_submodule(site.node.target) for site in sites if site.node.op == "call_module"
    ]


@PROFILE
@given(NETWORKS, GRANULARITIES, SCHEMES, SITES, st.sampled_from((1.0, 1e4)))
def test_what_a_bound_lets_through_is_inside_it_or_the_policys_replacement(
    architecture, granularity, scheme, sites, factor
):
    model, inputs = architecture.module(), architecture.inputs()
    hard = calibrated(model, inputs, granularity, scheme=scheme, sites=sites)
    if hard is None:
        return

    def check(bounded, args, output):
        (values,) = args
        low, high = bounded.bounds.limits(values.dtype)
        lower, upper = (
            (low if bounded.lower is None else bounded.lower),
            (high if bounded.upper is None else bounded.upper),
        )
        inside = (values >= low) & (values <= high)
        nearest = torch.where(values > high, upper.to(values.dtype), lower.to(values.dtype))
        replaced = torch.zeros_like(values) if isinstance(bounded.policy, Zero) else nearest
        if not isinstance(bounded.policy, Zero | Clamp):  # anywhere between the bounds
            ends = torch.maximum(lower.to(values.dtype), low), torch.minimum(upper.to(values.dtype), high)
            replaced = output.clamp(*ends)
        assert torch.equal(output, torch.where(inside, values, replaced.masked_fill(values.isnan(), 0.0)))
        assert output.isfinite().all()

    for parameter in hard.parameters():
        parameter.data = parameter.data * factor
    for bounded in bounded_sites(hard).values():
        bounded.register_forward_hook(check)
    run(hard, inputs if factor > 1 else architecture.inputs(seed=1))


@QUICK
@given(NETWORKS, GRANULARITIES, st.sampled_from(MAPPED))
def test_policies_of_feature_maps_keep_clean_values_and_let_nothing_else_pass(architecture, granularity, policy):
    model, inputs = architecture.module(), architecture.inputs()
    hard = calibrated(model, inputs, granularity, scheme=FitAct(policy=policy))
    if hard is None:
        return
    try:
        clean = run(hard, inputs)
    except SiteError as error:  # an input without its batch dimension
        assert "where its feature maps lie is not known" in str(error)  # noqa: PT017
        return
    assert equal(clean, run(copy.deepcopy(model), inputs))

    def check(bounded, args, output):
        low, high = bounded.bounds.limits(output.dtype)
        inside = (args[0] >= low) & (args[0] <= high)
        assert torch.equal(output[inside], args[0][inside])
        assert (((output >= low) & (output <= high)) | args[0].isnan()).all()

    for bounded in bounded_sites(hard).values():
        bounded.register_forward_hook(check)
    for parameter in hard.parameters():
        parameter.data = parameter.data * 1e4
    run(hard, inputs)


@SLOW
@given(architectures(max_steps=6), GRANULARITIES, SCHEMES, SITES)
def test_compiled_agrees_with_eager(architecture, granularity, scheme, sites):
    model, inputs = architecture.module(), architecture.inputs()
    hard = calibrated(model, inputs, granularity, scheme=scheme, sites=sites)
    if hard is None:
        return
    torch._dynamo.reset()
    try:
        assert close(run(torch.compile(hard, backend="aot_eager"), inputs), run(hard, inputs))
    finally:
        torch._dynamo.reset()


@SLOW
@given(architectures(max_steps=6))
def test_an_exported_graph_agrees_with_eager_and_has_the_same_activations(architecture):
    model, inputs = architecture.module(), architecture.inputs()
    try:
        exported = fitact_fx.trace(model, inputs, frontend="export")
    except TracingError:
        return
    assert close(run(exported, inputs), run(model, inputs))
    # torch.export also sees into attention, which is called whole otherwise.
    whole = {name for name, module in model.named_modules() if isinstance(module, torch.nn.MultiheadAttention)}
    names = [
        {site.name for site in fitact_fx.find_sites(graph) if site.module_path not in whole}
        for graph in (exported, fitact_fx.trace(model))
    ]
    assert names[0] == names[1]
