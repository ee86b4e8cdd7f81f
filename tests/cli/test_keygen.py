"""`keygen`: keys that are durable, private and never replaced, and a page for the safe."""

import base64
import hashlib
import logging
import os
import re
import subprocess
from pathlib import Path

import pytest

from agent.cli.main import main
from agent.config.secrets import load_keyring
from agent.config.settings import KeysSection
from agent.keys.recovery import parse_recovery_key
from tests.records.made import recovery_secret

DATA_KEY = bytes(range(32))
PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def logging_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)


def _keygen(folder: Path, *arguments: str | Path) -> int:
    """Without any configuration: there is none at that path."""
    none = str(folder / "none.toml")
    return main(["--config", none, "keygen", "--folder", str(folder), *map(str, arguments)])


def test_a_master_key_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "keys"
    assert _keygen(folder, "2026-01") == 0
    path = folder / "2026-01.key"
    text = path.read_text().removesuffix("\n")
    assert (path.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert [entry.name for entry in folder.iterdir()] == ["2026-01.key"]
    assert len(base64.b64decode(text, validate=True)) == 32
    page, notes = capsys.readouterr()
    assert f"key      {text}\n" in page
    assert f"SHA-256  {hashlib.sha256(text.encode()).hexdigest()}\n" in page
    for said in ("2026-01", "losing that machine", "mode 0600", "[keys] folder"):
        assert said in page
    assert text not in notes
    assert '[keys] active = "2026-01"' in notes
    assert "rekey --to 2026-01" in notes
    assert load_keyring(KeysSection(folder=folder, active="2026-01")).active.id == "2026-01"


def test_the_check_on_the_page_is_the_one_that_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _keygen(tmp_path, "k1") == 0
    page = capsys.readouterr().out
    (check,) = re.findall(r"^Check a copy +(.+)$", page, re.MULTILINE)
    done = subprocess.run(["sh", "-c", check], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.split()[0].decode() in page


def test_a_key_that_is_there_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _keygen(tmp_path, "k1") == 0
    before = (tmp_path / "k1.key").read_bytes()
    for arguments in (["k1"], ["k1", "--recovery", "--private", tmp_path / "p.pem"]):
        capsys.readouterr()
        assert _keygen(tmp_path, *arguments) == 2
        shown = capsys.readouterr()
        assert "k1.key exists already" in shown.err
        assert shown.out == ""
    assert (tmp_path / "k1.key").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["k1.key"]


def test_one_that_appears_meanwhile_is_not_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "k1.key").write_text("precious")
    monkeypatch.setattr("agent.cli.keys.check_free", lambda _path: None)
    assert _keygen(tmp_path, "k1") == 2
    assert (tmp_path / "k1.key").read_text() == "precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["k1.key"]


def test_what_is_written_is_synced_before_it_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def link(source: Path, target: Path) -> None:
        order.append("link")
        os.rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    assert _keygen(tmp_path, "k1") == 0
    assert order[0].startswith(".k1.key.")
    assert order[1:] == ["link", tmp_path.name]
    assert "MASTER KEY" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_gives_the_key_to_the_owner_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12346)
    assert _keygen(folder, "k1") == 0
    assert "belongs to root" not in capsys.readouterr().err
    assert _keygen(folder, "r1", "--recovery", "--private", folder / "private.pem") == 0
    owners = {entry.name: entry.stat().st_uid for entry in folder.iterdir()}
    assert owners == {"k1.key": 12345, "r1.pub": 12345, "private.pem": 0}


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_recovery_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], passphrase: str | None
) -> None:
    folder, private = tmp_path / "keys", tmp_path / "private.pem"
    arguments: list[str | Path] = ["r1", "--recovery", "--private", private]
    if passphrase:
        (tmp_path / "passphrase").write_text(passphrase + "\n")
        (tmp_path / "passphrase").chmod(0o600)
        arguments += ["--passphrase-file", tmp_path / "passphrase"]
    assert _keygen(folder, *arguments) == 0
    public = folder / "r1.pub"
    assert (private.stat().st_mode & 0o777, public.stat().st_mode & 0o777) == (0o600, 0o644)
    entry = parse_recovery_key("r1", public.read_bytes()).wrap(DATA_KEY)
    secret = recovery_secret("r1", private.read_bytes(), (passphrase or "").encode())
    assert secret.unwrap(entry) == DATA_KEY
    page, notes = capsys.readouterr()
    assert hashlib.sha256(public.read_bytes()).hexdigest() in page
    assert "signs nothing" in page
    assert f"move {private} off this machine" in notes
    assert '"r1" to [keys] recovery' in notes
    assert PASSPHRASE not in page + notes
    assert "PRIVATE KEY" not in page + notes


