"""One authenticated session with Swift, with its connections, token, retries and deadlines.

store.py and its helpers make the requests. swiftclient's own retries aren't used, because they
don't know the agent's errors and can't send the same slabs again.
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

from agent.errors import (
    LoginDenied,
    LoginRejected,
    StoreBusy,
    StoreError,
    StoreRejected,
    TokenExpired,
    TokenRefused,
)
from agent.store.protocol import Interruption, Uninterrupted
from agent.store.swift.connection import CONNECT_SECONDS, Connection
from agent.store.swift.deadlines import Deadlines
from agent.store.swift.errors import asked_seconds, pause_seconds, translated
from agent.store.swift.login import Access, Authenticate, Connect

log = logging.getLogger(__name__)

T = TypeVar("T")
# In bytes per second. A slower transfer counts as failed. A segment of 16 MiB gets 256 s in
# addition to the time that every request gets.
LEAST_RATE: Final = 64 << 10
# A token is renewed when this part of its lifetime is left, or this number of seconds, if that is
# less. Requests go on with it meanwhile, and a busy login may be tried again.
_RENEWAL_PART: Final = 1 / 8
_RENEWAL_SECONDS: Final = 60.0
# Seconds between two renewals, at least, if one fails.
_RENEWAL_PAUSE: Final = 1.0


# A refusal of the login, unlike one of a request, is about the user and the key.
_LOGIN_MEANINGS: Final[Mapping[int, type[StoreError]]] = {401: LoginDenied, 403: LoginDenied}


class Link(NamedTuple):
    """The arguments that swiftclient's functions need for one request."""

    url: str
    token: str
    http: Any


class _RefusedLogin(NamedTuple):
    """A failed login, after which no thread may log in before `until` (monotonic seconds)."""

    error: StoreError
    until: float

    def for_another_thread(self) -> StoreError:
        """Return a copy of the error for another thread, which pauses for the rest of the time."""
        error = type(self.error)(self.error.message, hint=self.error.hint)
        rest = math.ceil(max(self.until - time.monotonic(), 0.0))
        error.__cause__ = ClientException(
            "log in", http_response_headers={"Retry-After": str(rest)}
        )
        return error


@dataclass
class _Shared:
    """The state that all views of a session share. `turn` guards the login and the token.

    From `renew_at` on (monotonic seconds) one thread renews the token. From `void_at` on no request
    is sent with it. `logged_in` is True after the first login.
    """

    turn: threading.Condition = field(default_factory=threading.Condition)
    deadlines: Deadlines = field(default_factory=Deadlines)
    idle: list[Connection] = field(default_factory=list)
    access: Access | None = None
    renew_at: float = math.inf
    void_at: float = math.inf
    logging_in: bool = False
    logged_in: bool = False
    refused: _RefusedLogin | None = None
    aborted: bool = False


def _refused_again(access: Access) -> StoreError:
    """Return the error of a store that refuses (401) the tokens of a fresh login."""
    refused: StoreError
    if access.renewable:
        refused = TokenRefused("the store refuses (401) a token that it has just granted")
    else:
        refused = TokenExpired(
            "the store refuses (401) the user's token, also with a fresh service token",
            hint="the token was revoked, or ended longer ago than Keystone remembers "
            "(allow_expired_window, 48 h by default), or the service user has no role that Swift's "
            "service_token_roles lists",
        )
    refused.without_effect = True
    return refused


def _without_bodies(record: logging.LogRecord) -> bool:
    """Return False for a log record with the body of an answer.

    swiftclient would log the body, which has the token if the store sends it back.
    """
    return not str(record.msg).startswith("RESP BODY")


