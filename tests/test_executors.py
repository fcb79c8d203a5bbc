"""Where the blocks of a campaign run: every way gives the same results, and a worker that dies loses none."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fitact_fx import trace
from fitact_fx.campaigns import payload, processes
from fitact_fx.campaigns.executors import completed, workers_for
from fitact_fx.errors import CampaignError
from fitact_fx.models import resnet20

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and tells who did; `marker` is a file that the first to come there makes, and dies."""

    threads: int = 1
    deadly: int | None = None
    marker: str | None = None
    refused: int | None = None
    slow: frozenset[int] = frozenset()
    state: dict[str, int] = field(default_factory=dict)

    def run(self, block: int) -> list[Any]:
        self.state["blocks"] = self.state.get("blocks", 0) + 1
        if block == self.refused:
            raise ValueError(f"no square of {block}")
        if block == self.deadly and (self.marker is None or not Path(self.marker).exists()):
            if self.marker is not None:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if block in self.slow:
            time.sleep(0.5)
        return [block**2, os.getpid(), threading.get_ident(), torch.get_num_threads(), id(self)]


@dataclass(frozen=True)
class Network:
    """What a network gives for a block's images, with its weights hit in place and put back."""

    model: nn.Module
    threads: int = 1

    @torch.no_grad()
    def run(self, block: int) -> list[bytes]:
        weight, images = self.model.conv1.weight, torch.full((2, 3, 16, 16), float(block))
        before = weight[0].clone()
        weight[0] = block
        got = self.model(images).numpy().tobytes()
        weight[0] = before
        return [got]


class Dying(Executor):
    """Says that it is broken."""

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool("a process died"))
        return future


def ran(job: Any, blocks: Any = range(8), **where: Any) -> dict[int, Any]:
    """Block -> what came back."""
    with workers_for(job, **where) as workers:
        return dict(completed(workers, iter(blocks)))


def squares(results: dict[int, Any]) -> dict[int, int]:
    return {block: result[0] for block, result in results.items()}


EXPECTED = {number: number * number for number in range(8)}


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fitact_fx.campaigns.executors.can_fork", lambda threads: False)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Behind every test there is no file, process or job of ours, and no thread that hands out blocks."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(multiprocessing.active_children())
    yield
    left = set(multiprocessing.active_children()) - before
    assert not [process for process in left if not process.name.startswith("Dask")]  # whose cluster outlives a test
    assert not list(tmp_path.glob("*.job"))
    assert not payload._left
    assert not payload._sent
    assert not payload._loaded
    assert not [thread for thread in threading.enumerate() if thread.name == "fitact-fx campaign"]


def test_one_worker_is_this_process_and_runs_a_block_when_it_is_asked_for() -> None:
    job = Squares()
    with workers_for(job) as workers:
        asked = completed(workers, iter(range(8)))
        assert next(asked)[1][1] == os.getpid()
        assert job.state == {"blocks": 1}
        assert squares(dict(asked)) == {number: number**2 for number in range(1, 8)}


def test_forked_workers_do_what_cannot_be_pickled() -> None:
    class Local(Squares):
        def run(self, block: int) -> list[Any]:
            return [*super().run(block), opened.closed]

    with Path(__file__).open() as opened:
        results = ran(Local(slow=frozenset(range(4))), workers=2)
    assert squares(results) == EXPECTED
    workers = {result[1] for result in results.values()}
    assert len(workers) == 2
    assert os.getpid() not in workers
    assert {result[3] for result in results.values()} == {1}
    assert not any(result[-1] for result in results.values())


@pytest.mark.usefixtures("no_fork")
def test_spawned_workers_load_the_job_once_and_one_that_is_killed_loses_no_block(tmp_path: Path) -> None:
    results = ran(Squares(threads=2, deadly=3, marker=str(tmp_path / "died")), workers=2)
    assert (tmp_path / "died").exists()
    assert squares(results) == EXPECTED
    assert {result[3] for result in results.values()} == {2}
    assert len({result[1] for result in results.values()}) == len(
        {(result[1], result[4]) for result in results.values()}
    )


