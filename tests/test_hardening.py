"""The main job: which site gets what, what is refused, and that the user's model is left alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fitact_fx
from fitact_fx.bounded import bounded_sites
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.schemes.fitact import FitAct


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(x + self.conv(self.relu(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 2, 1)
        self.layer1 = nn.Sequential(Block(), Block())
        self.classifier = nn.Sequential(nn.Linear(2, 4), nn.GELU(), nn.Linear(4, 3))

    def forward(self, x):
        x = torch.relu(self.layer1(self.stem(x)))
        return F.softplus(self.classifier(x.mean((2, 3))))


SITES = ["layer1.0.relu", "layer1.0.relu_1", "layer1.1.relu", "layer1.1.relu_1", "relu", "classifier.1", "softplus"]


def net():
    torch.manual_seed(0)
    return Net().eval()


def images(count=4):
    return torch.randn(count, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def shapes(hard):
    return {name: tuple(upper.shape) for name, (_, upper) in fitact_fx.bounds(hard).items()}


def test_harden_with_a_granularity_and_nothing_else_works():
    hard = fitact_fx.harden(net(), granularity="neuron")
    assert fitact_fx.bounds(hard) == dict.fromkeys(SITES, (None, None))
    fitact_fx.calibrate(hard, [images()])
    assert list(fitact_fx.bounds(hard)) == SITES
    assert shapes(hard) == {
        **dict.fromkeys(SITES[:5], (1, 2, 5, 5)),
        "classifier.1": (1, 4),
        "softplus": (1, 3),
    }
    with torch.no_grad():
        assert torch.equal(hard(images()), net()(images()))


def test_two_sided_kinds_get_two_bounds_and_one_sided_ones_an_upper_bound():
    hard = fitact_fx.harden(net())
    fitact_fx.calibrate(hard, [images()])
    assert [name for name, (lower, _) in fitact_fx.bounds(hard).items() if lower is not None] == ["classifier.1"]


def test_a_mapping_chooses_per_site_and_the_last_match_wins():
    hard = fitact_fx.harden(net(), {"*": "layer", "layer1.*": "channel", "layer1.1.relu_1": "neuron"})
    fitact_fx.calibrate(hard, [images()])
    assert shapes(hard) == {
        **dict.fromkeys(SITES, ()),
        **dict.fromkeys(SITES[:3], (1, 2, 1, 1)),
        "layer1.1.relu_1": (1, 2, 5, 5),
    }


def test_without_a_granularity_and_where_no_glob_matches_the_scheme_decides():
    scheme = FitAct(granularity="channel")
    assert {b.spec.granularity.name for b in bounded_sites(fitact_fx.harden(net(), scheme=scheme)).values()} == {
        "channel"
    }
    hard = fitact_fx.harden(net(), {"classifier.*": "layer"}, scheme=scheme)
    chosen = {name: bounded.spec.granularity.name for name, bounded in bounded_sites(hard).items()}
    assert chosen == {**dict.fromkeys(SITES, "channel"), "classifier.1": "layer"}
    assert {b.spec.granularity.name for b in bounded_sites(fitact_fx.harden(net())).values()} == {"neuron"}


@pytest.mark.parametrize("policy", ["zero", "clamp"])
def test_the_schemes_policy_is_what_happens_beyond_the_bound(policy):
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=FitAct(policy=policy))
    fitact_fx.calibrate(hard, [torch.ones(1, 2)])
    assert hard(torch.tensor([[0.5, 9.0]])).tolist() == [[0.5, 0.0 if policy == "zero" else 1.0]]


def test_hardening_shares_the_parameters_and_nothing_else():
    model = net()
    before = copy.deepcopy(model.state_dict())
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, [images()])
    assert all(hard.get_parameter(name) is parameter for name, parameter in model.named_parameters())
    assert model.layer1[0].relu.inplace
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not set(model.modules()) & set(hard.modules())


def test_hardening_leaves_the_random_state_and_the_mode_alone():
    model = net().train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    hard = fitact_fx.harden(model)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert hard.training


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"granularity": "pixel"}, RecipeError, "unknown granularity 'pixel'; choose one of channel, layer, neuron"),
        ({"granularity": {"*": "pixel"}}, RecipeError, "unknown granularity 'pixel'; choose one of channel, layer"),
        ({"granularity": 3}, RecipeError, "unknown granularity 3; choose one of channel, layer, neuron"),
        (
            {"granularity": {"head.*": "layer"}},
            RecipeError,
            "the pattern 'head.*' matches no site; the sites are layer1.0",
        ),
        ({"scheme": "fitakt"}, RecipeError, "unknown scheme 'fitakt'; choose one of "),
        ({"scheme": FitAct(granularity="voxel")}, RecipeError, "unknown granularity 'voxel'"),
        ({"scheme": FitAct(policy="shrink")}, RecipeError, "unknown policy 'shrink'; choose one of average, backflip"),
    ],
)
def test_unknown_names_list_the_valid_ones(options, error, text):
    with pytest.raises(error) as raised:
        fitact_fx.harden(net(), **options)
    assert text in str(raised.value)


def test_an_unknown_scheme_lists_every_scheme_there_is():
    with pytest.raises(RecipeError) as raised:
        fitact_fx.harden(net(), scheme="none")
    listed = str(raised.value).partition("choose one of ")[2].split(", ")
    assert listed == sorted(fitact_fx.schemes.names())
    assert "fitact" in listed


def test_a_model_without_activations_has_nothing_to_protect():
    with pytest.raises(SiteError) as raised:
        fitact_fx.harden(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert str(raised.value) == (
        "no activation was found in this model, so there is nothing to protect;\n"
        "  `fitact-fx inspect` shows what the graph holds and what could not be seen"
    )


def test_a_hardened_model_is_not_hardened_again():
    hard = fitact_fx.harden(net())
    for again in (hard, copy.deepcopy(hard), fitact_fx.trace(hard)):
        with pytest.raises(SiteError, match=r"^this model is hardened already;\n  harden the original model instead$"):
            fitact_fx.harden(again)


def test_a_traced_model_is_hardened_like_the_model_itself():
    hard = fitact_fx.harden(fitact_fx.trace(net()))
    assert list(fitact_fx.bounds(hard)) == SITES


def test_post_training_needs_bounds_to_start_from():
    with pytest.raises(
        SiteError, match=r"the bounds of layer1\.0\.relu are not set;\n  run fitact_fx\.calibrate before"
    ):
        fitact_fx.post_train(fitact_fx.harden(net()), [images()])


def test_a_name_that_the_bound_would_take_is_left_to_its_owner():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu_bound = nn.Linear(3, 3)

        def forward(self, x):
            return torch.relu(self.relu_bound(x))

    torch.manual_seed(0)
    model = Named()
    hard = fitact_fx.harden(model)
    fitact_fx.calibrate(hard, [torch.ones(2, 3)])
    assert torch.equal(hard(torch.ones(2, 3)), model(torch.ones(2, 3)))
    assert set(model.state_dict()) < set(hard.state_dict())


class TestWhatStaysOpen:
    def test_code_that_could_not_be_seen_is_named_in_a_warning(self):
        class Branching(nn.Module):
            def forward(self, x):
                return x.relu() if x.sum() > 0 else x

        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Branching()).eval()
        with pytest.warns(fitact_fx.UnprotectedWarning, match="2: its code could not be seen: cannot trace") as caught:
            fitact_fx.harden(model)
        assert caught[0].filename == __file__

    def test_a_model_without_any_gives_none(self):
        fitact_fx.harden(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))


class TestTheUsersWeights:
    @pytest.mark.parametrize("cast", [torch.float64, torch.bfloat16])
    def test_casting_the_hardened_model_leaves_them_alone(self, cast):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
        x = torch.randn(5, 3)
        before = model(x)
        hard = fitact_fx.harden(model)
        fitact_fx.calibrate(hard, [x])
        assert hard.get_parameter("0.weight") is model[0].weight
        hard.to(cast)
        assert {parameter.dtype for parameter in hard.parameters()} == {cast}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model(x), before)
        assert hard(x.to(cast)).dtype == cast

    def test_tied_weights_stay_tied_through_a_cast_and_trainability_is_kept(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
        model[2].weight = model[0].weight
        model[0].bias.requires_grad_(False)
        hard = fitact_fx.harden(model).double()
        assert hard.get_parameter("0.weight") is hard.get_parameter("2.weight")
        assert not hard.get_parameter("0.bias").requires_grad
        assert hard.get_parameter("2.bias").requires_grad

    def test_moving_to_where_they_are_keeps_them_shared(self):
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        hard = fitact_fx.harden(model).to("cpu", torch.float32)
        assert hard.get_parameter("0.weight") is model[0].weight


class TestWrongArguments:
    @pytest.mark.parametrize("scheme", [3, None, fitact_fx.schemes.fitact.FitAct])
    def test_a_scheme_that_is_none(self, scheme):
        with pytest.raises(RecipeError, match="give a scheme's name or an instance, such as"):
            fitact_fx.harden(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), scheme=scheme)

    @pytest.mark.parametrize("bad", ["a", [1.0]])
    def test_a_bound_that_is_no_number(self, bad):
        hard = fitact_fx.harden(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        with pytest.raises(RecipeError, match="each is a number, a tensor or None"):
            fitact_fx.set_bounds(hard, {"*": (None, bad)})

    def test_a_bound_of_another_shape_than_the_one_that_is_set(self):
        hard = fitact_fx.harden(nn.Sequential(nn.Linear(2, 4), nn.ReLU()))
        fitact_fx.calibrate(hard, [torch.ones(3, 2)])
        before = fitact_fx.bounds(hard)["1"][1]
        with pytest.raises(SiteError, match=r"its bounds have shape \(1, 4\) and the new one has \(7,\)"):
            fitact_fx.set_bounds(hard, {"*": (None, torch.ones(7))})
        assert torch.equal(fitact_fx.bounds(hard)["1"][1], before)
