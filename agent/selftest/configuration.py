"""Checks of the group `configuration`, which read the operator's files and contact no server."""

import difflib
import errno
import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent import crash_points
from agent.config.cloud import cloud_of
from agent.config.reading import ENV_NAME, ENV_PREFIX
from agent.config.secrets import read_secret
from agent.config.settings import Config
from agent.errors import ConfigInvalid
from agent.machine.host import nearest
from agent.selftest.check import Check, CheckOutcome, failed, passed, skipped, warned
from agent.selftest.context import Context

_FULL = (errno.ENOSPC, errno.EDQUOT)


def checks(context: Context) -> Sequence[Check]:
    def secret(section: str, key: str) -> CheckOutcome:
        return _secret(context.config, section, key)

    file = ("file",)
    return [
        Check("file", lambda: _file(context)),
        Check("sections", lambda: _sections(context.config), file),
        Check("environment", lambda: _environment(context.environment)),
        Check("broker password", lambda: secret("broker", "password_file"), file),
        Check("store key", lambda: _store_key(context), file),
        Check("database password", lambda: secret("database", "password_file"), file),
        Check("state folder", lambda: _state_folder(context.config.agent.state_folder), file),
    ]


def _file(context: Context) -> CheckOutcome:
    agent = context.config.agent
    return passed(f"{context.path}: instance {agent.instance_id}, tenant {agent.tenant_id}")


def _sections(config: Config) -> CheckOutcome:
    missing = [name for name in ("store", "keys") if getattr(config, name) is None]
    if missing:
        named = " and ".join(f"[{name}]" for name in missing)
        return failed(f"there is no section {named}", f"add {named}: see the example agent.toml")
    if config.broker is None and config.store and config.store.kind != "file":
        return warned(
            "there is no section [broker]: `backup-agent run` can't take tasks",
            "add [broker] with url and password_file, or use only commands with --local",
        )
    return passed("all required sections exist")


def _environment(environment: Iterable[str]) -> CheckOutcome:
    """Check that no variable with our prefix is unused, and that the one for tests is not set."""
    if crash_points.VARIABLE in environment:
        return failed(
            f"{crash_points.VARIABLE} is set: the agent kills itself at the place that it names, "
            "which only tests need",
            f"remove {crash_points.VARIABLE} from the environment of the service and of the shell",
        )
    ignored = sorted(
        name for name in environment if name.startswith(ENV_PREFIX) and not ENV_NAME.fullmatch(name)
    )
    if ignored:
        meant = "; ".join(f"{name} ({_meant(name)})" for name in ignored)
        return warned(
            f"ignored, because the names have a wrong form: {', '.join(ignored)}",
            f"the form is {ENV_PREFIX}<SECTION>__<KEY>, with two underscores between section and "
            f"key: {meant}",
        )
    count = sum(1 for name in environment if ENV_NAME.fullmatch(name))
    return passed(
        f"{ENV_PREFIX} variables that override the file: {count}"
        if count
        else "no variable overrides the file"
    )


def _meant(name: str) -> str:
    """Return the most similar variable with a question mark, or `unset it` if none is similar."""
    known = [
        f"{ENV_PREFIX}{section}__{key}".upper()
        for section, field in Config.model_fields.items()
        for key in _keys(field.annotation)
    ]
    near = difflib.get_close_matches(name, known, n=1)
    return f"{near[0]}?" if near else "unset it"


def _keys(annotation: object) -> list[str]:
    """Return the keys of a section's model. The annotation may be `Section | None`."""
    for kind in (annotation, *getattr(annotation, "__args__", ())):
        if hasattr(kind, "model_fields"):
            return list(kind.model_fields)
    return []


def _store_key(context: Context) -> CheckOutcome:
    """Check the secret of the store's login, from wherever it is taken."""
    section = context.config.store
    if section is None or section.kind != "swift" or section.address:
        return _secret(context.config, "store", "key_file")
    keystone = cloud_of(section, context.environment).keystone
    return passed(f"{keystone.told_by}: {keystone.who} at {keystone.auth_url}")


def _secret(config: Config, section: str, key: str) -> CheckOutcome:
    path: Path | None = getattr(getattr(config, section), key, None)
    if path is None:
        return passed(f"[{section}] {key} is not set: no secret is sent")
    try:
        read_secret(path, f"[{section}] {key}")
    except ConfigInvalid as error:
        return failed(str(error), error.hint)
    return passed(f"{path} exists and is private")


def _state_folder(folder: Path) -> CheckOutcome:
    """Check that the agent can create files in the state directory.

    The group `host` checks the free space there.
    """
    cure = f"install -d -m 0700 -o mysql -g mysql {folder} (the agent's OS user and group)"
    try:
        there = nearest(folder)
    except PermissionError as error:
        return failed(f"{folder} can't be reached: {error.strerror}", cure)
    if there != folder:
        if os.access(there, os.W_OK | os.X_OK):
            return passed(f"{folder} does not exist yet; the agent can create it")
        return failed(f"{folder} does not exist, and {there} can't be written to", cure)
    if not folder.is_dir():
        return failed(f"{folder} is not a directory", cure)
    try:
        with tempfile.TemporaryFile(dir=folder):
            mode = stat.S_IMODE(folder.stat().st_mode)
    except OSError as error:
        if error.errno in _FULL:
            return skipped(f"the filesystem of {folder} is full: see the group host")
        return failed(f"{folder} can't be written to: {error.strerror}", cure)
    if mode & 0o077:
        return warned(
            f"{folder} is accessible to other users (mode {mode:04o})", f"chmod 0700 {folder}"
        )
    return passed(f"{folder} is writable and private")
