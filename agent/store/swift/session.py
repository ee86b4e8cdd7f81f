"""One authenticated conversation with Swift: connections, token, retries, deadlines.

What is said in it is swift.py's business. swiftclient's own retries aren't used, because
they know neither our errors nor how to send the same slabs again.
"""

import copy
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self, TypeVar

import requests
from swiftclient import client
from swiftclient.exceptions import ClientException

from agent.errors import StoreError, TokenExpired
from agent.store.protocol import Interruption, Uninterrupted
from agent.store.swift.connection import CONNECT_SECONDS, Connection
from agent.store.swift.deadlines import Deadlines
from agent.store.swift.errors import asked_seconds, pause_seconds, translated
from agent.store.swift.login import Access, Authenticate

log = logging.getLogger(__name__)

T = TypeVar("T")
# Bytes per second below which a transfer is as good as none: a segment of 16 MiB has 256 s
# beside the time that every request has.
LEAST_RATE: Final = 64 << 10


class Link(NamedTuple):
    """What one request needs: arguments for swiftclient's functions."""

    url: str
    token: str
    http: Any


class _RefusedLogin(NamedTuple):
    """A login that failed, and until when (monotonic seconds) there is to be no other."""

    error: StoreError
    until: float

    def again(self) -> StoreError:
        """The error for another thread, which pauses for the rest of the time."""
        error = type(self.error)(self.error.message, hint=self.error.hint)
        rest = math.ceil(max(self.until - time.monotonic(), 0.0))
        error.__cause__ = ClientException(
            "log in", http_response_headers={"Retry-After": str(rest)}
        )
        return error


@dataclass
class _Shared:
    """What all views of a session have in common; `turn` guards it."""

    turn: threading.Condition = field(default_factory=threading.Condition)
    deadlines: Deadlines = field(default_factory=Deadlines)
    idle: list[Connection] = field(default_factory=list)
    access: Access | None = None
    logging_in: bool = False
    refused: _RefusedLogin | None = None
    aborted: bool = False


def _without_bodies(record: logging.LogRecord) -> bool:
    """swiftclient would log what a store answers, which may be what it was sent: the token."""
    return not str(record.msg).startswith("RESP BODY")


