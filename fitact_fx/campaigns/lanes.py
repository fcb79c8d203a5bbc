"""Which trials are still to be run, and when a cell knows enough.

A lane is one cell of one variant. Its trials run in their order, in stretches that end at *looks*: there, and only
there, the interval over all trials so far decides whether to go on. So where a lane stops depends on its trials alone,
and not on who ran them or when.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fitact_fx.campaigns.job import Block
from fitact_fx.campaigns.rows import Row
from fitact_fx.campaigns.stopping import StopRule


def measured(row: Row, measure: str) -> float | None:
    """The value of a column or metric; None where the row has none."""
    value = row.metrics.get(measure) if measure not in ("accuracy", "sdc1", "sdc5", "due") else getattr(row, measure)
    return None if value is None or not np.isfinite(value) else float(value)


@dataclass(eq=False)
class Lane:
    """One cell of one variant: what is done, and up to where it is to be done next."""

    cell: int
    variant: str
    trials: int
    rule: StopRule
    values: dict[int, float | None] = field(default_factory=dict)
    look: int = 0
    finished: bool = False
    _next: int = 0

    def __post_init__(self) -> None:
        self.look = self.rule.first_look(self.trials)
        self.advance()

    def take(self, rows: Sequence[Row]) -> None:
        """Note these trials as done."""
        for row in rows:
            self.values[row.trial] = measured(row, self.rule.measure)
        self.advance()

    def advance(self) -> None:
        """Decide at every look that has been reached."""
        while not self.finished and self._is_complete():
            self.finished = self.look >= self.trials or self.rule.is_met(self.known())
            if not self.finished:
                self.look = self.rule.next_look(self.look, self.trials, self.known())

    def known(self) -> list[float]:
        """The values up to the look, in the order of trials."""
        return [value for trial in range(self.look) if (value := self.values.get(trial)) is not None]

    def stretch(self, size: int) -> tuple[int, ...]:
        """The next trials to run, at most `size`; they count as handed out. Nothing if all up to the look are."""
        chosen: list[int] = []
        while self._next < self.look and len(chosen) < size:
            if self._next not in self.values:
                chosen.append(self._next)
            self._next += 1
        return tuple(chosen)

    def _is_complete(self) -> bool:
        return len(self.values) >= self.look and all(trial in self.values for trial in range(self.look))


@dataclass(eq=False)
class Lanes:
    """All lanes of a campaign; blocks of work come out, rows go in. `sizes`: variant -> trials per block."""

    lanes: Mapping[tuple[int, str], Lane]
    sizes: Mapping[str, int]

    def blocks(self) -> Iterator[Block | None]:
        """What to run next; None while all that is left waits for results."""
        queue = deque(self.lanes.values())
        while queue:
            for _ in range(len(queue)):
                lane = queue[0]
                trials = () if lane.finished else lane.stretch(self.sizes[lane.variant])
                if trials:
                    yield Block(lane.cell, lane.variant, trials)
                    break
                queue.popleft()
                if not lane.finished:
                    queue.append(lane)
            else:
                if queue:
                    yield None

    def take(self, block: Block, rows: Sequence[Row]) -> Lane:
        """Note the rows of a block; the lane they belong to."""
        lane = self.lanes[block.cell, block.variant]
        lane.take(rows)
        return lane
