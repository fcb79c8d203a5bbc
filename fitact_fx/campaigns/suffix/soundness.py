"""Whether the graph shows that its values follow from its inputs and tensors alone, whichever run they are of."""

from collections.abc import Iterator

from torch import nn
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node

from fitact_fx.errors import CampaignError
from fitact_fx.guards import InputGuards
from fitact_fx.nodes import called_module, is_foreign
from fitact_fx.traced import TracedModule, parts
from fitact_fx.unseen import UnseenCode

_OURS = ("torch.", "torchvision.", "fitact_fx.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def require_sound(model: GraphModule) -> None:
    """CampaignError for code in a graph that may do more than compute its result."""
    for path, part in parts(model).items():
        if part.unseen:
            raise unsound(f"the code of {next(iter(part.unseen)) or path or 'the model'} could not be seen")
    if any(getattr(model, hooks) for hooks in _HOOKS):
        raise unsound("the model as a whole has hooks, which run only when all of it does")
    for node in model.graph.nodes:
        if is_foreign(node) and not _is_known(node):
            raise unsound(f"{node.name} runs code that may do anything")
        if isinstance(node.target, HigherOrderOperator):
            raise unsound(f"{node.name} is a control structure")
        for module in _modules(node):
            problem = _problem(module)
            if problem:
                raise unsound(f"{node.name} calls a {type(module).__name__} that {problem}")


def _modules(node: Node) -> Iterator[nn.Module]:
    """The modules that run when this node does, but for those that only look at inputs."""
    if node.op == "call_module" and not isinstance(called_module(node), InputGuards):
        yield from called_module(node).modules()


def _is_known(node: Node) -> bool:
    """Whether the code is torchvision's: some of its functions stay whole in a graph, and compute what they say."""
    code = type(called_module(node)) if node.op == "call_module" else node.target
    return _is_ours(code)


def _is_ours(code: object) -> bool:
    return f"{getattr(code, '__module__', '')}.".startswith(_OURS)


def _problem(module: nn.Module) -> str | None:
    """Why the result of a module may depend on more than its inputs and its own tensors; None if it does not."""
    if module.training:
        return "is in training mode"
    if isinstance(module, UnseenCode | TracedModule) or not _is_ours(type(module)):
        return "is code that may do anything"
    if "forward" in vars(module):
        return "was given another forward"
    for hooks in _HOOKS:
        for hook in getattr(module, hooks).values():
            if not _is_ours(hook) and not _is_ours(type(hook)):
                return "has a hook that may do anything"
    return None


def unsound(problem: str) -> CampaignError:
    """What is said of a model whose values cannot stand for those of another run."""
    return CampaignError(
        f"this model cannot be run in part: {problem};\n  run the whole model in each trial (suffixes=False)"
    )
