"""What the code of a module does with its children, read from its source: a graph can stand for a child that is called.

A graph cannot be indexed, has no methods of the child's own, and is of another class. So a child with which the
code does more than call it, or read a value that it holds, has to stay what it is. Where that cannot be
told, because the source is not there or handles the children by other names, all of them stay.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn

# Reading its own children, by whatever name.
_ALL_CHILDREN = frozenset(
    "children named_children modules named_modules _modules get_submodule __dict__ __getattr__ apply".split()
)
# Functions that may be asked about the module itself; `getattr(self, name)(x)` is a call of a child.
_HARMLESS = frozenset("super isinstance type hasattr id repr print".split())


def more_than_called(unseen: nn.Module, *, by_others: bool) -> dict[nn.Module, str]:
    """Module -> what the code of `unseen` does with it besides calling it or reading a value that it holds.

    `by_others`: whether other code does more with `unseen` than call it, so that any of its methods may run.
    """
    found: dict[nn.Module, str] = {}
    for function in _reached(type(unseen), every_method=by_others):
        for module, how in _uses(function, unseen):
            found.setdefault(module, how)
    return found


def _reached(cls: type[nn.Module], *, every_method: bool) -> list[object]:
    """`forward` and the methods and properties that it names, and those that these name, torch's own left out."""
    reached: dict[str, object] = {}
    pending = ["forward", "__call__"]
    if every_method:
        pending += [name for each in cls.__mro__ for name in vars(each) if name not in ("__init__", "train")]
    while pending:
        name = pending.pop()
        owner = next((each for each in cls.__mro__ if name in vars(each)), None)
        # torch's own containers call their children, and so does what every module has.
        if name in reached or owner is None or owner.__module__.startswith(("torch.nn.modules.", "builtins")):
            continue
        held = vars(owner)[name]
        function = held.fget if isinstance(held, property) else inspect.unwrap(held) if callable(held) else None
        if function is not None:
            reached[name] = function
            pending.extend(getattr(getattr(function, "__code__", None), "co_names", ()))
    return list(reached.values())


def _uses(function: object, unseen: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, what is done with it), for what a graph in its place could not stand."""
    children = [child for child in unseen._modules.values() if child is not None]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        yield from ((child, "its source cannot be read") for child in children)
        return
    definition = next((each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.Lambda)), None)
    if definition is None or not definition.args.args:
        return
    own = definition.args.args[0].arg
    around = {inner: outer for outer in ast.walk(tree) for inner in ast.iter_child_nodes(outer)}
    for node in ast.walk(definition):
        if isinstance(node, ast.Name) and node.id == own and isinstance(node.ctx, ast.Load):
            outer = around[node]
            if isinstance(outer, ast.Attribute) and outer.attr not in _ALL_CHILDREN:
                yield from _use_of_child(outer, around, unseen)
            elif not _is_harmless(node, around):
                yield from ((child, ast.unparse(outer)) for child in children)


def questions(module: nn.Module) -> dict[str, str] | None:
    """Argument -> where `forward` asks whether it is None, or what it is; None if the source cannot be read.

    Who calls the module may give one thing in one call and another in the next, and a graph knows one answer.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(module).forward))))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = next((each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.Lambda)), None)
    arguments = {each.arg for each in definition.args.args[1:]} if definition is not None else set()
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        asked: list[ast.expr] = []
        if isinstance(node, ast.Compare) and any(isinstance(each, ast.Is | ast.IsNot) for each in node.ops):
            asked = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("isinstance", "type"):
            asked = node.args[:1]
        for each in asked:
            if isinstance(each, ast.Name) and each.id in arguments:
                found.setdefault(each.id, ast.unparse(node))
    return found


def _is_harmless(node: ast.Name, around: dict[ast.AST, ast.AST]) -> bool:
    """Whether `self`, standing alone, is only asked about, or for a child that is called at once."""
    call = around[node]
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        return False
    outer = around.get(call)
    called_at_once = call.func.id == "getattr" and isinstance(outer, ast.Call) and outer.func is call
    return call.func.id in _HARMLESS or called_at_once


def _use_of_child(
    node: ast.Attribute, around: dict[ast.AST, ast.AST], unseen: nn.Module
) -> Iterator[tuple[nn.Module, str]]:
    module, outer, inner = unseen._modules.get(node.attr), around.get(node), node
    while isinstance(outer, ast.Attribute) and module is not None and outer.attr in module._modules:
        yield module, ast.unparse(outer)  # a graph has no such module that could be called
        module = module._modules[outer.attr]
        inner, outer = outer, around.get(outer)
    if module is None or outer is None:
        return
    called = isinstance(outer, ast.Call) and outer.func is inner
    compared = isinstance(outer, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in outer.ops)
    reads = isinstance(outer, ast.Attribute) and isinstance(outer.ctx, ast.Load) and _is_held(module, outer.attr)
    if not (called or compared or reads):
        yield module, ast.unparse(outer)


def _is_held(module: nn.Module, name: str) -> bool:
    """Whether the module holds a value, Parameter or buffer of that name, which a graph in its place holds as well."""
    return name in vars(module) or name in module._parameters or name in module._buffers