def test_several_threads_mean_no_fork() -> None:
    assert not processes.can_fork(2)


@pytest.mark.usefixtures("no_fork")
def test_what_cannot_be_pickled_is_refused_with_a_remedy() -> None:
    with pytest.raises(CampaignError, match="cannot be sent to worker processes") as refused:
        ran(Squares(marker=threading.Lock()), workers=2)
    assert "workers=1" in str(refused.value)


def test_threads_have_a_job_each_and_stay_alive() -> None:
    with ThreadPoolExecutor(2) as threads:
        results = ran(Squares(slow=frozenset(range(8))), executor=threads)
        assert threads.submit(sum, (1, 2)).result() == 3
    assert squares(results) == EXPECTED
    assert len({result[2] for result in results.values()}) == len({result[4] for result in results.values()}) == 2


def test_another_campaign_in_the_same_threads_gets_its_own_job() -> None:
    with ThreadPoolExecutor(1) as threads:
        assert [ran(Squares(threads=count), [3], executor=threads)[3][3] for count in (1, 2, 1)] == [1, 2, 1]


def test_a_process_pool_of_the_users_is_used_and_stays_alive() -> None:
    torch.manual_seed(0)
    job = Network(trace(resnet20()))
    with ProcessPoolExecutor(1, SPAWN) as pool:
        assert ran(job, executor=pool) == ran(job)
        assert pool.submit(sum, (1, 2)).result() == 3


def test_a_network_is_hit_and_gives_the_same_bits_wherever_it_runs() -> None:
    torch.manual_seed(0)
    job = Network(trace(resnet20()))
    here = ran(job)
    assert len({got for (got,) in here.values()}) == 8
    assert ran(job, workers=2) == here
    with ThreadPoolExecutor(2) as threads:
        assert ran(job, executor=threads) == here


