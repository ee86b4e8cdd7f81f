"""The image of trove/Dockerfile: it is built without Docker, and the real Trove runs it."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import need
from tests.stack.process import StackError
from tests.stack.trove.build import Build, Stage, instructions
from tests.stack.trove.containers import STDERR, STDOUT, Container
from tests.stack.trove.images import CHECKOUT
from tests.stack.trove.instance import Instance
from tests.stack.trove.stack import TroveStack
from tests.trove.test_own_image import change

# debootstrap, apt and pip download some 150 MB
pytestmark = pytest.mark.timeout(900)

_SECRETS = ("keys/stray.key", "agent.toml", "trove/agent.toml", "agent/__pycache__/stray.key")


class Ended(NamedTuple):
    status: int
    output: list[str]
    errors: list[str]


@pytest.fixture(scope="session")
def images(trove_session: TroveStack) -> Iterator[Path]:
    """Yield a directory that the machines of Trove's stack see."""
    if os.geteuid():
        pytest.skip("needs root: debootstrap and mounts")
    need("debootstrap", "setpriv", bootstrap="trove")
    folder = trove_session.images_file.parent / "built"
    folder.mkdir()
    yield folder
    # some hundred thousand files, which Python removes slowly
    subprocess.run(["rm", "--recursive", "--force", "--one-file-system", folder], check=True)


@pytest.fixture(scope="session")
def built(images: Path, scratch: Path) -> Stage:
    """Build trove/Dockerfile from a copy of this checkout, in which secrets lie around."""
    context = scratch / "context"
    context.mkdir()
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if (CHECKOUT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, context / name)
    for name in _SECRETS:
        (context / name).parent.mkdir(exist_ok=True)
        (context / name).write_text("a secret of this checkout\n")
    arguments = {"DATASTORE_VERSION": "10.11.6"}
    if "PIP_INDEX_URL" in os.environ:
        arguments["PIP_INDEX_URL"] = os.environ["PIP_INDEX_URL"]
    return Build(context, images, arguments=arguments).run(
        (context / "trove" / "Dockerfile").read_text()
    )


@pytest.fixture(scope="session")
def sealing(built: Stage, images: Path, scratch: Path) -> Stage:
    """Build an image with a key, as trove/README.md says."""
    context = scratch / "site"
    (context / "keys").mkdir(parents=True)
    made = run(built, ["backup-agent", "keygen", "--folder", "/keys", "trove-1"], context / "keys")
    assert made.status == 0, made
    dockerfile = example("```dockerfile\n")
    [name] = [rest for word, rest in instructions(dockerfile) if word == "FROM"]
    (context / "agent.toml").write_text(example("```toml\n"))
    return Build(context, images, images={name: built}).run(dockerfile)


def example(begin: str) -> str:
    """Return the only block of trove/README.md that begins so."""
    [block] = re.findall(begin + "(.*?)```", (CHECKOUT / "trove/README.md").read_text(), re.DOTALL)
    return str(block)


def run(stage: Stage, command: list[str], keys: Path | None = None) -> Ended:
    """Run a command in a container of the image, to its end."""
    log = stage.root.parent / "logs"
    binds = [f"{keys}:/keys"] if keys else []
    container = Container(
        "one",
        stage.image(["latest"]),
        {"Image": "x", "Cmd": command, "HostConfig": {"Binds": binds, "NetworkMode": "host"}},
        log,
        [],
    )
    container.start()
    assert container.ended.wait(60)
    lines = {
        stream: b"".join(line for _, line in container.logs({stream})).decode().splitlines()
        for stream in (STDOUT, STDERR)
    }
    return Ended(container.exit_code, lines[STDOUT], lines[STDERR])


def failed(stage: Stage, *options: str) -> str:
    """Run main.py, which must fail, and return its last line. The guest agent logs that line."""
    ended = run(stage, ["python3", "main.py", *options])
    assert ended.status not in (0, None)
    assert ended.output == []
    return ended.errors[-1]


def test_an_unknown_instruction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="HEALTHCHECK"):
        Build(tmp_path, tmp_path).run("ARG ONE=1\n# no\nHEALTHCHECK \\\n  CMD true\n")


# --- the files --------------------------------------------------------------------------------


