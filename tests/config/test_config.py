"""Tests of agent.toml, of its overrides and secrets, and of the messages about mistakes."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_origin

import pytest

from agent.config.reading import keys_folder, load
from agent.config.secrets import load_keyring, read_secret
from agent.config.settings import Config, KeysSection, need
from agent.errors import AgentError, ConfigInvalid, KeyUnusable
from agent.keys.master import key_text
from agent.keys.recovery import RecoverySecret
from tests.house.generate.configuration import sections
from tests.house.source import CHECKOUT

README = CHECKOUT / "README.md"
INSTANCE = "a17461ab-6c97-4abf-8890-9f8b10886ecc"
SECRET = "hunter2-hunter2"
WHOLE = f"""\
[agent]
instance_id = "{INSTANCE}"
tenant_id = "0cbb58a3a7fd4c1d89e4a5f3b8cc0c76"
state_folder = "/var/lib/agent"
restore_roots = ["/srv/restore", "more"]
progress_seconds = 2.5
[broker]
url = "amqps://agent@rabbit.example.com/backups"
password_file = "broker-password"
queue_type = "classic"
ca_file = "/etc/ssl/ca.pem"
[store]
url = "swift:https://swift.example.com/auth/v1.0"
user = "tenant:agent"
key_file = "store-key"
container = "backups"
ca_file = "ca.pem"
timeout_seconds = 30
attempts = 3
[database]
socket = "mysqld.sock"
user = "agent"
password_file = "database-password"
[engine]
program = "/usr/bin/mariadb-backup"
[keys]
folder = "keys"
active = "2026"
[pipeline]
memory_bytes = 67108864
segment_bytes = 8388608
connections = 2
cores = 1
level = 2
bytes_per_second = 52428800
"""
LEAST = f"""\
[agent]
instance_id = "{INSTANCE}"
tenant_id = "t"
"""


def _load(folder: Path, text: str, **environment: str) -> Config:
    path = folder / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return load(path, environment)


def test_a_whole_configuration(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE)
    assert config.agent.instance_id == INSTANCE
    assert config.agent.progress_seconds == 2.5
    broker = need(config.broker, "broker")
    assert (broker.queue_type, broker.ca_file) == ("classic", Path("/etc/ssl/ca.pem"))
    store = need(config.store, "store")
    assert (store.container, store.timeout_seconds, store.attempts) == ("backups", 30, 3)
    assert config.engine.program == "/usr/bin/mariadb-backup"
    assert config.pipeline.memory_bytes == 64 << 20
    assert config.pipeline.bytes_per_second == 50 << 20


def test_relative_paths_are_seen_from_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "agent.toml").write_text(WHOLE)
    monkeypatch.chdir(tmp_path)
    config = load(Path("agent.toml"), {})
    assert config.agent.restore_roots == (Path("/srv/restore"), tmp_path / "more")
    assert config.database.socket == tmp_path / "mysqld.sock"
    assert need(config.keys, "keys").folder == tmp_path / "keys"
    assert need(config.store, "store").key_file == tmp_path / "store-key"
    assert need(config.store, "store").ca_file == tmp_path / "ca.pem"
    assert need(config.broker, "broker").password_file == tmp_path / "broker-password"


def test_the_least_configuration_has_the_documented_defaults(tmp_path: Path) -> None:
    config = _load(tmp_path, LEAST)
    assert config.pipeline.memory_bytes == 128 << 20
    assert config.pipeline.segment_bytes == 16 << 20
    assert config.database.socket == Path("/run/mysqld/mysqld.sock")
    assert config.agent.restore_roots == ()
    assert config.broker is None
    with pytest.raises(ConfigInvalid, match=r"no section \[store\]"):
        need(config.store, "store")


def _readme_example() -> str:
    (example,) = re.findall(r"^```toml\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return str(example)


def test_the_example_in_the_readme_is_a_whole_configuration(tmp_path: Path) -> None:
    config = _load(tmp_path, _readme_example())
    assert need(config.keys, "keys").folder == tmp_path / "keys"
    assert need(config.broker, "broker").queue_type == "quorum"
    assert need(config.store, "store").container is None


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    config = _load(
        tmp_path,
        WHOLE,
        BACKUP_AGENT_PIPELINE__CONNECTIONS="7",
        BACKUP_AGENT_STORE__TIMEOUT_SECONDS="1.5",
        BACKUP_AGENT_KEYS__FOLDER="other-keys",
        BACKUP_AGENT_AGENT__RESTORE_ROOTS="/a:b:",
        BACKUP_AGENT="ignored",
        BACKUP_AGENT_VERSION="ignored",
        OTHER_AGENT__TENANT_ID="ignored",
    )
    assert config.pipeline.connections == 7
    assert config.pipeline.level == 2
    assert need(config.store, "store").timeout_seconds == 1.5
    assert need(config.keys, "keys").folder == tmp_path / "other-keys"
    assert config.agent.restore_roots == (Path("/a"), tmp_path / "b")


def test_the_environment_may_bring_a_whole_section(tmp_path: Path) -> None:
    config = _load(tmp_path, LEAST, BACKUP_AGENT_KEYS__FOLDER="/k", BACKUP_AGENT_KEYS__ACTIVE="one")
    assert config.keys == KeysSection(folder=Path("/k"), active="one")


def test_the_environment_may_list_recovery_keys(tmp_path: Path) -> None:
    config = _load(
        tmp_path, WHOLE, BACKUP_AGENT_KEYS__RECOVERY="one:two", BACKUP_AGENT_KEYS__ENCRYPT="false"
    )
    keys = need(config.keys, "keys")
    assert (keys.recovery, keys.encrypt, keys.allow_plaintext) == (("one", "two"), False, False)


LISTS = {
    ("agent", "restore_roots"): ("/a:/b", (Path("/a"), Path("/b"))),
    ("engine", "options"): ("--parallel=4 --rsync", None),
    ("engine", "uncopied_engines"): ("CONNECT:SPIDER", ("CONNECT", "SPIDER")),
    ("keys", "recovery"): ("one:two", ("one", "two")),
    ("store", "projects"): ("one:two", ("one", "two")),
    ("store", "storage_urls"): (
        "https://a:1/v1/x https://store",
        ("https://a:1/v1/x", "https://store"),
    ),
}


def test_every_list_can_be_set_by_its_variable(tmp_path: Path) -> None:
    found = {
        (section, key)
        for section, model in sections().items()
        for key, field in model.model_fields.items()
        if get_origin(field.annotation) is tuple
    }
    assert found == LISTS.keys()
    for (section, key), (text, expected) in LISTS.items():
        variable = {f"BACKUP_AGENT_{section.upper()}__{key.upper()}": text}
        if expected is None:
            with pytest.raises(ConfigInvalid, match="--rsync"):
                _load(tmp_path, WHOLE, **variable)
        else:
            assert getattr(getattr(_load(tmp_path, WHOLE, **variable), section), key) == expected


def test_the_folder_of_keys_is_known_without_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('[keys]\nfolder = "here"\n[agent]\nnonsense = 1\n')
    assert keys_folder(path, {}) == tmp_path / "here"
    assert keys_folder(path, {"BACKUP_AGENT_KEYS__FOLDER": "/there"}) == Path("/there")
    path.write_text(LEAST)
    with pytest.raises(ConfigInvalid, match=r"no \[keys\] folder"):
        keys_folder(path, {})


def test_an_empty_list_of_roots_allows_no_folder_at_all(tmp_path: Path) -> None:
    config = _load(tmp_path, WHOLE, BACKUP_AGENT_AGENT__RESTORE_ROOTS="")
    assert config.agent.restore_roots == ()


MISTAKES = {
    "[agent] instance_id:": ("AGENT__INSTANCE_ID", "not-a-uuid"),
    "[agent] instance_id: ": ("AGENT__INSTANCE_ID", INSTANCE.upper()),
    "[agent] tenant_id:": ("AGENT__TENANT_ID", "a/b"),
    "[agent] state_folder:": ("AGENT__STATE_FOLDER", "/var/../etc"),
    "[agent] restore_roots 1:": ("AGENT__RESTORE_ROOTS", "/a:../b"),
    "[agent] progress_seconds:": ("AGENT__PROGRESS_SECONDS", "0"),
    "[broker] queue_type:": ("BROKER__QUEUE_TYPE", "stream"),
    "[store] url:": ("STORE__URL", "https://swift.example.com"),
    "[store] attempts:": ("STORE__ATTEMPTS", "many"),
    "[store] key:": ("STORE__KEY", SECRET),
    "[database] password:": ("DATABASE__PASSWORD", SECRET),
    "[keys] active:": ("KEYS__ACTIVE", "../../etc/shadow"),
    "[keys] active: ": ("KEYS__ACTIVE", "x" * 65),
    "[keys] recovery 1:": ("KEYS__RECOVERY", "fine:not/fine"),
    "[keys] encrypt:": ("KEYS__ENCRYPT", "perhaps"),
    "[pipeline] memory_bytes:": ("PIPELINE__MEMORY_BYTES", "1"),
    "[pipeline] segment_bytes:": ("PIPELINE__SEGMENT_BYTES", "1048577"),
    "[pipeline] level:": ("PIPELINE__LEVEL", "9"),
    "[pipeline] bytes_per_second:": ("PIPELINE__BYTES_PER_SECOND", "1000"),
    "[nonsense]:": ("NONSENSE__KEY", "1"),
}


@pytest.mark.parametrize("place", MISTAKES)
def test_a_mistake_is_named_by_section_and_key(tmp_path: Path, place: str) -> None:
    name, value = MISTAKES[place]
    with pytest.raises(ConfigInvalid) as raised:
        _load(tmp_path, WHOLE, **{f"BACKUP_AGENT_{name}": value})
    assert place.strip() in str(raised.value)
    assert str(raised.value).startswith(f"the environment is wrong: BACKUP_AGENT_{name}: [")
    assert f"BACKUP_AGENT_{name}" in raised.value.hint
    assert SECRET not in str(raised.value)
    assert raised.value.hint
    assert raised.value.exit_status == 2


def test_mistakes_of_the_file_and_of_the_environment_are_told_apart(tmp_path: Path) -> None:
    text = LEAST + "[pipeline]\nlevel = 9\n"
    with pytest.raises(ConfigInvalid) as raised:
        _load(tmp_path, text, BACKUP_AGENT_PIPELINE__CORES="many", BACKUP_AGENT_STOER__URL="x")
    path = tmp_path / "agent.toml"
    assert str(raised.value).startswith(f"the configuration {path} is wrong: ")
    assert "; [pipeline] level: " in str(raised.value)
    assert "BACKUP_AGENT_PIPELINE__CORES: [pipeline] cores: " in str(raised.value)
    assert "BACKUP_AGENT_STOER__URL: [stoer]: there is no such section" in str(raised.value)
    named = "BACKUP_AGENT_PIPELINE__CORES, BACKUP_AGENT_STOER__URL"
    assert raised.value.hint.startswith(f"correct that file and {named};")
    with pytest.raises(ConfigInvalid) as raised:
        _load(tmp_path, text, BACKUP_AGENT_PIPELINE__CORES="2")
    assert "BACKUP_AGENT" not in str(raised.value) + raised.value.hint


@pytest.mark.parametrize(
    "name",
    ["BACKUP_AGENT_STORE_URL", "BACKUP_AGENT_store__url", "backup_agent_store__url"],
)
def test_a_variable_whose_name_is_nearly_right_is_refused(tmp_path: Path, name: str) -> None:
    """Such a variable would have no effect, and the operator would not notice."""
    if not name.startswith("BACKUP_AGENT_"):
        _load(tmp_path, LEAST, **{name: "x"})  # without the prefix: another program's
        return
    match = f"sets {name}, which is not the name of a setting"
    with pytest.raises(ConfigInvalid, match=match) as raised:
        _load(tmp_path, LEAST, **{name: "x"})
    assert "name it BACKUP_AGENT_STORE__URL" in raised.value.hint


def test_other_variables_of_the_prefix_are_left_alone(tmp_path: Path) -> None:
    _load(tmp_path, LEAST, BACKUP_AGENT_HOME="x", BACKUP_AGENT_CRASH_AT="", BACKUP_AGENT_="")


def test_missing_keys_and_sections_are_named_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"\[agent\]: is missing"):
        _load(tmp_path, "")
    with pytest.raises(
        ConfigInvalid, match=r"\[agent\] tenant_id:.*\[store\]: .*user and key_file"
    ):
        _load(tmp_path, f'[agent]\ninstance_id = "{INSTANCE}"\n[store]\nurl = "swift:http://a"')


def test_a_store_url_holds_no_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="user or a password; put them") as raised:
        _load(
            tmp_path,
            f'[agent]\ninstance_id = "{INSTANCE}"\ntenant_id = "t"\n'
            '[store]\nurl = "swift:https://u:hunter2@a/"\nuser = "u"\nkey_file = "k"',
        )
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "text", ["agent = 3", '[[agent]]\ninstance_id = "x"', LEAST + "[agent.more]\n"]
)
def test_a_section_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"\[agent\]"):
        _load(tmp_path, text)
    with pytest.raises(ConfigInvalid, match=r"\[agent\]"):
        _load(tmp_path, text, BACKUP_AGENT_AGENT__TENANT_ID="t")


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"is not TOML.*line 1"):
        _load(tmp_path, "[agent\n")
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        load(tmp_path / "agent.toml", {})


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file") as raised:
        load(tmp_path / "agent.toml", {})
    assert "--config" in raised.value.hint
    with pytest.raises(ConfigInvalid, match="Is a directory"):
        load(tmp_path, {})


# --- secrets -----------------------------------------------------------------------------


def _secret(path: Path, text: str = SECRET + "\n", mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_private_secret_is_read_without_its_newline(tmp_path: Path, mode: int) -> None:
    assert read_secret(_secret(tmp_path / "s", mode=mode), "[store] key_file") == SECRET
    assert read_secret(_secret(tmp_path / "t", " two\nlines \n"), "x") == " two\nlines "


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = _secret(tmp_path / "s", mode=mode)
    with pytest.raises(ConfigInvalid, match=rf"\[store\] key_file: {path} .*{mode:04o}") as raised:
        read_secret(path, "[store] key_file")
    assert raised.value.hint == f"chmod 0600 {path}"
    assert SECRET not in str(raised.value)


def test_a_credential_of_systemd_may_show_the_mode_of_its_acl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "credentials"
    (inside / "deeper").mkdir(parents=True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(inside))
    assert read_secret(_secret(inside / "s", mode=0o440), "x") == SECRET
    for beside in (tmp_path / "s", tmp_path / "credentials-s"):
        with pytest.raises(ConfigInvalid):
            read_secret(_secret(beside, mode=0o440), "x")


@pytest.mark.parametrize("text", ["", "\n", " \n\n"])
def test_an_empty_secret_is_refused(tmp_path: Path, text: str) -> None:
    path = _secret(tmp_path / "s", text)
    with pytest.raises(ConfigInvalid, match=rf"\[store\] key_file: {path} is empty") as raised:
        read_secret(path, "[store] key_file")
    assert str(path) in raised.value.hint


def test_secrets_that_are_another_users_say_who_may_read_them(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        for read in (
            lambda: read_secret(closed / "key", "[store] key_file"),
            lambda: load_keyring(KeysSection(folder=closed, active="main")),
        ):
            with pytest.raises(AgentError, match="can't be read: Permission denied") as raised:
                read()
            assert raised.value.hint.startswith("run the command as the owner of the file")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("text", [None, "", b"\xff"])
def test_a_credential_is_told_by_the_file_that_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes | None
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "secrets_store-key"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigInvalid) as raised:
        read_secret(path, "[store] key_file")
    origin = "/etc/backup-agent/secrets/store-key"
    assert f"[store] key_file: {path} (made from {origin}) " in str(raised.value)
    assert raised.value.hint.startswith(f"write the secret into {origin}, ")


def test_a_secret_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"\[store\] key_file: .*No such file"):
        read_secret(tmp_path / "none", "[store] key_file")
    with pytest.raises(ConfigInvalid, match="Is a directory"):
        read_secret(tmp_path, "x")
    path = _secret(tmp_path / "s")
    path.write_bytes(b"\xff" + SECRET.encode())
    with pytest.raises(ConfigInvalid, match="not UTF-8") as raised:
        read_secret(path, "x")
    assert SECRET not in str(raised.value)
    path.write_bytes(b"x" * (64 << 10))
    assert read_secret(path, "x") == "x" * (64 << 10)
    path.write_bytes(b"x" * (64 << 10) + b"\n")
    with pytest.raises(ConfigInvalid, match="more than 65536 bytes"):
        read_secret(path, "x")


# --- master keys -------------------------------------------------------------------------


def _keys(folder: Path, *names: str) -> KeysSection:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        _secret(folder / f"{name}.key", key_text(bytes([number]) * 32) + "\n")
    return KeysSection(folder=folder, active="k1")


def test_all_keys_of_the_folder_are_loaded(tmp_path: Path) -> None:
    section = _keys(tmp_path / "keys", "k1", "old.2024")
    _secret(tmp_path / "keys" / "README", "not a key")
    ring = load_keyring(section)
    assert ring.active.id == "k1"
    old = load_keyring(KeysSection(folder=section.folder, active="old.2024"))
    data_key = bytes(range(32))
    assert ring.unwrap([old.active.wrap(data_key)]) == data_key


def _missing(folder: Path) -> None:
    (folder / "k1.key").unlink()


def _open_to_others(folder: Path) -> None:
    (folder / "k1.key").chmod(0o644)


def _short(folder: Path) -> None:
    _secret(folder / "k1.key", key_text(b"x" * 31))


def _empty(folder: Path) -> None:
    _secret(folder / "k1.key", "")


def _not_base64(folder: Path) -> None:
    _secret(folder / "k1.key", SECRET + "!")


def _bad_id(folder: Path) -> None:
    os.rename(folder / "k2.key", folder / "k 2.key")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_missing, r"\[keys\] active: the key 'k1' is not in"),
        (_open_to_others, r"k1\.key can be read by others"),
        (_short, "k1 has 31 bytes"),
        (_empty, r"k1\.key is empty"),
        (_not_base64, "'k1' is not base64"),
        (_bad_id, "'k 2' is not a valid id"),
    ],
)
def test_keys_that_can_not_be_used(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    section = _keys(tmp_path / "keys", "k1", "k2")
    damage(section.folder)
    with pytest.raises(KeyUnusable, match=says) as raised:
        load_keyring(section)
    assert raised.value.hint
    assert SECRET not in _whole_story(raised.value)


@pytest.fixture(scope="module")
def recovery() -> RecoverySecret:
    return RecoverySecret.make("off.1")


def _with_recovery(folder: Path, recovery: RecoverySecret, *ids: str) -> KeysSection:
    section = _keys(folder, "k1")
    (folder / "off.1.pub").write_bytes(recovery.public.pem())
    (folder / "unused.pub").write_text("no key at all")
    return KeysSection(folder=section.folder, active="k1", recovery=ids)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444])
def test_recovery_keys_in_use_may_be_read_by_anybody(
    tmp_path: Path, recovery: RecoverySecret, mode: int
) -> None:
    section = _with_recovery(tmp_path / "keys", recovery, "off.1")
    (tmp_path / "keys" / "off.1.pub").chmod(mode)
    data_key = bytes(range(32))
    _, entry = load_keyring(section).wrap_all(data_key)
    assert recovery.unwrap(entry) == data_key
    assert load_keyring(_with_recovery(tmp_path / "more", recovery)).recovery == ()


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_recovery_key_that_others_could_replace_is_refused(
    tmp_path: Path, recovery: RecoverySecret, mode: int
) -> None:
    section = _with_recovery(tmp_path / "keys", recovery, "off.1")
    (tmp_path / "keys" / "off.1.pub").chmod(mode)
    with pytest.raises(KeyUnusable, match=r"off\.1\.pub can be written by others") as raised:
        load_keyring(section)
    assert raised.value.hint.startswith("chmod 0644")


def test_recovery_keys_that_can_not_be_used(tmp_path: Path, recovery: RecoverySecret) -> None:
    folder = tmp_path / "keys"
    with pytest.raises(KeyUnusable, match="'gone' is not in"):
        load_keyring(_with_recovery(folder, recovery, "off.1", "gone"))
    with pytest.raises(KeyUnusable, match="'unused' is not a public key"):
        load_keyring(_with_recovery(folder, recovery, "unused"))
    (folder / "unused.pub").write_bytes(recovery.pem())
    with pytest.raises(KeyUnusable, match="'unused' holds the private half") as raised:
        load_keyring(KeysSection(folder=folder, active="k1", recovery=("unused",)))
    assert "off this machine" in raised.value.hint
    (folder / "k1.pub").write_bytes(recovery.public.pem())
    with pytest.raises(KeyUnusable, match="'k1' names both"):
        load_keyring(KeysSection(folder=folder, active="k1", recovery=("k1",)))


def test_keys_that_systemd_hands_over(
    tmp_path: Path, recovery: RecoverySecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd gives each file of a directory its own credential.

    LoadCredential=keys:/etc/backup-agent/keys makes a file keys_<file> of each file in there.
    """
    section = _with_recovery(tmp_path / "etc", recovery, "off.1")
    given = tmp_path / "credentials"
    given.mkdir()
    for path in section.folder.iterdir():
        _secret(given / f"keys_{path.name}", path.read_text(), mode=0o440)
    _secret(given / "other_k2.key", "not ours", mode=0o440)
    _secret(given / "broker-password", "not ours", mode=0o440)
    handed = section.model_copy(update={"folder": given / "keys"})
    with pytest.raises(KeyUnusable, match="No such file"):
        load_keyring(handed)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    ring = load_keyring(handed)
    assert (ring.active, ring.recovery) == (load_keyring(section).active, (recovery.public,))
    with pytest.raises(KeyUnusable, match=r"'k3' is not in .*, which has: k1") as raised:
        load_keyring(handed.model_copy(update={"active": "k3"}))
    assert raised.value.hint.startswith("put it into /etc/backup-agent/keys as k3.key")