@pytest.mark.parametrize("where", [{}, {"workers": 2}])
def test_what_a_block_raises_is_raised_and_not_tried_again(where: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no square of 2"):
        ran(Squares(refused=2), **where)


def test_results_come_as_they_are_done() -> None:
    with workers_for(Squares(slow=frozenset([0])), workers=2) as workers:
        assert next(block for block, _ in completed(workers, iter(range(2)))) == 1


def test_blocks_are_asked_for_when_there_is_room_and_wait_for_results() -> None:
    given: list[int] = []
    got: list[int] = []

    def blocks() -> Iterator[int | None]:
        for number in range(6):
            given.append(number)
            yield number
        while len(got) < 6:
            yield None
        given.append(6)
        yield 6

    with workers_for(Squares(), workers=2) as workers:
        for block, _ in completed(workers, blocks()):
            assert len(given) - len(got) <= 4
            got.append(block)
    assert sorted(got) == list(range(7))


def test_a_forked_worker_that_is_killed_loses_no_block(tmp_path: Path) -> None:
    results = ran(Squares(deadly=3, marker=str(tmp_path / "died")), workers=2)
    assert (tmp_path / "died").exists()
    assert squares(results) == EXPECTED


def test_a_block_that_always_kills_its_worker_is_named_and_no_other_is() -> None:
    with workers_for(Squares(deadly=3), workers=2) as workers:
        futures = [workers.submit(number) for number in range(8)]
        with pytest.raises(CampaignError, match=r"workers died 3 times on the same work, 3, .*memory;\n  use fewer"):
            futures[3].result()
        others = {number: future.result() for number, future in enumerate(futures) if number != 3}
    assert squares(others) == {number: square for number, square in EXPECTED.items() if number != 3}


def test_a_broken_executor_of_the_users_is_an_error_with_a_remedy() -> None:
    with pytest.raises(CampaignError, match="the executor is broken") as refused:
        ran(Squares(), executor=Dying())
    assert "workers=..." in str(refused.value)


def test_an_executor_that_was_shut_down_says_so() -> None:
    threads = ThreadPoolExecutor(1)
    threads.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ran(Squares(), executor=threads)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_workers_is_a_whole_number(workers: Any) -> None:
    with pytest.raises(CampaignError, match="workers is a whole number from 1 up"):
        ran(Squares(), workers=workers)


def test_another_thing_is_no_executor() -> None:
    with pytest.raises(CampaignError, match="executor is a str"):
        ran(Squares(), executor="processes")


def test_an_error_in_the_parent_ends_workers_in_the_middle_of_a_block() -> None:
    def asleep() -> None:
        with workers_for(Sleeper(), workers=2) as workers:
            workers.submit(0)
            workers.submit(1)
            raise KeyError("anything")

    with pytest.raises(KeyError, match="anything"):
        asleep()


@dataclass(frozen=True)
class Sleeper:
    """Writes down its process, and does not end by itself."""

    folder: str | None = None
    threads: int = 1

    def run(self, block: int) -> None:
        if self.folder is not None:
            (Path(self.folder) / str(os.getpid())).touch()
        time.sleep(1000)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import signal, sys, test_executors as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "with t.workers_for(t.Sleeper(sys.argv[1]), workers=2) as workers:\n"
        "    list(t.completed(workers, iter(range(3))))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with parent:
        while len(list(tmp_path.iterdir())) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
        children = [int(path.name) for path in tmp_path.iterdir()]
        if how == signal.SIGINT:
            os.killpg(parent.pid, how)  # as a terminal does: to all of them
        else:
            parent.send_signal(how)
        told = parent.communicate(timeout=60)[1].decode()
    assert parent.returncode == -how
    assert told.count("KeyboardInterrupt") == (how == signal.SIGINT)  # no worker tells of it
    end = time.monotonic() + 60
    while any(map(is_alive, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_alive, children))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a cluster of two processes, whose nannies start a worker anew when it dies."""
    distributed = pytest.importorskip("distributed", reason="a dask cluster needs distributed")
    import dask

    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": ":0", "silence_logs": 50}
    # A worker that dies is told of at once, and not when it has died three times more.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


class TestDask:
    @pytest.fixture(autouse=True)
    def nothing_is_left_there(self, client: Any) -> Iterator[None]:
        yield
        assert set(client.run(left_in_process).values()) == {(0, 0)}

    def test_its_workers_run_blocks(self, client: Any) -> None:
        results = ran(Squares(slow=frozenset(range(8))), executor=client)
        assert squares(results) == EXPECTED
        assert len({result[1] for result in results.values()}) == 2

    def test_it_may_be_used_as_any_executor(self, client: Any) -> None:
        with client.get_executor() as executor:
            assert squares(ran(Squares(), executor=executor, workers=2)) == EXPECTED
        client.run(forget_all)  # what a worker loaded from a file stays until the next campaign

    def test_a_network_gives_the_same_bits_there(self, client: Any) -> None:
        torch.manual_seed(0)
        job = Network(trace(resnet20()))
        assert ran(job, executor=client) == ran(job)

    def test_what_a_block_raises_is_raised(self, client: Any) -> None:
        with pytest.raises(ValueError, match="no square of 2"):
            ran(Squares(refused=2), executor=client)

    def test_a_worker_that_is_killed_loses_no_block(self, client: Any, tmp_path: Path) -> None:
        results = ran(Squares(deadly=3, marker=str(tmp_path / "died")), executor=client)
        assert (tmp_path / "died").exists()
        assert squares(results) == EXPECTED

    def test_a_restart_of_the_cluster_loses_no_block(self, client: Any) -> None:
        with workers_for(Squares(slow=frozenset(range(8))), executor=client) as workers:
            results = completed(workers, iter(range(8)))
            first = dict([next(results)])
            client.restart()
            assert squares(first | dict(results)) == EXPECTED


def left_in_process() -> tuple[int, int]:
    return len(payload._sent), len(payload._loaded)


def forget_all() -> None:
    payload._loaded.clear()