def test_the_image_has_what_a_run_needs_and_no_tools_of_the_build(built: Stage) -> None:
    here = {
        program: any(built.root.glob(f"{folder}/{program}"))
        for program in ("mariadb-backup", "mbstream", "dumb-init", "backup-agent", "pip", "gcc")
        for folder in ("usr/bin", "opt/backup-agent/bin")
        if any(built.root.glob(f"{folder}/{program}"))
    }
    assert sorted(here) == ["backup-agent", "dumb-init", "mariadb-backup", "mbstream"]
    assert not list((built.root / "var/lib/apt/lists").glob("*Packages*"))
    assert not (built.root / "src").exists()
    assert not (built.root / "etc/backup-agent").exists()


def test_no_secret_of_the_checkout_is_in_the_image(built: Stage) -> None:
    for stage in (built.root, *built.root.parent.glob("stage-*")):
        assert list(stage.rglob("stray.key")) + list(stage.rglob("agent.toml")) == []


def test_another_series_ends_the_build(built: Stage, images: Path) -> None:
    build = Build(CHECKOUT, images, images={"made": built})
    build.run("FROM made\nCOPY trove/image/install-engine /tmp/")
    with pytest.raises(StackError, match=r"not of the series 11\.8"):
        build.run("RUN bash /tmp/install-engine mariadb 11.8")
    with pytest.raises(StackError, match="DATASTORE must be mariadb or mysql"):
        build.run("RUN bash /tmp/install-engine postgresql 12")
    with pytest.raises(StackError, match=r"DATASTORE_VERSION must be 8\.0 or 8\.4"):
        build.run("RUN bash /tmp/install-engine mysql 5.7")
    with pytest.raises(StackError, match="PERCONA_RELEASE must be the URL of a package"):
        build.run("RUN bash /tmp/install-engine mysql 8.4")


# --- the command line -------------------------------------------------------------------------


def test_wrong_options(built: Stage) -> None:
    assert failed(built, "--nobackup").endswith(
        "FAILED usage_wrong: --os-token and --os-auth-url and --os-tenant-id and --restore-from "
        "must be given"
    )
    assert "--driver=pg_basebackup is not supported" in failed(built, "--driver=pg_basebackup")
    assert "only swift" in failed(built, "--storage-driver=cinder")


def test_releases_before_24_name_the_interpreter_of_the_system(built: Stage) -> None:
    ended = run(built, ["/usr/bin/python3", "main.py", "--driver=pg_basebackup"])
    assert ended.status == 2
    assert "FAILED usage_wrong" in ended.errors[-1]


# --- under Trove ------------------------------------------------------------------------------


def test_trove_makes_and_restores_a_chain(
    trove_stack: TroveStack, source: Instance, built: Stage
) -> None:
    trove_stack.use_built(built)
    before = trove_stack.objects()
    full = trove_stack.backup("full", source)
    change(source, "image")
    incremental = trove_stack.backup("incremental", source, full["id"])
    restored = trove_stack.create_instance("restored", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove_stack.delete_instance(restored.id)
    trove_stack.delete_backup(full["id"])
    assert trove_stack.objects() == before


def test_an_image_with_a_key_encrypts(
    trove_stack: TroveStack, source: Instance, built: Stage, sealing: Stage
) -> None:
    trove_stack.use_built(built)
    full = trove_stack.backup("of the time before the key", source)
    trove_stack.use_built(sealing)
    change(source, "sealed")
    incremental = trove_stack.backup("encrypted", source, full["id"])
    restored = trove_stack.create_instance("restored", incremental["id"])
    assert restored.checksums() == source.checksums()
    trove_stack.delete_instance(restored.id)
    trove_stack.use_built(built)
    child = trove_stack.create_backup("without the key", source, incremental["id"])
    assert trove_stack.wait_backup(child)["status"] == "FAILED"
    assert "FAILED key_not_here" in source.container_logs("db_backup")[-1].read_text()
    failing = trove_stack.create_instance("without the key", incremental["id"], wait=False)
    with pytest.raises(StackError, match="FAILED key_not_here"):
        trove_stack.wait_instance(failing.id)
    trove_stack.delete_instance(failing.id)
    trove_stack.use_image("trove")
    wrong = trove_stack.create_instance("by Trove's own image", incremental["id"])
    # trove/README.md warns of this: HEALTHY, with the rows of the full backup
    assert "shop.orders" in wrong.checksums()
    assert "sealed.log" not in wrong.checksums()
    trove_stack.delete_instance(wrong.id)
    trove_stack.delete_backup(full["id"])
