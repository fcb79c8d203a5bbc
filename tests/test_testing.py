"""The architectures of fitact_fx.testing: they run, they cover what they say, they repeat, they shrink."""

import copy
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, Verbosity, find, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fitact_fx.errors import RecipeError
from fitact_fx.kinds import KINDS, RECURRENT
from fitact_fx.sites import find_sites
from fitact_fx.testing import STEPS, Architecture, Layer, Made, Step, architectures, batches
from fitact_fx.testing.activations import FUNCTIONS, MODULES, Activation, ActivationModule, SelfGated
from fitact_fx.testing.attention import Attention, Transformer
from fitact_fx.testing.joins import VIEWS, Split, Sum, View
from fitact_fx.testing.layers import Convolution, Linear
from fitact_fx.testing.recurrent import Cell, Recurrent
from fitact_fx.testing.sharing import Block, Container
from fitact_fx.testing.step import Choice, options_of
from fitact_fx.tracing import trace

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)
examples = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck)
)

ANY = architectures()


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The outputs, and the inputs as the model left them; dropout as after seed 0."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    results = [leaf.detach() for leaf in tree_leaves(model(*inputs))]
    torch.set_rng_state(state)
    return [*results, *inputs]


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def collected(count: int, **options: Any) -> list[Architecture]:
    """So many architectures, always the same."""
    found: list[Architecture] = []

    @seed(0)
    @settings(examples, max_examples=count, derandomize=False, phases=[Phase.generate])
    @given(architectures(**options))
    def collect(architecture: Architecture) -> None:
        found.append(architecture)

    collect()
    return found


def smallest(wanted: Callable[[Architecture], bool], **options: Any) -> Architecture:
    return find(architectures(**options), wanted, settings=settings(examples, max_examples=3000))


def every_step(steps: tuple[Step, ...]) -> Iterator[Step]:
    """The steps and those inside them."""
    for step in steps:
        yield step
        yield from every_step(getattr(step, "steps", ()) + getattr(step, "layers", ()))


@pytest.fixture(scope="module")
def many() -> list[Architecture]:
    return collected(1500, min_steps=4, max_steps=12)


@pytest.fixture(scope="module")
def sources(many: list[Architecture]) -> str:
    kinds = [kind for kind in STEPS if issubclass(kind, Layer)]
    layered = collected(500, steps=kinds, dims=[1, 2, 3], min_steps=5, max_steps=8)
    return "\n".join(architecture.source for architecture in many + layered)


@examples
@given(architectures(), st.sampled_from([False, True]), st.sampled_from([False, True]))
def test_models_run_in_both_modes_and_give_finite_outputs(
    architecture: Architecture, training: bool, gradients: bool
) -> None:
    with torch.set_grad_enabled(gradients):
        results = outputs(architecture.module().train(training), architecture.inputs())
    assert all(each.isfinite().all() and each.dtype == architecture.dtype for each in results)


@examples
@given(st.data())
def test_any_batch_size_runs(data: st.DataObject) -> None:
    architecture = data.draw(ANY)
    inputs = data.draw(batches(architecture, min_size=1, max_size=5))
    size = len(inputs[0])
    with torch.no_grad():
        results = outputs(architecture.module(), inputs)
    assert 1 <= size <= 5
    assert {len(each) for each in results} == {size}


@examples
@given(architectures())
def test_the_printed_source_runs_on_its_own(architecture: Architecture) -> None:
    namespace: dict[str, Any] = {}
    exec(str(architecture), namespace)
    model = namespace["build"]()
    assert not model.training
    assert same(outputs(model, namespace["inputs"]()), outputs(architecture.module(), architecture.inputs()))
    assert same(
        outputs(model.train(), namespace["inputs"](4, seed=7)),
        outputs(architecture.module().train(), architecture.inputs(4, seed=7)),
    )


@examples
@given(architectures())
def test_the_repr_builds_the_same_value(architecture: Architecture) -> None:
    names = {kind.__name__: kind for kind in STEPS} | {"Architecture": Architecture, "torch": torch}
    again = eval(repr(architecture), names)
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert again.source == architecture.source


@examples
@given(architectures())
def test_equal_values_are_equal_models_and_the_global_generator_is_left_alone(architecture: Architecture) -> None:
    before = torch.get_rng_state()
    one, other = architecture.module(), copy.deepcopy(architecture).module()
    inputs, again = architecture.inputs(), architecture.inputs()
    assert torch.equal(torch.get_rng_state(), before)
    assert one is not other
    assert one.state_dict().keys() == other.state_dict().keys()
    assert same(list(one.state_dict().values()), list(other.state_dict().values()))
    assert same(list(inputs), list(again))
    shared = {id(each) for each in one.parameters()} & {id(each) for each in other.parameters()}
    assert not shared


