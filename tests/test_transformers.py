"""torch's own transformer layers: their hidden activations are bounded, and what they compute stays the same."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_models import INFINITE, module
from torch import Tensor, nn

import fitact_fx
from fitact_fx import find_sites, harden, set_bounds, trace, verify
from fitact_fx.errors import SiteError, UncalibratedWarning, UnprotectedWarning
from fitact_fx.traced import TracedModule

SIZE, HEADS, INNER = 8, 2, 12

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but:UserWarning")

CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)
UPPER = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])


@contextmanager
def slow_path() -> Iterator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def out(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors is in prototype")
        result = model(*args, **kwargs)
    return [each for each in (result if isinstance(result, tuple) else (result,)) if isinstance(each, Tensor)]


def infinite(model: nn.Module, **options: Any) -> TracedModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprotectedWarning)
        hard = harden(model, **options)
    set_bounds(hard, INFINITE)
    return hard


def same(model: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Bitwise what the model computes along the slow path, with torch's fast path on or off."""
    hard = infinite(model)
    with slow_path():
        expected = out(model, *args, **kwargs)
    assert torch.backends.mha.get_fastpath_enabled()
    for got in (out(hard, *args, **kwargs), out(copy.deepcopy(hard), *args, **kwargs)):
        assert len(got) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(SIZE, HEADS, INNER, **{"dropout": 0.1, "batch_first": True, **options})


def encoder(**options: Any) -> nn.Module:
    return nn.TransformerEncoder(layer(**options), 2, enable_nested_tensor=False)


def decoder(**options: Any) -> nn.Module:
    return nn.TransformerDecoder(decoder_layer(**options), 2)


def decoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerDecoderLayer(SIZE, HEADS, INNER, **{"dropout": 0.1, "batch_first": True, **options})


def whole(**options: Any) -> nn.Module:
    return nn.Transformer(SIZE, HEADS, 1, 1, INNER, **{"dropout": 0.1, "batch_first": True, **options})


def tokens(seed: int = 0, length: int = 5) -> Tensor:
    return torch.randn(2, length, SIZE, generator=torch.Generator().manual_seed(seed))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"activation": "gelu"},
    {"activation": F.silu},
    {"activation": nn.Tanh()},
    {"norm_first": True},
    {"bias": False},
    {"norm_first": True, "activation": F.gelu},
]
MODELS = {"layer": layer, "encoder": encoder, "decoder layer": decoder_layer, "decoder": decoder, "whole": whole}


def inputs_of(model: nn.Module) -> tuple[Tensor, ...]:
    takes_two = isinstance(model, nn.TransformerDecoder | nn.TransformerDecoderLayer | nn.Transformer)
    return (tokens(), tokens(1)) if takes_two else (tokens(),)


class TestWhatTheyCompute:
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    @pytest.mark.parametrize("make", [layer, decoder_layer])
    def test_a_layer_in_both_modes(self, make: Callable[..., nn.Module], options: dict[str, Any]) -> None:
        for training in (False, True):
            model = make(**options).train(training)
            same(model, *inputs_of(model))

    @pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
    @pytest.mark.parametrize("batch_first", [True, False])
    def test_every_model_in_both_modes(self, make: Callable[..., nn.Module], batch_first: bool) -> None:
        for training in (False, True):
            model = make(batch_first=batch_first).train(training)
            given = inputs_of(model)
            same(model, *(given if batch_first else [each.transpose(0, 1).contiguous() for each in given]))

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize(
        "masks",
        [
            {"mask": CAUSAL},
            {"mask": UPPER},
            {"src_key_padding_mask": PADDING},
            {"src_key_padding_mask": torch.zeros(2, 5).masked_fill(PADDING, -torch.inf)},
            {"mask": UPPER, "src_key_padding_mask": PADDING},
            {"mask": CAUSAL, "is_causal": True},
            {"mask": None, "src_key_padding_mask": None},
        ],
        ids="+".join,
    )
    def test_masks_of_an_encoder(self, masks: dict[str, Any], training: bool) -> None:
        same(encoder().train(training), tokens(), **masks)
        inner = {"src_mask" if name == "mask" else name: mask for name, mask in masks.items()}
        same(layer().train(training), tokens(), **inner)

    @pytest.mark.parametrize(
        "masks",
        [
            {"tgt_mask": CAUSAL},
            {"tgt_mask": CAUSAL, "tgt_is_causal": True},
            {"memory_mask": UPPER},
            {"tgt_key_padding_mask": PADDING, "memory_key_padding_mask": PADDING},
        ],
        ids="+".join,
    )
    def test_masks_of_a_decoder(self, masks: dict[str, Any]) -> None:
        for model in (decoder().eval(), decoder_layer().train()):
            same(model, tokens(), tokens(1), **masks)

    def test_one_hardened_encoder_takes_every_mask(self) -> None:
        model = encoder().eval()
        hard = infinite(model)
        for masks in ({}, {"mask": CAUSAL}, {"src_key_padding_mask": PADDING}, {"mask": UPPER}, {}):
            with slow_path():
                expected = out(model, tokens(), **masks)
            assert torch.equal(out(hard, tokens(), **masks)[0], expected[0])

    def test_a_user_model_with_its_own_mask(self) -> None:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            return self.head(self.encoder(x, mask=self.mask, is_causal=True).mean(1))

        same(module(forward, encoder=encoder(), mask=CAUSAL.clone(), head=nn.Linear(SIZE, 3)).eval(), tokens())

    def test_inputs_without_a_batch(self) -> None:
        for model in (layer().eval(), encoder().eval(), layer(batch_first=False).train()):
            same(model, tokens()[0])

    def test_nested_tensors_of_a_padded_encoder(self) -> None:
        """In evaluation mode torch drops the padded places, and gives zeros there: only the others are the model's."""
        model = nn.TransformerEncoder(layer(), 2).eval()
        hard = infinite(model)
        got, expected = (out(each, tokens(), src_key_padding_mask=PADDING)[0] for each in (hard, model))
        torch.testing.assert_close(got[~PADDING], expected[~PADDING])

    def test_verify_finds_it_equal_with_the_fast_path_on(self) -> None:
        model = encoder().eval()
        assert verify(model, infinite(model), tokens())
        assert torch.backends.mha.get_fastpath_enabled()


