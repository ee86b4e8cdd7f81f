"""Tests of the small parts of the data path, which stop it, slow it down and count."""

import threading
import time

import pytest

from agent.errors import Cancelled, Interrupted, StoreFull
from agent.pipeline import meter as meter_module, rate_limit as rate_limit_module
from agent.pipeline.buffers import Pool
from agent.pipeline.meter import Meter
from agent.pipeline.rate_limit import RateLimit
from agent.stop import Stop

pytestmark = pytest.mark.timeout(30)


class Clock(Stop):
    """A stop with a clock of its own. Its waits take no time and move this clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 1000.0
        for module in (rate_limit_module, meter_module):
            monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds


def test_the_first_cause_stays() -> None:
    stop, first = Stop(), StoreFull("quota")
    stop.check()
    stop.request(first)
    stop.request(Cancelled("too late"))
    assert stop.cause is first
    with pytest.raises(StoreFull) as raised:
        stop.check()
    assert raised.value is first


def test_on_stop_acts_once_inside_its_block_and_never_after_it() -> None:
    stop, calls = Stop(), list[str]()
    with stop.on_stop(lambda: calls.append("gone")):
        pass
    with stop.on_stop(lambda: calls.append("there")):
        stop.request(Cancelled("now"))
        stop.request(Cancelled("again"))
        assert calls == ["there"]
    with stop.on_stop(lambda: calls.append("late")):
        assert calls == ["there", "late"]


def test_an_action_that_fails_does_not_keep_the_others_from_acting() -> None:
    stop, calls = Stop(), list[str]()

    def broken() -> None:
        raise PermissionError("not ours to kill")

    with (
        stop.on_stop(lambda: calls.append("first")),
        stop.on_stop(broken),
        stop.on_stop(lambda: calls.append("last")),
        pytest.raises(PermissionError),
    ):
        stop.request(Cancelled("now"))
    assert sorted(calls) == ["first", "last"]


def test_a_guard_keeps_what_was_raised() -> None:
    stop = Stop()
    with stop.guard():
        raise KeyboardInterrupt
    assert isinstance(stop.cause, KeyboardInterrupt)


def test_wait_ends_at_once_on_a_stop() -> None:
    stop = Stop()
    requester = threading.Thread(target=stop.request, args=(Interrupted("the agent ends"),))
    started = time.monotonic()
    requester.start()
    with pytest.raises(Interrupted):
        stop.wait(20)
    requester.join()
    assert time.monotonic() - started < 2


def test_an_interrupted_join_still_waits_for_the_thread() -> None:
    ended = threading.Event()

    class Interrupting(threading.Thread):
        joins = 0

        def join(self, timeout: float | None = None) -> None:
            self.joins += 1
            if self.joins == 1:
                raise KeyboardInterrupt
            super().join(timeout)

    stop = Stop()
    thread = Interrupting(target=lambda: ended.wait(20))
    thread.start()
    with stop.on_stop(ended.set):
        stop.join(thread)
    assert not thread.is_alive()
    assert isinstance(stop.cause, KeyboardInterrupt)


def test_a_stop_releases_whoever_waits_for_a_buffer() -> None:
    stop = Stop()
    pool = Pool(1, 10, stop)
    pool.take()
    raised: list[BaseException] = []

    def take() -> None:
        try:
            pool.take()
        except Cancelled as error:
            raised.append(error)

    takers = [threading.Thread(target=take) for _ in range(3)]
    for taker in takers:
        taker.start()
    stop.request(Cancelled("now"))
    for taker in takers:
        taker.join(10)
    assert raised == [stop.cause] * 3


def test_a_rate_limit_keeps_the_mean_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    rate_limit = RateLimit(1000, clock)
    for _ in range(500):
        rate_limit.spend(7)
        clock.now += 0.001  # The work itself also takes time.
    assert clock.now - 1000 == pytest.approx(3.5, abs=0.02)


def test_a_rate_limit_has_no_credit_from_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    rate_limit = RateLimit(1000, clock)
    clock.now += 3600
    began = clock.now
    rate_limit.spend(2000)
    assert clock.now - began == pytest.approx(2, abs=0.26)


def test_a_rate_limit_without_a_rate_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    RateLimit(None, clock).spend(1 << 60)
    assert clock.now == 1000


def test_a_rate_limit_takes_real_time() -> None:
    started = time.monotonic()
    rate_limit = RateLimit(10_000, Stop())
    for _ in range(20):
        rate_limit.spend(200)
    assert 0.3 < time.monotonic() - started < 2


def test_progress_estimates_from_the_expected_size(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(1000)
    meter.add(raw=250, compressed=100, stored=90)
    clock.now += 5
    progress = meter.progress()
    assert progress.raw_bytes == 250
    assert progress.stored_bytes == 90
    assert progress.bytes_per_second == 50
    assert progress.percent == 25
    assert progress.seconds_left == 15


def test_progress_never_claims_to_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter(1000)
    assert meter.progress().seconds_left is None
    meter.add(raw=5000)
    clock.now += 1
    assert meter.progress().percent == 99.9
    assert meter.progress().seconds_left == 0


def test_progress_without_an_expected_size_guesses_nothing() -> None:
    progress = Meter().progress()
    assert progress.percent is None
    assert progress.seconds_left is None


def test_the_bottleneck_is_the_stage_that_was_waited_for_most() -> None:
    meter = Meter()
    assert meter.measured().bottleneck == "none"
    for _ in range(3):
        meter.add_wait("store", 1)
    meter.add_wait("engine", 2)
    assert meter.measured().bottleneck == "store"