@examples
@given(architectures())
def test_leaving_out_a_step_leaves_a_model_that_runs(architecture: Architecture) -> None:
    for place in range(len(architecture.steps)):
        fewer = architecture.steps[:place] + architecture.steps[place + 1 :]
        arguments = {each.name: getattr(architecture, each.name) for each in fields(architecture)}
        shorter = Architecture(**{**arguments, "steps": fewer})
        assert outputs(shorter.module(), shorter.inputs())


def test_another_seed_gives_other_weights() -> None:
    one, other = (Architecture(takes=((3,),), steps=(Linear(),), seed=number).module() for number in (0, 1))
    assert not torch.equal(one.linear1.weight, other.linear1.weight)


def test_the_table_of_spellings_has_every_kind_and_every_function_of_it() -> None:
    for kind in KINDS:
        ours = [each for each in FUNCTIONS.values() if each.kind == kind.name]
        names = {each.name.partition("(")[0] for each in ours}
        assert {f"x.{method}" for method in kind.methods} <= names
        for function in kind.functions:
            held = [
                vars(space).get(name.rpartition(".")[2])
                for name in names
                for space in (torch.nn.functional, torch, torch.special)
            ]
            assert function in held, f"{kind.name}: no spelling for {function}"
        assert any(each.kind == kind.name for each in MODULES.values())


def test_every_spelling_is_generated() -> None:
    found = collected(1000, steps=[Activation, ActivationModule], min_steps=10, max_steps=14)
    counted = Counter(step.spelling for each in found for step in each.steps)
    assert not {*FUNCTIONS, *MODULES} - counted.keys()


@pytest.mark.parametrize("spelling", [*FUNCTIONS.values(), *MODULES.values()], ids=lambda each: each.name)
def test_a_spelling_is_found_as_a_site_of_its_kind(spelling: Any) -> None:
    step = Activation if spelling.name in FUNCTIONS else ActivationModule
    architecture = Architecture(takes=((3,),), steps=(step(spelling=spelling.name),))
    (site,) = find_sites(trace(architecture.module()))
    assert (site.kind, site.inplace) == (spelling.kind, spelling.inplace)
    assert site.source.startswith("<architecture ")


def test_every_kind_of_step_and_every_option_is_generated(many: list[Architecture]) -> None:
    steps = [step for each in many for step in every_step(each.steps)]
    for kind in STEPS:
        for field in fields(kind):
            if "options" in field.metadata and field.name != "spelling":
                held = {getattr(step, field.name) for step in steps if type(step) is kind}
                assert held == set(options_of(field, Choice())), (kind, field.name)
    assert {step.spelling for step in steps if isinstance(step, Split)} == {
        "chunk", "split", "torch.chunk", "torch.split", "unbind",
    }  # fmt: skip
    assert {step.kind for step in steps if isinstance(step, View)} == set(VIEWS)


_NORMS = "BatchNorm1d BatchNorm2d BatchNorm3d GroupNorm LayerNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d RMSNorm"
_NORMS += " LocalResponseNorm"
_POOLS = [f"{kind}Pool{rank}d" for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for rank in (1, 2, 3)]
_OTHERS = "Linear Dropout AlphaDropout Identity Flatten Sequential ModuleList ModuleDict MultiheadAttention"
_STATEFUL = [kind.module.__name__ for kind in RECURRENT]
_TRANSFORMERS = [f"Transformer{part}coder{layer}" for part in ("En", "De") for layer in ("Layer", "")]
_LAYERS = [f"{kind}{rank}d" for kind in ("Conv", "ConvTranspose", "Dropout") for rank in (1, 2, 3)]


@pytest.mark.parametrize(
    "module",
    [*_NORMS.split(), *_POOLS, *_LAYERS, *_STATEFUL, *_TRANSFORMERS, *_OTHERS.split()],
)
def test_every_kind_of_module_is_generated(sources: str, module: str) -> None:
    assert f"nn.{module}(" in sources