def test_a_private_half_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "private.pem").write_text("precious")
    assert (
        _keygen(tmp_path / "keys", "r1", "--recovery", "--private", tmp_path / "private.pem") == 2
    )
    assert (tmp_path / "private.pem").read_text() == "precious"
    assert list((tmp_path / "keys").iterdir()) == []


def test_a_passphrase_typed_on_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter([PASSPHRASE, "another", PASSPHRASE, PASSPHRASE])
    monkeypatch.setattr("agent.cli.keys.getpass.getpass", lambda _prompt: next(typed))
    arguments = ["r1", "--recovery", "--private", str(tmp_path / "p.pem"), "--passphrase"]
    assert _keygen(tmp_path / "keys", *arguments) == 2
    assert not (tmp_path / "p.pem").exists()
    assert _keygen(tmp_path / "keys", *arguments) == 0
    assert recovery_secret("r1", (tmp_path / "p.pem").read_bytes(), PASSPHRASE.encode())


def test_no_passphrase_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-D, or standard input that has ended where there is no terminal."""

    def ended(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("agent.cli.keys.getpass.getpass", ended)
    arguments = ["r1", "--recovery", "--private", str(tmp_path / "p.pem"), "--passphrase"]
    assert _keygen(tmp_path / "keys", *arguments) == 2
    assert "usage_wrong: no passphrase was typed" in capsys.readouterr().err
    assert not (tmp_path / "p.pem").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a/b"], "is not a valid id of a key"),
        (["x" * 65], "is not a valid id of a key"),
        (["k1", "--recovery"], "--private FILE go together"),
        (["k1", "--private", "x.pem"], "--private FILE go together"),
        (["k1", "--passphrase"], "a passphrase is for"),
    ],
)
def test_what_can_not_be_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert _keygen(tmp_path / "keys", *arguments) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()


def test_a_short_passphrase_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "passphrase").write_text("hunter2\n")
    (tmp_path / "passphrase").chmod(0o600)
    arguments = ["--private", str(tmp_path / "p"), f"--passphrase-file={tmp_path}/passphrase"]
    assert _keygen(tmp_path / "keys", "r1", "--recovery", *arguments) == 2
    shown = capsys.readouterr().err
    assert "fewer than 16 characters" in shown
    assert "hunter2" not in shown


def test_the_folder_of_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.toml").write_text('[keys]\nfolder = "here"\n')
    assert main(["keygen", "k1", "--config", str(tmp_path / "agent.toml")]) == 0
    assert (tmp_path / "here" / "k1.key").exists()
    assert main(["keygen", "k1", "--config", str(tmp_path / "none.toml")]) == 2
    assert "--folder" in capsys.readouterr().err


def test_a_folder_that_can_not_be_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert _keygen(tmp_path / "file" / "keys", "k1") == 2
    assert "can't be made: Not a directory" in capsys.readouterr().err


def test_a_key_without_an_id_gets_one_that_no_other_machine_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _keygen(tmp_path) == 0
    (made,) = tmp_path.glob("*.key")
    page, notes = capsys.readouterr()
    digest = hashlib.sha256(made.read_text().strip().encode()).hexdigest()
    assert re.fullmatch(rf"[A-Za-z0-9_-]+-\d{{8}}-{digest[:6]}", made.stem)
    assert f"id       {made.stem}\n" in page
    assert f'[keys] active = "{made.stem}"' in notes
    assert "no other machine" not in notes
    assert _keygen(tmp_path, "--recovery", "--private", tmp_path / "private.pem") == 0
    (public,) = tmp_path.glob("*.pub")
    digest = hashlib.sha256(public.read_bytes()).hexdigest()
    assert re.fullmatch(rf"recovery-\d{{8}}-{digest[:6]}", public.stem)
    capsys.readouterr()
    assert _keygen(tmp_path, "main") == 0
    assert "no other machine of the tenant may have a key with the id main" in (
        capsys.readouterr().err
    )
