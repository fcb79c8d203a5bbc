"""What injection refuses, by name and with a remedy."""

import pytest
import torch
from injections import HIGH, Reader, activations, images, network, same_bits
from small_models import module
from torch import nn

import fitact_fx
from fitact_fx.errors import FaultError, SiteError
from fitact_fx.faults import BitFlip

pytestmark = pytest.mark.usefixtures("no_gradients")


def test_more_faults_than_there_is_room_for_are_refused_and_nothing_is_loaded():
    x = images()
    faulty = fitact_fx.inject(network(), "*", BitFlip(count=2), format="float32", example_inputs=x)
    before = faulty(x)
    with pytest.raises(FaultError) as error, activations(faulty).applied(faulty):
        pytest.fail("the block must not run")
    assert str(error.value).startswith("activation '2@after' has room for 2 hit elements and the fault list has ")
    assert "inject with capacity=" in str(error.value)
    assert same_bits(faulty(x), before)
    with BitFlip(count=2).draw(faulty, "float32", trial=1, targets=["activations"]).applied(faulty):
        pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"at": "layer9.*"}, FaultError, "the pattern 'layer9.*' matches no value of the model; there are 2, 5, ..."),
        ({"at": "inputs"}, FaultError, "the pattern 'inputs' matches no value of the model (close: input)"),
        ({"where": "behind"}, FaultError, "where is 'behind';\n  give one of after, before"),
        ({"format": "float31"}, FaultError, "unknown format 'float31'; choose one of "),
        ({"format": "int8_per_channel"}, FaultError, "activations are quantised per tensor"),
        ({"fault": BitFlip(count=10**9)}, FaultError, "a count of 1000000000 is more than the "),
        ({"fault": BitFlip(places=[("7@after", 0, 0)])}, FaultError, "the model has no tensor '7@after'"),
        (
            {"fault": BitFlip},
            FaultError,
            "fault is <class 'fitact_fx.faults.",
        ),
        ({"at": []}, FaultError, "`at` names no place to inject;\n  give globs"),
        ({"capacity": 0}, FaultError, "capacity is a whole number from 1 up; got 0"),
        ({"format": 5}, FaultError, "5 is no format;\n  give its name, such as 'q15.16'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    call = {"at": "*", "fault": HIGH, "example_inputs": images()} | options
    with pytest.raises(error) as raised:
        fitact_fx.inject(network(), **call)
    assert str(raised.value).startswith(message)


def test_a_type_that_cannot_hold_the_format_is_refused_by_name():
    def forward(self, indices):
        return self.embed(indices)

    model = module(forward, embed=nn.Embedding(10, 4))
    with pytest.raises(SiteError) as error:
        fitact_fx.inject(model, "indices", HIGH, example_inputs=torch.zeros(2, 3, dtype=torch.int64))
    assert "its value is int64, which cannot hold q15.16 numbers" in str(error.value)
    assert fitact_fx.inject(model, "embed", HIGH, example_inputs=torch.zeros(2, 3, dtype=torch.int64)) is not None


def test_a_value_without_dimensions_is_refused_by_name():
    def forward(self, x):
        return x + x.mean()

    with pytest.raises(SiteError, match=r"its value has no dimensions;\n  inject at a value with at least a batch"):
        fitact_fx.inject(module(forward), "mean", HIGH, example_inputs=images())


def test_a_tuple_is_refused_by_name():
    def forward(self, x):
        return torch.frexp(x)[0] + x.chunk(2)[0].sum()

    with pytest.raises(SiteError, match=r"its value is a frexp and not a tensor;\n  inject where one of its parts"):
        fitact_fx.inject(module(forward), "frexp", HIGH, example_inputs=images())
    with pytest.raises(FaultError, match="the pattern 'chunk' matches no value"):
        fitact_fx.inject(module(forward), "chunk", HIGH, example_inputs=images())


def test_another_input_size_is_refused_by_name():
    faulty = fitact_fx.inject(Reader(), "values", HIGH, example_inputs=images(4))
    for x in (images(5), images(4)[..., :5]):
        with pytest.raises(SiteError) as error:
            faulty(x)
        expected = f"its faults are for activations of shape (4, 3, 6, 6) and it now gets {tuple(x.shape)};\n"
        assert expected in str(error.value)


def test_a_node_that_is_there_already_is_refused():
    once = fitact_fx.inject(network(), "2", HIGH)
    with pytest.raises(SiteError, match=r"it has an injection node;\n  inject there once"):
        fitact_fx.inject(once, "*", HIGH)


def test_a_list_in_another_format_is_refused():
    faulty = fitact_fx.inject(network(), "*", HIGH, format="float32", example_inputs=images())
    with pytest.raises(FaultError, match=r"^tensor '2@after' gets faults in float32 and not in q15\.16; draw with "):
        HIGH.draw(faulty, "q15.16", targets=["activations"])


def test_activations_are_no_target_before_their_shapes_are_known():
    faulty = fitact_fx.inject(network(), "*", HIGH)
    with pytest.raises(FaultError, match=r"^the model has no activations;\n  give fitact_fx\.inject example_inputs"):
        HIGH.draw(faulty, targets=["activations"])


def test_compiling_before_the_shapes_are_known_says_what_to_do():
    torch._dynamo.reset()
    faulty = fitact_fx.inject(network(), "*", HIGH)
    with pytest.raises(Exception, match=r"give fitact_fx\.inject example_inputs, or run what it returned once"):
        torch.compile(faulty, fullgraph=True, backend="eager")(images())


def test_inferences_are_for_transient_faults_in_activations():
    faulty = fitact_fx.inject(network(), "2", HIGH, format="float32", example_inputs=images())
    with pytest.raises(FaultError, match="is no activation: its faults stay for every inference"):
        HIGH.draw(faulty, "float32", inferences=5)
    with pytest.raises(FaultError, match=r"^inferences 6 to 9 lie outside the 8 of '2@after'$"):
        activations(faulty).inferences(6, 9)
    lasting = fitact_fx.inject(network(), "2", HIGH, format="float32", example_inputs=images(), permanent=True)
    with pytest.raises(FaultError, match="its faults are permanent: the same for every inference"):
        HIGH.draw(lasting, "float32", targets=["activations"], inferences=5)
