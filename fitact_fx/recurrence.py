"""Recurrent layers give several tensors: each is an activation where it is taken out of the result."""

import operator

from torch._ops import OpOverload
from torch.fx import Node

from fitact_fx.kinds import BY_ATEN, RECURRENT, Kind
from fitact_fx.nodes import called_module, called_name

_BY_MODULE = {kind.module: kind for kind in RECURRENT}
_SEVERAL = frozenset("lstm gru rnn lstm_cell".split())


def recurrent_kind(call: Node) -> Kind | None:
    """The kind of recurrent layer that this node calls, or None."""
    if call.op == "call_module":
        return _BY_MODULE.get(type(called_module(call)))
    kind = BY_ATEN.get(called_name(call)) if isinstance(call.target, OpOverload) else None
    return kind if kind in RECURRENT else None


def gives_one_tensor(kind: Kind) -> bool:
    """Whether the call itself is the activation, as of a GRU's cell."""
    return kind.name not in _SEVERAL


def recurrent_call(node: Node) -> Node | None:
    """The call of a recurrent layer one of whose tensors this node takes out, or None."""
    source = _source_of_item(node)
    if source is None:
        return None
    if called_name(source) == "pad_packed_sequence":  # what a layer gave for packed sequences, as one tensor
        packed = source.args[0] if node.args[1] == 0 else None
        layer = _source_of_item(packed) if isinstance(packed, Node) else None
        return layer if layer is not None and recurrent_kind(layer) is not None else None
    kind = recurrent_kind(source)
    if kind is not None:
        if node.args[1] == 0 and _is_packed(source):
            return None  # no tensor yet
        # The state of the module nn.LSTM is a pair of tensors.
        is_pair = kind.name == "lstm" and source.op == "call_module" and node.args[1] == 1
        return source if kind.name in _SEVERAL and not is_pair else None
    call = _source_of_item(source)
    is_state = call is not None and source.args[1] == 1 and call.op == "call_module"
    kind = recurrent_kind(call) if is_state and call is not None else None
    return call if kind is not None and kind.name == "lstm" else None


def kind_taken_out(node: Node) -> Kind | None:
    """The kind of one tensor out of a recurrent layer's result; the state of an LSTM is a pair, and none."""
    call = recurrent_call(node)
    return None if call is None else recurrent_kind(call)


def state_name(node: Node) -> str:
    """Which of a recurrent layer's tensors this node takes out: "" for its output, else "h_n" or "c_n"."""
    call = recurrent_call(node)
    kind = None if call is None else recurrent_kind(call)
    assert call is not None  # the node is an activation of such a layer
    assert kind is not None
    place, several = node.args[1], kind.name
    if called_name(node.args[0]) == "pad_packed_sequence":  # type: ignore[arg-type]
        return ""
    if several == "lstm_cell":
        return "c_n" if place == 1 else ""
    if isinstance(call.target, OpOverload):
        return ("", "h_n", "c_n")[place]  # type: ignore[index]
    if several == "lstm":
        return "" if node.args[0] is call else ("h_n", "c_n")[place]  # type: ignore[index]
    return "h_n" if place == 1 else ""


def _is_packed(layer: Node) -> bool:
    """Whether a recurrent layer gets packed sequences, from torch's own function or from such a layer."""
    given = layer.args[0] if layer.args else None
    if not isinstance(given, Node):
        return False
    before = _source_of_item(given)
    from_layer = before is not None and recurrent_kind(before) is not None and _is_packed(before)
    return called_name(given) in ("pack_padded_sequence", "pack_sequence") or from_layer


def _source_of_item(node: Node) -> Node | None:
    """What this node takes an item by number out of."""
    takes = node.target is operator.getitem and isinstance(node.args[1], int)
    return node.args[0] if takes and isinstance(node.args[0], Node) else None