def test_a_key_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match=r"\[keys\] folder: .*No such file"):
        load_keyring(KeysSection(folder=tmp_path / "none", active="k1"))


def _whole_story(error: BaseException) -> str:
    """Return the texts of an error and of its causes, as a traceback would show them."""
    story, cause = "", error
    while cause is not None:
        story += f"{cause!r} {cause}"
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return story


def test_no_secret_shows_in_what_is_printed(tmp_path: Path) -> None:
    section = _keys(tmp_path / "keys", "k1")
    ring = load_keyring(section)
    for shown in (repr(ring), str(vars(ring)), repr(ring.active)):
        assert key_text(bytes(32)) not in shown
        assert repr(bytes(32)) not in shown
    for text in (f'[store]\nkey = "{SECRET}"', f"[store]\n{SECRET}"):
        with pytest.raises(AgentError) as raised:
            _load(tmp_path, text)
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('certificate_file = "a"', "certificate_file and key_file need each other"),
        ('key_file = "a"', "certificate_file and key_file need each other"),
        (
            'control_url = "amqps://h/v"\ncontrol_key_file = "a"',
            "control_certificate_file and control_key_file need each other",
        ),
        (
            'control_certificate_file = "a"\ncontrol_key_file = "a"',
            "control_certificate_file needs control_url",
        ),
    ],
)
def test_a_certificate_is_nothing_without_its_key(tmp_path: Path, keys: str, says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        _load(tmp_path, f'{LEAST}[broker]\nurl = "amqps://h/v"\n{keys}\n')
