"""Tests of stores that tasks name, of refused ones, and of the places that hold a token."""

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from pydantic import SecretStr

from agent import wiring
from agent.broker.intake import ACK
from agent.config.reading import load
from agent.errors import ConfigInvalid, JournalFull, StorageRefused, TokenLost
from agent.journal import Journal
from agent.model import DeleteTask, PingTask, ReportDraft, TaskStatus, TaskStore
from agent.operations.resources import BackupResources
from agent.store.policy import StorageRules, parse_url
from agent.tasks.executor import Executor
from agent.tasks.stores import TaskStores, without_token
from agent.tasks.worker import Worker
from tests.stack.agent import write_private

URL = "https://swift.example.com:8080/v1/AUTH_one"
TOKEN = "gAAAAABf-a-token"
RULES = StorageRules(configured="vault", own="database_backups_t1", urls=(URL,))
CONFIG = f"""\
[agent]
instance_id = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
tenant_id = "t1"
state_folder = "state"
[store]
url = "swift:https://swift.example.com/auth/v1.0"
user = "test:tester"
key_file = "store-key"
storage_urls = ["{URL}"]
[keys]
folder = "keys"
active = "k1"
"""


def login(url: str = URL, token: str = TOKEN, container: str | None = None) -> TaskStore:
    return TaskStore(container=container, storage_url=url, token=SecretStr(token))


def task(store: TaskStore | None, task_id: str | None = None) -> DeleteTask:
    return DeleteTask(task_id=task_id or str(uuid4()), backup_id=str(uuid4()), store=store)


@pytest.mark.parametrize(
    "container", ["vault", "database_backups_t1", "database_backups_t1_a", "database_backups_t1_"]
)
def test_a_container_of_the_tenant_is_taken(container: str) -> None:
    RULES.check(TaskStore(container=container))


@pytest.mark.parametrize(
    "container",
    [
        "database_backups_t2",
        "database_backups_t12",
        "database_backups_",
        "database_backups_t1.x",
        "database_backups_t1_segments",
        "database_backups_t1_a_segments",
        "vault_segments",
        "vault_a",
        "Vault",
        "..",
    ],
)
def test_any_other_container_is_refused(container: str) -> None:
    with pytest.raises(StorageRefused, match="this agent's tasks may not name the container"):
        RULES.check(TaskStore(container=container))


def test_the_configured_container_is_one_place_named_or_not() -> None:
    stores = TaskStores(cast(BackupResources, None), RULES, lambda _asked: pytest.fail("built"))
    bare = stores.place_of(task(None))
    assert bare == stores.place_of(task(TaskStore(container="vault")))
    assert bare != stores.place_of(task(TaskStore(container="database_backups_t1")))
    assert bare != stores.place_of(task(login()))
    assert stores.place_of(task(login())) == stores.place_of(task(login(container="vault")))


@pytest.mark.parametrize(
    "url",
    [URL, f"{URL}/", f"{URL}/deeper/still", URL.replace("swift.example", "SWIFT.Example")],
)
def test_an_allowed_url_is_taken_and_what_lies_below_it(url: str) -> None:
    RULES.check(login(url))


@pytest.mark.parametrize(
    "url",
    [
        f"{URL}x",
        "https://swift.example.com:8080/v1",
        "https://swift.example.com:8080/",
        URL.replace(":8080", ""),
        URL.replace(":8080", ":8081"),
        URL.replace("https", "http"),
        URL.replace("swift.", "swift.example.com."),
        URL.replace("AUTH_one", "auth_one"),
        f"{URL}/../AUTH_two",
        f"{URL}/./a",
        f"{URL}/%2e%2e/AUTH_two",
        f"{URL}//a",
        f"{URL}?a=b",
        f"{URL}#a",
        f"{URL}\\a",
        f"{URL};a",
        f"{URL}\n",
        f"{URL}/\u0661",
        "https://swift.example.com:8080@evil.example/v1/AUTH_one",
        "https://user:word@swift.example.com:8080/v1/AUTH_one",
        "https://swift.example.com:65536/v1/AUTH_one",
        "https://swift.example.com:\u0668080/v1/AUTH_one",
        "HTTPS://swift.example.com:8080/v1/AUTH_one",
        "file:///etc",
        "",
    ],
)
def test_any_other_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(StorageRefused) as caught:
        RULES.check(TaskStore.model_construct(storage_url=url, token=SecretStr(TOKEN)))
    assert not url or url not in str(caught.value)