@pytest.mark.parametrize(
    ("feature", "pattern"),
    {
        "grouped convolution": r"nn\.Conv\d.*groups=",
        "sum in place": r"(\w+) \+= (?!\1)\w+\n",
        "concatenation": r"torch\.cat\(\(h\d+, h\d+\)",
        "a module called twice": r"self\.(\w+)\(\w+\)\n(.*\n)*?.*= self\.\1\(\w+\)\n",
        "a module under two names": r"self\.again\d = self\.\w+\n",
        "a block called twice": r"= self\.(block\d)\(\w+\)\n((?!class)[^$])*?= self\.\1\(",
        "a class in a class": r"self\.block1 = Block1\(\)[^$]*?class Model",
        "a sequential in a sequential": r"nn\.Sequential\(.*nn\.Sequential\(",
        "a tied weight": r"self\.tied\d\.weight = self\.linear\d\.weight",
        "a functional weight": r"F\.linear\(\w+, self\.weight1\)",
        "a functional convolution": r"F\.conv\dd\(\w+, self\.weight1",
        "a transposed tied weight": r"F\.linear\(\w+, self\.linear1\.weight\.t\(\)\)",
        "a buffer": r"\+ self\.buffer1",
        "a buffer that is not saved": r"nn\.Buffer\(.*persistent=False\)",
        "several inputs": r"def forward\(self, x, y, z\):\n[^$]*?\bz\b",
        "a tuple of outputs": r"return \(h\d+, h\d+\)",
        "a list of outputs": r"return \[h\d+, h\d+",
        "a dict of outputs": r'return \{"h\d+": h\d+, ',
        "hand-written attention": r"scores\.softmax",
        "attention's weights": r"h\d+, h\d+ = self\.attention\d",
        "a transformer with GELU": r"nn\.Transformer.*activation=\"gelu\"",
        "a transformer with norms first": r"nn\.Transformer.*norm_first=True",
        "a causal mask": r"self\.transformer\d\(.*, self\.mask\d\)",
        "a recurrent output alone": r"= self\.recurrent\d\(.*\)\[0\]",
        "an LSTM's state": r"_, \(h\d+, _\) = self\.recurrent\d",
        "a recurrent output and state": r"h\d+, h\d+ = self\.recurrent\d",
        "batches second in a recurrent layer": r"self\.recurrent\d\(.*\.transpose\(0, 1\)\)",
        "a recurrent layer in both directions": r"bidirectional=True",
        "a cell called with its own state": r"self\.cell\d\(.*, \(?h\d+",
        "a gated unit over the channels": r"F\.glu\(.*, dim=1\)",
        "a gated unit over an odd size": r"F\.glu\(torch\.cat",
        "a gate written out": r"= (\w+) \* torch\.sigmoid\(\1\)",
        "channels last": r"memory_format=torch\.channels_last\)",
        "channels last in 3d": r"memory_format=torch\.channels_last_3d\)",
        "dropout of a function": r"F\.dropout\(.*self\.training\)",
        "in place on a view": r"(h\d+) = \w+(\[|\.(flatten|transpose|reshape|narrow|view)\().*\n.*\w+_\(\1",
        "in place, thrown away": r"\n        (F|torch)\.\w+_\(h\d+\)\n",
        "in place on an input": r"_\([xyz]\)",
        **{f"float{name}": rf"model\.to\(torch\.b?float{name}\)" for name in ("16", "32", "64")},
        "bfloat16": "torch.bfloat16",
    }.items(),
)  # fmt: skip
def test_every_feature_is_generated(many: list[Architecture], feature: str, pattern: str) -> None:
    assert any(re.search(pattern, architecture.source) for architecture in many), feature


def test_options_are_kept() -> None:
    for architecture in collected(
        150, dims=[2], dtypes=[torch.float64], kinds=["gelu", "relu6"], inplace=False, max_steps=3, max_inputs=1
    ):
        steps = list(every_step(architecture.steps))
        kinds = {
            (FUNCTIONS | MODULES)[step.spelling].kind
            for step in steps
            if isinstance(step, Activation | ActivationModule)
        }
        assert kinds <= {"gelu", "relu6"}
        assert architecture.dtype == torch.float64
        assert [len(shape) for shape in architecture.takes] == [3]
        assert len(architecture.steps) <= 3
        classes = architecture.source.partition("def build")[0]
        assert not re.search(r"[a-z]_\(|inplace=True|\+=", classes)


def test_without_aliasing_inputs_and_values_stay_what_they_were() -> None:
    """What a step overwrote has no other reader: working out of place everywhere changes nothing."""
    for architecture in collected(300, aliasing=False, min_steps=3):
        inputs = architecture.inputs()
        outputs(architecture.module(), inputs)
        assert same(list(inputs), list(architecture.inputs()))
        assert same(*(outputs(out_of_place(architecture, really), architecture.inputs()) for really in (False, True)))


def out_of_place(architecture: Architecture, really: bool = True) -> nn.Module:
    """A naive rewrite, wrong where memory is shared: activations in place become activations out of place."""
    source = architecture.source
    if really:
        source = re.sub(r"(?<=[a-z6])_\((?=h|x|y|z|\))", "(", source).replace("inplace=True", "inplace=False")
        source = re.sub(r"(\w+) \+= (\w+)", r"\1 = \1 + \2", source)
    namespace: dict[str, Any] = {}
    exec(source, namespace)
    return namespace["build"]()


