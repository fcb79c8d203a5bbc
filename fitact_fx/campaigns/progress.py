"""What people see while a campaign runs: how far it is, and how the interval shrinks."""

from contextlib import AbstractContextManager
from time import perf_counter
from types import TracebackType

import numpy as np
from tqdm import tqdm

from fitact_fx.campaigns.arguments import MEASURES
from fitact_fx.campaigns.job import Job
from fitact_fx.campaigns.lanes import Lane, Lanes

_PAUSE = 0.2  # seconds between two looks at the interval


class Progress(AbstractContextManager["Progress"]):
    """A bar over all trials; a cell that stops early takes its remaining ones off."""

    def __init__(self, lanes: Lanes, job: Job, *, shown: bool) -> None:
        self.job = job
        self.next = 0.0
        self.total = sum(map(_planned, lanes.lanes.values()))
        done = sum(len(lane.values) for lane in lanes.lanes.values())
        self.bar = tqdm(
            total=self.total,
            initial=done,
            desc="trials",
            unit="trial",
            delay=1,
            dynamic_ncols=True,
            disable=None if shown else True,  # None: only on a terminal
        )

    def show(self, lane: Lane, rows: int) -> None:
        """Some trials of this lane are done."""
        if self.bar.disable:
            return
        if lane.finished:
            self.total -= lane.trials - len(lane.values)
            self.bar.total = self.total
        if perf_counter() >= self.next:  # all values of a lane are gone through, which may be many
            self.bar.set_postfix_str(self._state(lane), refresh=False)
            self.next = perf_counter() + _PAUSE
        self.bar.update(rows)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _state(self, lane: Lane) -> str:
        """`fitact at 1e-05: 87.3 % +-1.2`, by the normal approximation, since a bootstrap at each step would cost."""
        values = [value for value in lane.values.values() if value is not None]
        where = f"{lane.variant} at {self.job.cells[lane.cell].condition.name}"
        if len(values) < 2:
            return where
        half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
        if lane.rule.measure not in MEASURES:  # in a unit of the user's
            return f"{where}: {float(np.mean(values)):.4g} ±{half:.2g}"
        return f"{where}: {100 * float(np.mean(values)):.1f} % ±{100 * half:.1f}"


def _planned(lane: Lane) -> int:
    return len(lane.values) if lane.finished else lane.trials