def test_the_usual_port_may_be_named_or_not() -> None:
    assert parse_url("https://a.example/v1") == parse_url("https://a.example:443/v1/")
    assert parse_url("http://a.example/v1") == parse_url("http://a.example:80/v1")
    assert parse_url("http://[::1]:8080/v1").host == "[::1]"


def test_a_folder_takes_no_storage_url() -> None:
    rules = StorageRules(configured="vault", own="database_backups_t1", urls=(URL,), tokens=False)
    rules.check(TaskStore(container="vault"))
    with pytest.raises(StorageRefused, match="accepts no token"):
        rules.check(login())


def test_a_project_is_the_tenant_or_a_listed_one_and_only_behind_keystone() -> None:
    def named(project: str) -> TaskStore:
        return TaskStore(project_id=project, token=SecretStr(TOKEN))

    rules = StorageRules(
        configured="vault", own="database_backups_t1", projects=frozenset({"t1", "extra"})
    )
    rules.check(named("t1"))
    rules.check(named("extra"))
    for project in ("t2", "T1", "t1.", "extra2"):
        with pytest.raises(StorageRefused, match=f"may not name the project {project}"):
            rules.check(named(project))
    with pytest.raises(StorageRefused, match="not behind Keystone"):
        RULES.check(named("t1"))
    with pytest.raises(StorageRefused, match="accepts no token"):
        StorageRules(configured="vault", own="o", tokens=False).check(named("t1"))


@pytest.mark.parametrize(
    "url", ["https://a/%41", "https://a/b?c", "https://a/../b", "https://a:0/b"]
)
def test_a_configured_url_that_could_be_read_in_two_ways_is_refused(home: Path, url: str) -> None:
    (home / "agent.toml").write_text(CONFIG.replace(URL, url))
    with pytest.raises(ConfigInvalid, match="storage_urls"):
        load(home / "agent.toml")


