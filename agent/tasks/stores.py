"""The store that each task works with: the configured one, or one that the task names.

A task's token is kept in memory only, until the task ends. The journal gets the task without it. So
a task that brought a token fails with `token_lost` after a restart of the agent.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import SecretStr

from agent.errors import TokenLost
from agent.model import Task, TaskStore
from agent.operations.resources import BackupResources
from agent.store.policy import StorageRules

Build = Callable[[TaskStore], BackupResources]


def without_token(task: Task) -> Task:
    """Return the task without its token, which may not be written to a file."""
    if task.named_store is None or task.named_store.token is None:
        return task
    bare = task.named_store.model_copy(update={"token": None})
    return task.model_copy(update={"store": bare})


class StorePlace(NamedTuple):
    """The container of a task, and the account that it names.

    `account` is None for the configured account.
    """

    container: str
    account: str | None


class TaskStores:
    """The resources of each task, and the tokens of unfinished tasks.

    It holds at most one token for each unfinished task of the journal. Methods may be called from
    any thread.
    """

    def __init__(self, resources: BackupResources, rules: StorageRules, build: Build) -> None:
        """`build` makes the resources of a task that names a store."""
        self._resources = resources
        self._rules = rules
        self._build = build
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, SecretStr]] = {}
        self._open: list[BackupResources] = []

    def place_of(self, task: Task) -> StorePlace:
        """Return the container and the account in which a task's backups are."""
        asked = task.named_store or TaskStore()
        return StorePlace(asked.container or self._rules.configured, asked.account)

    def check_place(self, task: Task) -> None:
        """Raise StorageRefused if the task names a store that this agent may not use."""
        asked = task.named_store
        if asked is not None:
            self._rules.check(asked)

    def keep(self, task: Task) -> bool:
        """Keep the task's token, if it has one. Return True if it is the first.

        It replaces an earlier token for the same account. So a client can give a waiting task a
        fresh token by sending the task again.
        """
        asked = task.named_store
        if asked is None or asked.token is None or asked.account is None:
            return False
        with self._lock:
            there = self._tokens.get(task.task_id)
            if there is None or there[0] == asked.account:
                self._tokens[task.task_id] = (asked.account, asked.token)
        return there is None

    def forget(self, task_id: str) -> None:
        """Drop the token of a task that has ended or was not accepted."""
        with self._lock:
            self._tokens.pop(task_id, None)

    @contextmanager
    def resources(self, task: Task) -> Iterator[BackupResources]:
        """Yield the task's resources. Close them after the block if they are its own.

        Raises:
            TokenLost: the task needs a token, which was lost in a restart.
        """
        asked = task.named_store
        if asked is None or (asked.container is None and asked.account is None):
            yield self._resources
            return
        if asked.account is not None:
            token = self._token(task.task_id, asked.account)
            if token is None:
                raise _lost(task)
            asked = asked.model_copy(update={"token": token})
        built = self._build(asked)
        with self._lock:
            self._open.append(built)
        try:
            yield built
        finally:
            with self._lock:
                self._open.remove(built)
            built.store.close()

    def token_lost(self, task: Task) -> TokenLost | None:
        """Return the error of a task that needs a token and has lost it, None for other tasks."""
        asked = task.named_store
        if asked is None or asked.account is None:
            return None
        return None if self._token(task.task_id, asked.account) else _lost(task)

    def abort(self) -> None:
        """Let no request to any store be retried."""
        with self._lock:
            stores = [self._resources.store, *(resources.store for resources in self._open)]
        for store in stores:
            store.abort()

    def _token(self, task_id: str, account: str) -> SecretStr | None:
        with self._lock:
            there, token = self._tokens.get(task_id, ("", None))
        return token if there == account else None


def _lost(task: Task) -> TokenLost:
    return TokenLost(
        f"the token that came with the task {task.task_id} was lost when the agent restarted"
    )
