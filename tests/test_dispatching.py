"""A pool that forgets what it was given, without a word."""

from concurrent.futures import Future

import pytest

from fitact_fx.campaigns import dispatching
from fitact_fx.campaigns.dispatching import Dispatcher


class Forgetful:
    """Loses each block the first time, or is asked in vain what it has lost."""

    remedy, slots = "", 2

    def __init__(self, told):
        self.given, self.told = [], told

    def submit(self, block, attempt):
        future = Future()
        if block in self.given:
            future.set_result(block * block)
        self.given.append(block)
        return future

    def has_lost_all(self):
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def renew(self, error):
        pass

    def close(self, *, busy):
        pass


def test_blocks_that_a_pool_has_forgotten_are_handed_out_again(monkeypatch):
    monkeypatch.setattr(dispatching, "_SILENCE", 0.01)
    pool = Forgetful(told=True)
    dispatcher = Dispatcher(pool)
    outcomes = [dispatcher.submit(block) for block in range(4)]
    assert [each.result(timeout=20) for each in outcomes] == [0, 1, 4, 9]
    dispatcher.close()


def test_a_pool_that_cannot_be_asked_is_told_to_whoever_waits(monkeypatch):
    monkeypatch.setattr(dispatching, "_SILENCE", 0.01)
    dispatcher = Dispatcher(Forgetful(told=OSError("the scheduler is gone")))
    with pytest.raises(OSError, match="the scheduler is gone"):
        dispatcher.submit(3).result(timeout=20)
    dispatcher.close()