# --- tokens --------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir(mode=0o700)
    key = base64.b64encode(secrets.token_bytes(32)).decode()
    write_private(tmp_path / "keys" / "k1.key", key)
    write_private(tmp_path / "store-key", "word")
    (tmp_path / "agent.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def stores(home: Path) -> TaskStores:
    config = load(home / "agent.toml")
    return wiring.task_stores(config, wiring.backup_resources(config))


def test_a_task_without_a_store_works_with_the_configured_one(stores: TaskStores) -> None:
    with (
        stores.resources(PingTask(task_id=str(uuid4()))) as usual,
        stores.resources(task(None)) as same,
    ):
        assert same is usual
    with stores.resources(task(TaskStore())) as same:
        assert same is usual


def test_a_container_of_its_own_gets_a_store_of_its_own(stores: TaskStores) -> None:
    asked = TaskStore(container="database_backups_t1_a")
    with stores.resources(task(None)) as usual, stores.resources(task(asked)) as own:
        assert own.store is not usual.store
        assert own.keyring is usual.keyring


def test_a_token_opens_its_own_url_until_the_task_ends(stores: TaskStores) -> None:
    one = task(login(container="database_backups_t1_a"))
    assert stores.keep(one)
    bare = without_token(one)
    assert not stores.token_lost(bare)
    with stores.resources(bare) as parts:
        assert parts.store.location == f"{URL}/database_backups_t1_a"
    stores.forget(one.task_id)
    with pytest.raises(TokenLost), stores.resources(bare):
        pass
    assert isinstance(stores.token_lost(bare), TokenLost)


def test_the_configured_login_never_stands_in_for_a_lost_token(stores: TaskStores) -> None:
    with pytest.raises(TokenLost), stores.resources(without_token(task(login()))):
        pass


def test_a_fresh_token_replaces_one_for_the_same_url_only(stores: TaskStores) -> None:
    one = task(login())
    assert stores.keep(one)
    assert not stores.keep(task(login(token="fresh"), one.task_id))
    assert not stores.keep(task(login(f"{URL}/x", "other"), one.task_id))
    assert stores._token(one.task_id, URL) == SecretStr("fresh")


def test_a_token_shows_nowhere(stores: TaskStores) -> None:
    one = task(login())
    stores.keep(one)
    with stores.resources(one) as parts:
        seen = [repr(one), str(one), repr(vars(stores)), repr(parts), repr(vars(parts.store))]
    assert TOKEN not in "".join([*seen, one.model_dump_json()])


# --- incoming messages ----------------------------------------------------------------------


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite", str(uuid4()), str(uuid4()), max_tasks=1)
    yield opened
    opened.close()


@pytest.fixture
def runner(home: Path, stores: TaskStores, journal: Journal) -> Worker:
    """Return a worker that is not started."""
    parts = wiring.backup_resources(load(home / "agent.toml"))
    performer = Executor(journal, stores, restore_roots=(), progress_seconds=1, wake=lambda: None)
    return Worker(journal, parts, stores, performer, wake=lambda: None)


def message(task_id: str, store: str = f'{{"storage_url": "{URL}", "token": "{TOKEN}"}}') -> bytes:
    fields = f'"task_id": "{task_id}", "type": "backup.delete", "backup_id": "{uuid4()}"'
    return f'{{"version": 1, {fields}, "store": {store}}}'.encode()


def test_a_token_is_kept_in_memory_and_not_in_the_journal(
    runner: Worker, stores: TaskStores, journal: Journal, home: Path
) -> None:
    task_id = str(uuid4())
    assert runner.on_message(message(task_id)) == ACK
    assert journal.status(task_id) is TaskStatus.ACCEPTED
    assert stores._token(task_id, URL) == SecretStr(TOKEN)
    claimed = journal.claim()
    assert isinstance(claimed, DeleteTask)
    assert claimed.store == TaskStore(storage_url=URL)
    files = list(home.glob("journal.sqlite*"))
    assert files
    assert not any(TOKEN.encode() in path.read_bytes() for path in files)


def test_a_store_that_is_refused_ends_the_task_and_is_answered_again(
    runner: Worker, stores: TaskStores, journal: Journal
) -> None:
    task_id = str(uuid4())
    body = message(task_id, f'{{"storage_url": "{URL}x", "token": "{TOKEN}"}}')
    for _ in range(2):
        assert runner.on_message(body) == ACK
        (report,) = journal.take_reports()
        assert report.status is TaskStatus.FAILED
        assert report.error is not None
        assert report.error.code == StorageRefused.code
    assert journal.claim() is None
    assert not stores._tokens


def test_a_task_that_is_not_taken_leaves_no_token(
    runner: Worker, stores: TaskStores, journal: Journal
) -> None:
    waiting, other = str(uuid4()), str(uuid4())
    runner.on_message(message(waiting))
    with pytest.raises(JournalFull):
        runner.on_message(message(other))
    assert list(stores._tokens) == [waiting]


def test_a_task_that_ended_keeps_no_token_when_it_comes_again(
    runner: Worker, stores: TaskStores, journal: Journal
) -> None:
    task_id = str(uuid4())
    runner.on_message(message(task_id))
    stores.forget(task_id)
    journal.report(ReportDraft(task_id=task_id, type="backup.delete", status=TaskStatus.DONE))
    runner.on_message(message(task_id))
    assert not stores._tokens
    with journal._file.transaction() as db:
        # 10,000 ended tasks are remembered. Nothing needs their bodies.
        assert db.execute("SELECT body FROM tasks").fetchall() == [("",)]


def test_what_names_a_known_task_says_nothing_false_about_it(
    runner: Worker, journal: Journal
) -> None:
    task_id = str(uuid4())
    runner.on_message(message(task_id, "null"))
    journal.take_reports()
    assert runner.on_message(message(task_id, "7")).action == "dead"
    (report,) = journal.take_reports()
    assert report.status is TaskStatus.ACCEPTED


def test_a_cancelled_task_leaves_no_token(
    runner: Worker, stores: TaskStores, journal: Journal
) -> None:
    task_id = str(uuid4())
    journal._max_tasks = 2
    runner.on_message(message(task_id))
    cancel = f'{{"version": 1, "task_id": "{uuid4()}", "type": "task.cancel"'
    runner.on_message(f'{cancel}, "cancels": "{task_id}"}}'.encode())
    assert journal.status(task_id) is TaskStatus.CANCELLED
    assert not stores._tokens
