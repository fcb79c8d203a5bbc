"""Which part of a model's memory faults can hit: a kind of tensor and a glob over names."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from fitact_fx.errors import FaultError, known

KINDS = ("parameters", "buffers", "bounds", "activations")


@dataclass(frozen=True)
class Target:
    """All tensors of one kind whose names match a glob; FaultError for an unknown kind.

    `parameters`; `buffers`, which are the numbers a model keeps and saves beside them (BatchNorm's statistics,
    int8 weights), without counters and masks; `bounds` of a hardened model; `activations` where `inject` put a node.
    """

    kind: str
    glob: str = "*"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = f'\n  a glob over names stands behind the kind, such as "parameters:{self.kind}"'
            raise FaultError(known("target", self.kind, KINDS) + ";" + hint)

    @classmethod
    def parse(cls, text: "str | Target") -> "Target":
        """`"parameters"`, or with a glob `"parameters:layer1.*"`."""
        if isinstance(text, Target):
            return text
        kind, _, glob = text.partition(":")
        return cls(kind, glob or "*")

    def matches(self, kind: str, names: tuple[str, ...]) -> bool:
        """Whether a tensor of that kind is meant, which may have several names."""
        return kind == self.kind and any(fnmatchcase(name, self.glob) for name in names)

    def __str__(self) -> str:
        return self.kind if self.glob == "*" else f"{self.kind}:{self.glob}"