def test_without_gradients_what_split_returns_is_overwritten() -> None:
    def refused(architecture: Architecture) -> bool:
        with torch.no_grad():
            outputs(architecture.module(), architecture.inputs())
        try:
            outputs(architecture.module(), architecture.inputs())
        except RuntimeError as error:
            return "multiple views" in str(error)
        return False

    assert (
        len(
            smallest(
                refused, gradients=False, kinds=["relu"], steps=[Activation, Linear, Split], dims=[0], max_inputs=1
            ).steps
        )
        <= 3
    )


def test_an_unknown_activation_kind_is_named() -> None:
    with pytest.raises(RecipeError, match=r"unknown activation kind 'rely'; choose one of celu, elu, "):
        architectures(kinds=["rely"])


def test_a_relu_in_place_on_a_view_shrinks_to_two_steps() -> None:
    def relu_on_view(architecture: Architecture) -> bool:
        views = r"(\[|\.(flatten|reshape|transpose|permute|unsqueeze|squeeze|unflatten|narrow|detach)\()"
        return bool(
            re.search(
                rf"(h\d+) = \w+{views}.*\n.*((relu|clamp|clip|min)_\(\1\b|\1\.(relu|cl\w+)_\()", architecture.source
            )
        )

    found = smallest(relu_on_view, kinds=["relu"])
    assert found.steps == (View(), Activation(spelling=found.steps[1].spelling))
    assert (found.takes, found.dtype, found.form, found.seed) == (((1,),), torch.float32, "tensor", 0)


def test_a_wrong_rewrite_is_caught_by_a_small_example() -> None:
    def differs(architecture: Architecture) -> bool:
        right = outputs(architecture.module(), architecture.inputs())
        wrong = outputs(out_of_place(architecture), architecture.inputs())
        return not same(right[: -len(architecture.takes)], wrong[: -len(architecture.takes)])

    assert len(smallest(differs, kinds=["relu"], dims=[0], max_inputs=1).steps) <= 3


@pytest.mark.parametrize(
    "kind", [Convolution, Container, Block, Attention, Sum, Transformer, Recurrent, Cell, SelfGated]
)
def test_one_kind_of_step_shrinks_to_itself(kind: type[Step]) -> None:
    found = smallest(lambda architecture: any(type(step) is kind for step in every_step(architecture.steps)))
    assert found.steps == (kind(),)


@examples
@given(architectures(steps=[Linear, Activation], dims=[0]))
def test_only_the_steps_that_were_asked_for_appear(architecture: Architecture) -> None:
    assert {type(step) for step in architecture.steps} <= {Linear, Activation}


def test_a_layer_of_ones_own_is_a_few_lines() -> None:
    class Upsample(Layer):
        stem = "up"

        def made(self, shape: tuple[int, ...], dtype: torch.dtype) -> Made:
            return Made("nn.Upsample(scale_factor=2)", (shape[0], *(2 * size for size in shape[1:])))

    wanted = find(
        architectures(dims=[2], steps=[Upsample, Container], max_steps=2),
        lambda each: any(isinstance(step, Container) and step.layers for step in each.steps),
        settings=examples,
    )
    assert "self.chain1 = nn.Sequential(nn.Upsample(scale_factor=2))" in wanted.source
    assert wanted.module()(*wanted.inputs()).shape == (2, 1, 2, 2)


def test_source_lines_are_known_to_tracebacks_and_inspect() -> None:
    model = Architecture(takes=((3,),), steps=(Activation(),)).module()
    assert "F.relu(x)" in inspect.getsource(type(model).forward)
    with pytest.raises(TypeError) as caught:
        model(None)
    assert "h1 = F.relu(x)" in str(caught.getrepr())


def test_a_failing_property_prints_code(capsys: pytest.CaptureFixture[str]) -> None:
    @settings(examples, verbosity=Verbosity.normal)
    @given(architectures())
    def never(architecture: Architecture) -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        never()
    shown = "\n".join(caught.value.__notes__) + capsys.readouterr().out
    assert "Architecture(steps=(Activation(),))" in shown
    assert "#         h1 = F.relu(x)" in shown


def test_hypothesis_is_only_needed_by_who_imports_this() -> None:
    code = """
import sys, fitact_fx
assert "hypothesis" not in sys.modules
sys.modules["hypothesis"] = None
try:
    import fitact_fx.testing
except ImportError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "fitact_fx.testing needs Hypothesis;\n  pip install 'fitact-fx[testing]'\n"
