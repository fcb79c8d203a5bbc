"""Every hard policy in a network: hardened, lowered, compiled, saved; and what is refused."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fitact_fx
from fitact_fx import granularity, policies
from fitact_fx.errors import RecipeError, SiteError
from fitact_fx.policies import BackFlip, FeatureMaps, Pass
from fitact_fx.schemes.fitact import FitAct
from fitact_fx.spec import Spec

EVERY = policies.names()


class Text(nn.Module):
    """Linear layers over a sequence, (N, L, C), and their mean."""

    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)

    def forward(self, x):
        return self.last(self.relu(self.first(x)).mean(1))


def images_net():
    """Rank 4 with one-sided and two-sided activations, and rank 2 behind a flatten."""
    convolutions = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3))


NETS = {"images": (images_net, (4, 3, 6, 6)), "text": (Text, (4, 5, 4))}


@pytest.fixture(params=NETS)
def network(request):
    torch.manual_seed(0)
    make, shape = NETS[request.param]
    return make().eval(), torch.randn(shape)


@pytest.mark.parametrize("granularity", ["layer", "neuron"])
@pytest.mark.parametrize("name", EVERY)
def test_hardened_lowered_and_loaded_agree_on_faulty_inputs_and_pass_clean_ones(network, name, granularity, tmp_path):
    model, batch = network
    hard = fitact_fx.harden(model, granularity, scheme=FitAct(policy=name))
    with torch.no_grad(), pytest.warns(fitact_fx.UncalibratedWarning):
        assert torch.equal(hard(batch), model(batch)), "unset, it is the identity"
    fitact_fx.calibrate(hard, [batch])
    lowered = fitact_fx.lower(hard, batch, backend="eager")
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", model)
    wild = batch * 30
    wild.view(4, -1)[:3, 0] = torch.tensor([math.nan, math.inf, -math.inf])
    with torch.no_grad():
        assert torch.equal(hard(batch), model(batch))
        assert not torch.equal(hard(wild), model(wild))
        for other in (lowered, loaded, torch.compile(hard, fullgraph=True, backend="eager")):
            assert torch.equal(other(wild), hard(wild))


MAPPED = [name for name in EVERY if isinstance(policies.named(name), FeatureMaps)]


@pytest.mark.parametrize("name", MAPPED)
def test_a_policy_of_feature_maps_refuses_a_site_whose_channels_are_not_known(name):
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4))
    with pytest.raises(SiteError, match=rf"site 0 .*\n  policy '{name}' needs to know where its channels lie"):
        fitact_fx.harden(model, "layer", scheme=FitAct(policy=name))


@pytest.mark.parametrize("name", MAPPED)
def test_activations_of_another_rank_are_refused_hardened_and_lowered(name):
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    hard = fitact_fx.harden(convolution, "layer", scheme=FitAct(policy=name))
    fitact_fx.calibrate(hard, [torch.randn(2, 3, 5, 5)])
    with pytest.raises(SiteError, match=r"where its feature maps lie is not known \(an activation of rank 3"):
        hard(torch.randn(3, 5, 5))
    linear = fitact_fx.harden(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "layer", scheme=FitAct(policy=name))
    fitact_fx.calibrate(linear, [torch.randn(8, 4)])
    lowered = fitact_fx.lower(linear, torch.randn(8, 4), backend="eager")
    with pytest.raises(AssertionError, match="activations of another rank than it was lowered for"):
        lowered._orig_mod(torch.randn(2, 8, 4))


# Its numbers.


@dataclass(frozen=True)
class Halving:
    """A scheme whose policy has a number of its own."""

    name = "fitact"

    def place(self, sites, graph_module):
        return {site.name: Spec(granularity.named("layer"), BackFlip(far=4.0, middle=0.25)) for site in sites}


def test_the_numbers_of_a_policy_survive_saving(tmp_path):
    hard = fitact_fx.harden(nn.Sequential(nn.ReLU()), scheme=Halving())
    fitact_fx.set_bounds(hard, {"*": (None, 1.0)})
    fitact_fx.save(hard, tmp_path / "bounds")
    loaded = fitact_fx.load(tmp_path / "bounds", nn.Sequential(nn.ReLU()))
    values = torch.tensor([[0.5, 1.5, 3.0, 5.0]])
    assert hard(values).tolist() == loaded(values).tolist() == [[0.5, 1.0, 0.25, 0.0]]


def test_a_number_that_a_policy_does_not_have_is_refused():
    with pytest.raises(RecipeError, match=r"^unknown number of the policy backflip 'wide'; choose one of far, mid"):
        policies.named("backflip", {"wide": 1.0})
    assert policies.named("average", {}) == policies.named("average")
    assert not isinstance(Pass(), FeatureMaps)
