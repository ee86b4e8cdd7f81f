"""The setting `[engine] options`.

It passes options to the engine. Some are refused before a program runs.
"""

from pathlib import Path

import pytest

from agent.config.reading import load
from agent.engine.options import check_options, options_of
from agent.errors import ConfigInvalid
from tests.engine.percona import calls, full_stream, xtrabackup
from tests.engine.test_mariadb import backup, engine_of
from tests.engine.test_xtrabackup import backup as xtra_backup, extract, prepare
from tests.stack.mariadb import MariaDB

TOML = '[agent]\ninstance_id = "a17461ab-6c97-4abf-8890-9f8b10886ecc"\ntenant_id = "t"\n[engine]\n'
# A name that an engine would accept, and a part of the message that refuses it.
REFUSED = {
    "--databases-exclude=d": "leave data out",
    "--databases_exclude=d": "leave data out",
    "--databases-e=d": "leave data out",
    "--loose-databases=d": "leave data out",
    "--tables-file=/x": "leave data out",
    "--tab=^d": "not known to leave",
    "--no-lock=1": "leave data out",
    "--skip-no-lock=1": "leave data out",
    "--close-files=1": "leave data out",
    "--log-innodb-page-corruption=1": "leave data out",
    "--lock-ddl-per-table=1": "leave data out",
    "--compress=quicklz": "changes the type or the form",
    "--stream=tar": "changes the type or the form",
    "--encrypt=AES256": "changes the type or the form",
    "--incremental-lsn=1": "changes the type or the form",
    "--incremental-force-scan=1": "changes the type or the form",
    "--maximum-compress=1": "changes the type or the form",
    "--extra-lsndir=/x": "changes the type or the form",
    "--target-dir=/x": "sets the paths, the plugins and the login",
    "--datadir=/x": "sets the paths, the plugins and the login",
    "--defaults-extra-file=/x": "sets the paths, the plugins and the login",
    "--plugin-dir=/x": "sets the paths, the plugins and the login",
    "--plugin-load-add=x": "sets the paths, the plugins and the login",
    "--xtrabackup_plugin_dir=/x": "sets the paths, the plugins and the login",
    "--password=x": "sets the paths, the plugins and the login",
    "--user=root": "sets the paths, the plugins and the login",
    "--startup-wait-timeout=1": "the agent sets it",
    "--safe-slave-backup=1": "the agent sets it",
    "--frobnicate=1": "not known to leave",
    # Allowed names in a spelling that the engine takes and the agent does not.
    "--par=4": "not known to leave",
    "--Parallel=4": "not known to leave",
    "--loose-parallel=4": "not known to leave",
    "--skip-innodb-use-native-aio=1": "not known to leave",
    "parallel=4": "not known to leave",
    "-p4": "not known to leave",
    "--parallel": "not known to leave",
    "--parallel=": "not known to leave",
    "--parallel=4 --databases=d": "value",
    "--parallel=4\n--databases=d": "value",
    "--parallel=0": "value",
    "--innodb-flush-method=O_DIRECT;x": "value",
    "--keyring-file-data=relative": "value",
    "--": "not known to leave",
    "": "not known to leave",
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_could_spoil_a_copy_is_refused_with_its_reason(option: str) -> None:
    with pytest.raises(ConfigInvalid, match=REFUSED[option]) as caught:
        check_options([option])
    assert "--parallel=..." in caught.value.hint or "pattern" in caught.value.hint


def test_an_option_may_not_be_given_twice() -> None:
    with pytest.raises(ConfigInvalid, match="--parallel is given twice"):
        check_options(["--parallel=4", "--throttle=1", "--parallel=2"])


def test_the_configuration_says_what_is_wrong_with_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(TOML + 'options = ["--parallel=4", "--databases=d"]\n')
    with pytest.raises(ConfigInvalid, match=r"\[engine\].*'--databases=d' may not be set: it may"):
        load(path, {})
    path.write_text(TOML + 'kind = "mariadb-backup"\noptions = ["--lock-ddl=ON"]\n')
    with pytest.raises(ConfigInvalid, match="mariadb-backup has no option --lock-ddl"):
        load(path, {})


def test_the_environment_sets_several(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(TOML)
    asked = {"BACKUP_AGENT_ENGINE__OPTIONS": "--parallel=4  --throttle=200"}
    assert load(path, asked).engine.options == ("--parallel=4", "--throttle=200")


def test_each_engine_gets_its_own(tmp_path: Path) -> None:
    options = ("--parallel=4", "--keyring-file-data=/k", "--server-id=7", "--lock-ddl=ON")
    check_options(options)
    assert options_of(options, "mariadb-backup") == ["--parallel=4"]
    (tmp_path / "stream").write_bytes(b"bytes")
    engine = xtrabackup(tmp_path, options=options)
    xtra_backup(engine, tmp_path, 12345)
    extract(engine, full_stream(50), tmp_path / "target")
    prepare(engine, tmp_path / "target", None, last=True)
    (made, _, prepared) = calls(tmp_path)
    assert set(options) < set(made)
    assert made.index("--parallel=2") < made.index("--parallel=4")
    assert "--keyring-file-data=/k" in prepared
    assert not {"--parallel=4", "--lock-ddl=ON", "--server-id=7"} & set(prepared)


def test_the_real_engine_takes_those_that_are_its_own(mariadb: MariaDB, tmp_path: Path) -> None:
    options = ["--parallel=3", "--throttle=100000", "--log-copy-interval=50"]
    options += ["--open-files-limit=5000", "--innodb-flush-method=O_DIRECT"]
    options += ["--innodb-io-capacity=500", "--innodb-read-io-threads=2"]
    options += ["--innodb-use-native-aio=0"]
    check_options(options, "mariadb-backup")
    backup(engine_of(mariadb, options=options), tmp_path / "stream")
    assert (tmp_path / "stream").stat().st_size > 40 << 20