class SwiftSession:
    """A session for the requests of any number of threads.

    Each request has a connection of its own, which is kept for later ones. All share one token.
    """

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
        # By default, swiftclient's debug log shows the first 16 characters of a token.
        client.logger_settings["reveal_sensitive_prefix"] = 0
        client.logger.addFilter(_without_bodies)

    def bound(self, stop: Interruption) -> Self:
        """Return a view of this session with calls that raise the cause of `stop` on a stop.

        A call ends as soon as the stop is requested.
        """
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
        """Run `action`, and retry it after a retryable error.

        `action` moves about `size` bytes, which the deadline allows for. `what` names the action in
        messages, and `meanings` overrides the error class of a status.

        Raises:
            StoreError: the action failed. No other error is raised, except the cause of the stop
                that this session is bound to.
        """
        attempt, without_effect = 1, True
        while True:
            self._stop.check()
            try:
                began = time.monotonic()
                with translated(what, meanings):
                    result = self._authorised(action, size)
                log.debug("%s: done in %.3f s", what, time.monotonic() - began)
                return result
            except StoreError as error:
                without_effect &= error.without_effect
                error.without_effect = without_effect
                self._stop.check()
                if not error.retryable or attempt >= self._attempts:
                    raise
                seconds = pause_seconds(attempt, self._backoff, error)
                log.info("%s; retry in %.1f s (attempt %d)", error, seconds, attempt + 1)
                if self._aborted_within(seconds):
                    raise
            attempt += 1

    def ask(self, what: str, question: Callable[[Connect], T]) -> T:
        """Ask another service than the store one question, over connections as for a login.

        Raises:
            StoreError: it can't be asked, or it refuses the question.
        """
        with translated(what, _LOGIN_MEANINGS):
            return question(self._connected)

    def abort(self) -> None:
        """End all waits between attempts and stop all retries."""
        self._shared.aborted = True
        self._wake()

    def close(self) -> None:
        """Close the idle connections."""
        while connection := self._take_idle_connection():
            connection.close()

    def _authorised(self, action: Callable[[Link], T], size: int) -> T:
        access = self._current_access()
        try:
            return self._exchange(access, action, size)
        except ClientException as error:
            if error.http_status != 401:
                raise
            self._drop_refused(access, answered=True)
        except requests.exceptions.ConnectionError:
            self._stop.check()
            # A store that refuses the token may close the connection while the body is still being
            # sent. Its 401 is then lost. So the next attempt should use another token, unless it is
            # known when this one expires.
            if access.renewable and access.seconds is None:
                self._forget(access)
            elif self._ask_if_refused(access):
                self._drop_refused(access)
            raise
        try:
            return self._exchange(self._current_access(), action, size)
        except ClientException as error:
            if error.http_status != 401:
                raise
            raise _refused_again(access) from error

    def _drop_refused(self, access: Access, *, answered: bool = False) -> None:
        """Make the next request log in.

        `answered` is True if the store refused the token in its answer to the request itself.

        Raises:
            TokenExpired: no login is possible.
        """
        if not access.renewable and not access.service_token:
            expired = TokenExpired("the store refuses the token that came with the task")
            expired.without_effect = answered
            raise expired from None
        self._forget(access)

    def _ask_if_refused(self, access: Access) -> bool:
        """Ask the store about the token, and return True if it refuses the token."""

        def ask(link: Link) -> None:
            client.head_account(link.url, link.token, http_conn=link.http)

        try:
            with translated("check the token", {401: TokenExpired}):
                self._exchange(access, ask, 0)
        except StoreError as error:
            return isinstance(error, TokenExpired)
        return False

    def _current_access(self) -> Access:
        """Return the storage URL and the token, and log in first if there are none.

        One thread logs in and the other threads wait for the result. They share it, even if it is
        an error. No thread logs in before the store's Retry-After is over. While a token that
        expires soon is renewed, the other threads use it.
        """
        shared = self._shared
        with self._stop.on_stop(self._wake), shared.turn:
            waited = shared.logging_in
            shared.turn.wait_for(self._may_go_on)
            usable = self._usable_access()
            if usable and (shared.logging_in or time.monotonic() < shared.renew_at):
                return usable
            if shared.refused and (waited or time.monotonic() < shared.refused.until):
                raise shared.refused.for_another_thread()
            shared.logging_in, shared.refused = True, None
        return self._logged_in(usable)

    def _usable_access(self) -> Access | None:
        """Return the token if it has not expired. The caller holds `turn`."""
        return self._shared.access if time.monotonic() < self._shared.void_at else None

    def _logged_in(self, earlier: Access | None) -> Access:
        """Log in for all threads and return the result.

        If that fails, return `earlier`, which has not expired, and let a later request try again.
        """
        access, refused, begun = None, None, time.monotonic()
        try:
            access = self._log_in()
        except StoreError as error:
            # The error of a stopped login must not reach threads that were not stopped.
            self._stop.check()
            refused = _RefusedLogin(error, time.monotonic() + asked_seconds(error))
            if earlier is None:
                raise
            log.warning("the token can't be renewed, and is used until it expires: %s", error)
            return earlier
        finally:
            self._share(access, refused, begun)
        return access

    def _log_in(self) -> Access:
        """Log in once.

        Raises:
            LoginRejected: the answer is not one of a login. After an earlier login, StoreBusy is
                raised instead, because the URL is right.
        """
        try:
            with translated("log in to the store", _LOGIN_MEANINGS):
                return self._authenticate(self._connected)
        except StoreRejected as error:
            # Those who read many records skip one that the store rejects. This is about all.
            kind = StoreBusy if self._shared.logged_in else LoginRejected
            hint = error.hint if error.hint != StoreRejected.default_hint else None
            raise kind(error.message, hint=hint) from error

    def _share(self, access: Access | None, refused: _RefusedLogin | None, begun: float) -> None:
        """Give the result of a login, which began at `begun`, to all threads.

        If there is no other token, the earlier one stays.
        """
        shared = self._shared
        with shared.turn:
            shared.logging_in, shared.refused = False, refused
            now = time.monotonic()
            if access is not None:
                shared.access, shared.logged_in = access, True
                seconds = math.inf if access.seconds is None else access.seconds
                shared.void_at = begun + seconds
                early = min(seconds * _RENEWAL_PART, _RENEWAL_SECONDS)
                shared.renew_at = shared.void_at - early
            elif refused is not None:
                left = max(shared.void_at - now, 0.0)
                shared.renew_at = max(refused.until, now + left / 2, now + _RENEWAL_PAUSE)
            shared.turn.notify_all()

    def _may_go_on(self) -> bool:
        self._stop.check()
        return not self._shared.logging_in or self._usable_access() is not None

    def _forget(self, refused: Access) -> None:
        """Drop the token, so that the next request logs in.

        Do nothing if another thread has already replaced the token.
        """
        with self._shared.turn:
            if self._shared.access is refused:
                self._shared.access = None

    def _aborted_within(self, seconds: float) -> bool:
        """Wait for `seconds`, and return True as soon as `abort` is called."""

        def ended() -> bool:
            self._stop.check()
            return self._shared.aborted

        with self._stop.on_stop(self._wake), self._shared.turn:
            return self._shared.turn.wait_for(ended, seconds)

    def _wake(self) -> None:
        with self._shared.turn:
            self._shared.turn.notify_all()

    def _exchange(self, access: Access, action: Callable[[Link], T], size: int) -> T:
        connection = self._take_idle_connection()
        if connection is not None and connection.url != access.storage_url:
            connection.close()
            connection = None
        connection = connection or self._new_connection(access.storage_url)
        with ExitStack() as stack:
            # After a failure the rest of the answer may still arrive, so the connection is closed.
            stack.callback(connection.close)
            with self._within_deadline(connection, size):
                http = connection.http
                http.service_token = access.service_token
                link = Link(access.storage_url, access.token, (http.parsed_url, http))
                result = action(link)
            if not connection.is_shut_down:
                stack.pop_all()
                self._shared.idle.append(connection)
        return result

    @contextmanager
    def _connected(self, url: str) -> Iterator[Any]:
        """Yield a connection for one small request."""
        connection = self._new_connection(url)
        try:
            with self._within_deadline(connection, 0):
                yield connection.http
        finally:
            connection.close()

    @contextmanager
    def _within_deadline(self, connection: Connection, size: int) -> Iterator[None]:
        """Shut the connection down on a stop, and when the deadline of the block has passed.

        Raises:
            TimeoutError: the deadline has passed.
        """
        connect = min(self._timeout, CONNECT_SECONDS)
        seconds = connect + self._timeout + size / LEAST_RATE
        late = threading.Event()

        def expire() -> None:
            late.set()
            shut_down()

        with (
            connection.busy() as shut_down,
            self._stop.on_stop(shut_down),
            self._shared.deadlines.after(seconds, expire),
        ):
            try:
                yield
            finally:
                if late.is_set():
                    raise TimeoutError(f"not done within {seconds:.0f} s")
        if connection.is_shut_down:
            # The shutdown of the connection may look like a regular end of the answer.
            self._stop.check()

    def _take_idle_connection(self) -> Connection | None:
        with self._shared.turn:
            return self._shared.idle.pop() if self._shared.idle else None

    def _new_connection(self, url: str) -> Connection:
        return Connection(url, timeout_seconds=self._timeout, ca_file=self._ca_file)
