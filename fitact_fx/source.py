"""Where in the user's own code a node of a graph comes from."""

import inspect
import linecache
import os
import re
from pathlib import Path
from types import FrameType

import torch
from torch.fx import Node

_LIBRARY = str(Path(__file__).parent) + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
# Code that has no file of its own: a graph's, and Python's. `<stdin>` or a notebook's cell are a user's.
_GENERATED = ("<eval_with_key>", "<frozen ")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


def user_frames(frame: FrameType | None, own_files: frozenset[str], stop: str) -> str:
    """The model's own frames around `frame`, outermost first, written like a traceback.

    Frames of torch and of `own_files` are left out; the walk ends at the function `stop` of one of
    these, beyond which stands whoever asked for the trace.
    """
    lines: list[str] = []
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file in own_files and function == stop:
            break
        if file not in own_files and not is_torch(file):
            code = linecache.getline(file, frame.f_lineno).strip()
            lines.append(f'  File "{file}", line {frame.f_lineno}, in {function}\n    {code}')
        frame = frame.f_back
    return "\n".join(reversed(lines))


def is_torch(file: str) -> bool:
    """Whether a source file belongs to torch itself (torchvision and others are users of it)."""
    return file.startswith((_TORCH, *_GENERATED))


def level_of_user() -> int:
    """How far up, from where `warn` is called, the code stands that called this library."""
    level, frame = 1, inspect.currentframe()
    frame = frame.f_back if frame else None
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        level, frame = level + 1, frame.f_back
    return level


def source_line(node: Node) -> str:
    """`model.py:41, in forward: x = self.relu(x)`, the innermost line outside torch."""
    frames = [match for match in _FRAME.finditer(node.stack_trace or "") if not is_torch(match["file"])]
    if not frames:
        return f"source line not recorded, node {node.name}"
    file, line, function = frames[-1]["file"], int(frames[-1]["line"]), frames[-1]["function"]
    return describe(file, line, function)


def describe(file: str, line: int, function: str) -> str:
    """`model.py:41, in forward: x = self.relu(x)`."""
    code = linecache.getline(file, line).strip()
    return f"{Path(file).name}:{line}, in {function}" + (f": {code}" if code else "")


def owner_path(node: Node) -> str:
    """The path of the module whose code makes this call, "" for the root."""
    # The values are read and not the keys: keys differ between torch versions.
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    if node.op == "call_module" and stack:
        stack.pop()  # the called module itself
    return stack[-1] if stack else ""
