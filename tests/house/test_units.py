"""The files of systemd/ fit the program and each other. tests/system runs them for real."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from agent.config.reading import load
from agent.config.settings import Config
from tests.house.source import CHECKOUT

FOLDER = CHECKOUT / "systemd"
EXAMPLE = FOLDER / "agent.toml"
UNIT = (FOLDER / "backup-agent.service").read_text()
SELF_TEST = (FOLDER / "backup-agent-self-test.service").read_text()
# These keys have no default, so their lines in the example can't show one.
_EXAMPLES = {"ca_file", "container", "program", "extractor", "bytes_per_second"}
_EXAMPLES |= {"control_url", "control_password_file", "options", "listen", "textfile"}
_EXAMPLES |= {"certificate_file", "key_file", "control_certificate_file", "control_key_file"}
_EXAMPLES |= {"application_credential", "project", "cloud", "region"}
# These keys exclude others of the example.
_ALTERNATIVES = {"application_credential", "project", "user_domain", "project_domain"}
_ALTERNATIVES |= {"region", "interface", "cloud"}


def sections() -> dict[str, type[BaseModel]]:
    """Return the model of each section of agent.toml."""
    found = {}
    for name, field in Config.model_fields.items():
        kinds = (field.annotation, *getattr(field.annotation, "__args__", ()))
        [model] = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
        found[name] = model
    return found


def uncommented() -> dict[str, Any]:
    text = re.sub(r"^#(?=[a-z_]+ = )", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    return tomllib.loads(text)


def test_the_example_is_a_configuration() -> None:
    config = load(EXAMPLE, {})
    assert config.keys is not None
    assert config.keys.folder == FOLDER / "keys"


def test_the_example_has_every_key_of_every_section() -> None:
    tables = uncommented()
    assert {name: list(table) for name, table in tables.items()} == {
        name: list(model.model_fields) for name, model in sections().items()
    }


def test_with_every_line_in_use_the_example_is_a_configuration(tmp_path: Path) -> None:
    whole = tmp_path / "agent.toml"
    keys = rf"(?!(?:{'|'.join(_ALTERNATIVES)}) = )[a-z_]+ = "
    text = re.sub(rf"^#(?={keys})", "", EXAMPLE.read_text(), flags=re.MULTILINE)
    whole.write_text(text)
    assert load(whole, {}).pipeline.bytes_per_second == 100 << 20


@pytest.mark.parametrize("name", sections())
def test_commented_lines_show_the_defaults(name: str) -> None:
    """This holds for every key that has a default, unless the example needs the key."""
    shown = uncommented()[name]
    live = tomllib.loads(EXAMPLE.read_text()).get(name, {})
    for key, field in sections()[name].model_fields.items():
        if key not in live and key not in _EXAMPLES:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            same = (
                str(default) == shown[key] if isinstance(default, Path) else default == shown[key]
            )
            assert same, f"[{name}] {key}: the default is {default!r}"


def directives(unit: str) -> list[str]:
    """Return the lines of [Service] that don't concern the start and the end of the process."""
    _, _, service = unit.partition("[Service]\n")
    lines = service.partition("\n[Install]")[0].splitlines()
    return [line for line in lines if line and not line.startswith("#")]


_ITS_OWN = re.compile(
    r"(Type|NotifyAccess|ExecStart|Timeout\w+Sec|WatchdogSec|KillMode|Restart\w*)="
)


def test_the_self_test_runs_in_the_same_sandbox() -> None:
    assert [line for line in directives(UNIT) if not _ITS_OWN.match(line)] == [
        line for line in directives(SELF_TEST) if not _ITS_OWN.match(line)
    ]


def test_the_unit_waits_for_the_end_that_the_service_takes() -> None:
    from agent import daemon
    from agent.broker import link

    [patience] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    longest = daemon._WORKER_SECONDS + daemon._OUTBOX_SECONDS + link._CLOSING_SECONDS
    assert int(patience) > longest


def test_each_folder_of_the_unit_is_made() -> None:
    made = (FOLDER / "backup-agent.tmpfiles.conf").read_text()
    used = re.findall(r"^(?:LoadCredential=\w+:|ReadWritePaths=-)(/\S+)$", UNIT, re.MULTILINE)
    assert len(used) == 3
    for folder in used:
        assert re.search(rf"^d {folder} +0700 ", made, re.MULTILINE), folder


def test_each_secret_of_the_example_is_a_credential_of_the_unit() -> None:
    """The unit overrides each `*_file` of a secret and the keys' directory, and names no other."""
    tables = tomllib.loads(EXAMPLE.read_text())
    expected = {
        f"BACKUP_AGENT_{section.upper()}__{key.upper()}=%d/{str(value).replace('/', '_')}"
        for section, table in tables.items()
        for key, value in table.items()
        if str(value).startswith("secrets/") or key == "folder"
    }
    assert set(re.findall(r"^Environment=(.*)$", UNIT, re.MULTILINE)) == expected