class SwiftSession:
    """Requests of any number of threads, each on a kept connection, with one shared token."""

    def __init__(
        self,
        authenticate: Authenticate,
        *,
        timeout_seconds: float,
        attempts: int,
        backoff_seconds: float,
        ca_file: str | None,
    ) -> None:
        self._authenticate = authenticate
        self._timeout = timeout_seconds
        self._attempts = attempts
        self._backoff = backoff_seconds
        self._ca_file = ca_file
        self._stop: Interruption = Uninterrupted()
        self._shared = _Shared()
        # by default swiftclient's debug log shows the first 16 characters of a token
        client.logger_settings["reveal_sensitive_prefix"] = 0
        client.logger.addFilter(_without_bodies)

    def bound(self, stop: Interruption) -> Self:
        """The same session, whose calls raise the cause of `stop` as soon as there is one."""
        view = copy.copy(self)
        view._stop = stop
        return view

    def call(
        self,
        what: str,
        action: Callable[[Link], T],
        meanings: Mapping[int, type[StoreError]] | None = None,
        *,
        size: int = 0,
    ) -> T:
        """Do `action`, which moves about `size` bytes, again where that may help.

        Raises nothing but StoreErrors, and the cause of the stop that it is bound to.
        """
        attempt, without_effect = 1, True
        while True:
            self._stop.check()
            try:
                with translated(what, meanings):
                    return self._authorised(action, size)
            except StoreError as error:
                without_effect &= error.without_effect
                error.without_effect = without_effect
                self._stop.check()
                if not error.retryable or attempt >= self._attempts:
                    raise
                seconds = pause_seconds(attempt, self._backoff, error)
                log.info("%s; again in %.1f s (attempt %d)", error, seconds, attempt + 1)
                if self._aborted_within(seconds):
                    raise
            attempt += 1

    def abort(self) -> None:
        """End all waits between attempts, and repeat nothing from now on."""
        self._shared.aborted = True
        self._wake()

    def close(self) -> None:
        """Close the kept connections."""
        while line := self._take():
            line.close()

    def _authorised(self, action: Callable[[Link], T], size: int) -> T:
        access = self._current_access()
        try:
            return self._exchange(access, action, size)
        except ClientException as error:
            if error.http_status != 401:
                raise
            self._refused(access, answered=True)
        except requests.exceptions.ConnectionError:
            self._stop.check()
            # a store that refuses the token may hang up while the body is still being sent,
            # so that its 401 is lost: the next attempt had better bring another token
            if access.renewable:
                self._forget(access)
            elif self._refuses(access):
                self._refused(access)
            raise
        return self._exchange(self._current_access(), action, size)

    def _refused(self, access: Access, *, answered: bool = False) -> None:
        """Have the next request log in; TokenExpired where there is no way to.

        `answered`: the store has said so to the request itself.
        """
        if not access.renewable:
            expired = TokenExpired("the store refuses the token that came with the task")
            expired.without_effect = answered
            raise expired from None
        self._forget(access)

    def _refuses(self, access: Access) -> bool:
        """Whether the store says of the token itself that it is no good."""

        def ask(link: Link) -> None:
            client.head_account(link.url, link.token, http_conn=link.http)

        try:
            with translated("ask whether the token is good", {401: TokenExpired}):
                self._exchange(access, ask, 0)
        except StoreError as error:
            return isinstance(error, TokenExpired)
        return False

    def _current_access(self) -> Access:
        """The token; whoever finds none logs in, and the others wait for that.

        They share what comes of it, and nobody logs in before the store's Retry-After is over.
        """
        shared = self._shared
        with self._stop.on_stop(self._wake), shared.turn:
            waited = shared.logging_in
            shared.turn.wait_for(self._may_go_on)
            if shared.access is not None:
                return shared.access
            if shared.refused and (waited or time.monotonic() < shared.refused.until):
                raise shared.refused.again()
            shared.logging_in, shared.refused = True, None
        access, refused = None, None
        try:
            with translated("log in to the store"):
                access = self._authenticate(self._connected)
        except StoreError as error:
            # a login that was stopped says nothing to threads that weren't
            self._stop.check()
            refused = _RefusedLogin(error, time.monotonic() + asked_seconds(error))
            raise
        finally:
            with shared.turn:
                shared.logging_in, shared.access, shared.refused = False, access, refused
                shared.turn.notify_all()
        return access

    def _may_go_on(self) -> bool:
        self._stop.check()
        return not self._shared.logging_in

    def _forget(self, refused: Access) -> None:
        """Authenticate anew next time, unless another thread has already done so."""
        with self._shared.turn:
            if self._shared.access is refused:
                self._shared.access = None

    def _aborted_within(self, seconds: float) -> bool:
        """Wait that long; True as soon as `abort` was called."""

        def ended() -> bool:
            self._stop.check()
            return self._shared.aborted

        with self._stop.on_stop(self._wake), self._shared.turn:
            return self._shared.turn.wait_for(ended, seconds)

    def _wake(self) -> None:
        with self._shared.turn:
            self._shared.turn.notify_all()

    def _exchange(self, access: Access, action: Callable[[Link], T], size: int) -> T:
        line = self._take()
        if line is not None and line.url != access.storage_url:
            line.close()
            line = None
        line = line or self._line(access.storage_url)
        with ExitStack() as stack:
            # after a failure a rest of the answer may be on its way
            stack.callback(line.close)
            with self._in_time(line, size):
                link = Link(access.storage_url, access.token, (line.http.parsed_url, line.http))
                result = action(link)
            if not line.is_cut:
                stack.pop_all()
                self._shared.idle.append(line)
        return result

    @contextmanager
    def _connected(self, url: str) -> Iterator[Any]:
        """A connection for one small request."""
        line = self._line(url)
        try:
            with self._in_time(line, 0):
                yield line.http
        finally:
            line.close()

    @contextmanager
    def _in_time(self, line: Connection, size: int) -> Iterator[None]:
        """Cut what is done on the line on a stop, and when it takes too long: TimeoutError."""
        connect = min(self._timeout, CONNECT_SECONDS)
        seconds = connect + self._timeout + size / LEAST_RATE
        late = threading.Event()

        def expire() -> None:
            late.set()
            cut()

        with (
            line.busy() as cut,
            self._stop.on_stop(cut),
            self._shared.deadlines.after(seconds, expire),
        ):
            try:
                yield
            finally:
                if late.is_set():
                    raise TimeoutError(f"not done within {seconds:.0f} s")
        if line.is_cut:
            # what looks like an end may be the cut
            self._stop.check()

    def _take(self) -> Connection | None:
        with self._shared.turn:
            return self._shared.idle.pop() if self._shared.idle else None

    def _line(self, url: str) -> Connection:
        return Connection(url, timeout_seconds=self._timeout, ca_file=self._ca_file)
