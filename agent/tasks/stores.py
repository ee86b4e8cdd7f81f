"""The store that each task works with: the configured one, or one that the task names.

A task's token is kept here and nowhere else, in memory, until the task ends: what the journal
is given has none. So a task that brought one ends as `token_lost` where it isn't here any more.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import SecretStr

from agent.errors import TokenLost
from agent.model import StoreTask, Task, TaskStore
from agent.operations.resources import BackupResources
from agent.store.policy import StorageRules

Build = Callable[[TaskStore], BackupResources]


def without_token(task: Task) -> Task:
    """The task as it may be written down."""
    if not isinstance(task, StoreTask) or task.store is None or task.store.token is None:
        return task
    bare = task.store.model_copy(update={"token": None})
    return task.model_copy(update={"store": bare})


class Place(NamedTuple):
    """What a task says of where its backups are: nothing, as a rule."""

    container: str | None
    storage_url: str | None


def place_of(task: StoreTask) -> Place:
    """Where the task's backups are."""
    asked = task.store or TaskStore()
    return Place(asked.container, asked.storage_url)


class TaskStores:
    """Gives each task its parts; `build` makes those of a task with a store of its own.

    Holds the tokens of tasks that are in the journal and have not ended, so at most as many as
    the journal holds. Methods may be called from any thread.
    """

    def __init__(self, resources: BackupResources, rules: StorageRules, build: Build) -> None:
        self._resources = resources
        self._rules = rules
        self._build = build
        self._lock = threading.Lock()
        self._tokens: dict[str, tuple[str, SecretStr]] = {}
        self._open: list[BackupResources] = []

    def admit(self, task: Task) -> None:
        """StorageRefused where the task names a store that isn't one for this agent."""
        if isinstance(task, StoreTask) and task.store is not None:
            self._rules.check(task.store)

    def keep(self, task: Task) -> bool:
        """Keep the task's token, if it has one; whether there was none before.

        It replaces an earlier one for the same URL, so that a task that waits can be given a
        fresh token by sending it once more.
        """
        asked = task.store if isinstance(task, StoreTask) else None
        if asked is None or asked.token is None or asked.storage_url is None:
            return False
        with self._lock:
            there = self._tokens.get(task.task_id)
            if there is None or there[0] == asked.storage_url:
                self._tokens[task.task_id] = (asked.storage_url, asked.token)
        return there is None

    def forget(self, task_id: str) -> None:
        """Drop the token of a task that has ended or was not taken."""
        with self._lock:
            self._tokens.pop(task_id, None)

    @contextmanager
    def resources(self, task: Task) -> Iterator[BackupResources]:
        """What the task is done with, while the block runs; TokenLost where its token is gone."""
        asked = task.store if isinstance(task, StoreTask) else None
        if asked is None or (asked.container is None and asked.storage_url is None):
            yield self._resources
            return
        if asked.storage_url is not None:
            token = self._token(task.task_id, asked.storage_url)
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

    def lost(self, task: Task) -> TokenLost | None:
        """What a task ends with whose token is not here, where it needs one."""
        asked = task.store if isinstance(task, StoreTask) else None
        if asked is None or asked.storage_url is None:
            return None
        return None if self._token(task.task_id, asked.storage_url) else _lost(task)

    def abort(self) -> None:
        """No request to any store is repeated from now on."""
        with self._lock:
            stores = [self._resources.store, *(resources.store for resources in self._open)]
        for store in stores:
            store.abort()

    def _token(self, task_id: str, storage_url: str) -> SecretStr | None:
        with self._lock:
            url, token = self._tokens.get(task_id, ("", None))
        return token if url == storage_url else None


def _lost(task: Task) -> TokenLost:
    return TokenLost(f"the token that came with the task {task.task_id} is not here any more")