class TestWhatIsBounded:
    def test_the_activation_of_each_layer_is_a_site(self) -> None:
        names = {name: [site.name for site in find_sites(trace(make()))] for name, make in MODELS.items()}
        assert names["layer"] == ["relu"]
        assert names["encoder"] == ["layers.0.relu", "layers.1.relu"]
        assert names["decoder"] == ["layers.0.relu", "layers.1.relu"]
        assert names["whole"] == ["encoder.layers.0.relu", "decoder.layers.0.relu"]
        assert [site.kind for site in find_sites(trace(layer(activation=nn.Tanh())))] == ["tanh"]

    @pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
    def test_a_bound_holds_whatever_the_weights_are(self, make: Callable[..., nn.Module]) -> None:
        model = make().eval()
        hard = infinite(model, granularity="layer", scheme="ranger")
        set_bounds(hard, {"*": (None, 0.5)})
        seen: list[Tensor] = []
        for name, inner in hard.named_modules():
            if name.endswith("relu_bound"):
                inner.register_forward_hook(lambda *told: seen.append(told[2]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # shared
                parameter.mul_(1e4 if "linear1" in name else 1)
        out(hard, *inputs_of(model))
        assert len(seen) == len(fitact_fx.bounds(hard))
        assert all(float(values.max()) == 0.5 for values in seen)

    def test_it_holds_where_torch_would_take_the_fast_path(self) -> None:
        """The output of the second linear layer cannot exceed what 0.5 in each of its inputs can give."""
        model = layer(norm_first=True).eval()
        hard = harden(model, "layer", "ranger")
        set_bounds(hard, {"relu": (None, 0.5)})
        with torch.no_grad():
            model.linear1.weight.mul_(1e4)
            before = out(hard, tokens())[0]
            model.linear1.weight.mul_(1e4)
            torch.testing.assert_close(out(hard, tokens())[0], before, rtol=0, atol=0.5 * INNER)
            assert out(model, tokens())[0].abs().max() > 1e5

    def test_channels_are_features_and_the_length_is_free(self) -> None:
        model = encoder().eval()
        data = [tokens(), tokens(1, 7), tokens(2, 3)]
        for granularity, shape in {"channel": (1, 1, INNER), "layer": ()}.items():
            hard = harden(model, granularity)
            fitact_fx.calibrate(hard, data)
            assert {tuple(upper.shape) for _, upper in fitact_fx.bounds(hard).values() if upper is not None} == {shape}
            for given in data:
                assert verify(model, hard, given)

    def test_neuron_bounds_refuse_another_length(self) -> None:
        hard = harden(encoder().eval(), "neuron")
        fitact_fx.calibrate(hard, [tokens()])
        with pytest.raises(SiteError, match="neuron bounds were calibrated for"):
            out(hard, tokens(1, 7))

    def test_bounds_of_a_layer_are_the_extremes_of_its_activation(self) -> None:
        model = layer(norm_first=True).eval()
        hard = harden(model, "layer")
        fitact_fx.calibrate(hard, [tokens()])
        with torch.no_grad(), slow_path():
            x = tokens() + model.self_attn(*[model.norm1(tokens())] * 3, need_weights=False)[0]
            seen = F.relu(model.linear1(model.norm2(x)))
        torch.testing.assert_close(fitact_fx.bounds(hard)["relu"][1], seen.max())


def test_nothing_is_warned_of_where_everything_is_bounded() -> None:
    """Warnings are errors here."""
    assert set(fitact_fx.bounds(harden(whole()))) == {"encoder.layers.0.relu", "decoder.layers.0.relu"}


class TestAttentionAlone:
    @pytest.mark.parametrize("need_weights", [True, False])
    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("training", [True, False])
    def test_it_is_called_whole_and_gives_what_it_gave(
        self, need_weights: bool, batch_first: bool, training: bool
    ) -> None:
        def forward(self: nn.Module, x: Tensor) -> Any:
            attended, weights = self.attention(x, x, x, need_weights=need_weights, attn_mask=self.mask)
            return F.relu(attended), weights

        attention = nn.MultiheadAttention(SIZE, HEADS, dropout=0.1, batch_first=batch_first)
        model = module(forward, attention=attention, mask=torch.zeros(5, 5) if batch_first else torch.zeros(2, 2))
        model.train(training)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)
            hard = infinite(model)
            with slow_path():
                expected = out(model, tokens())
            got = out(hard, tokens())
        assert len(got) == len(expected) == (2 if need_weights else 1)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other)

    def test_its_output_is_a_linear_site(self) -> None:
        model = module(lambda self, x: self.attention(x, x, x)[0], attention=nn.MultiheadAttention(SIZE, HEADS))
        sites = find_sites(trace(model), "linear")
        assert [site.name for site in sites] == ["attention"]
        hard = harden(model, "layer", "ranger", sites="linear")
        set_bounds(hard, {"*": (-0.01, 0.01)})
        assert out(hard, tokens() * 100)[0].abs().max() == pytest.approx(0.01)
