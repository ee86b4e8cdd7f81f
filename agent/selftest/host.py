"""Checks of the group `host`, which tell if this machine has the resources for a backup."""

import os
import pwd
from collections.abc import Sequence
from pathlib import Path

from agent import wiring
from agent.codec.gzip_members import deflate_member, inflate_member
from agent.config.settings import Config
from agent.machine import host
from agent.machine.account import agent_user
from agent.machine.lock import activity_of_holder
from agent.selftest.check import Check, CheckOutcome, amount, failed, passed, warned
from agent.selftest.context import Context
from agent.selftest.exporting import metrics

_FILE = ("configuration: file",)
# Bytes. The journal may grow to this size: 1,000 unfinished tasks of 64 KiB (ARCHITECTURE.md).
_LEAST_SPACE = 64 << 20
_EASY_SPACE = 256 << 20
# Files that the engine has open besides the tablespaces: its logs, pipes and libraries.
_OTHER_FILES = 200
# `aes`, and the carry-less multiplication that AES-GCM needs, on x86 and on ARM.
_AES = ({"aes", "pclmulqdq"}, {"aes", "pmull"})
_SIMD = ("avx512f", "avx2", "asimd", "sse4_2")


def checks(context: Context) -> Sequence[Check]:
    return [
        Check("cores", lambda: _cores(context.config), _FILE),
        Check("memory", lambda: _memory(context.config), _FILE),
        Check("state space", lambda: _state_space(context.config), _FILE),
        Check("restore space", lambda: _restore_space(context), _FILE),
        Check("clock", _clock),
        Check("aes", _aes),
        Check("simd", _simd),
        Check("compression", _compression),
        Check("open files", lambda: _open_files(context)),
        Check("user", lambda: _user(context), _FILE),
        Check("agent", lambda: _agent(context.config), _FILE),
        Check("metrics", lambda: metrics(context.config), _FILE),
    ]


def _cores(config: Config) -> CheckOutcome:
    here, asked = host.cores(), config.pipeline.cores
    if asked > here:
        return warned(
            f"[pipeline] cores = {asked}, but this process may use {here}",
            f"set [pipeline] cores to {here}, or to 0 for all",
        )
    return passed(f"the data path uses {asked or here} of {here} cores")


def _memory(config: Config) -> CheckOutcome:
    """Check the memory for the data path's buffers, and for preparing a restore."""
    wiring.path_settings(config).plan()
    free, budget = host.available_bytes(), config.pipeline.memory_bytes
    found = f"{amount(free)} available, the data path's buffers take {amount(budget)}"
    cure = "lower [pipeline] memory_bytes, or give the machine or the unit (MemoryMax=) more memory"
    if free < budget:
        return failed(found, cure)
    if free < budget + config.engine.prepare_memory_bytes:
        prepare = amount(config.engine.prepare_memory_bytes)
        return warned(f"{found}, preparing a restore takes {prepare}", cure)
    return passed(found)


def _state_space(config: Config) -> CheckOutcome:
    folder = config.agent.state_folder
    free = host.free_bytes(folder)
    found = f"{amount(free)} free in {folder}"
    cure = f"free some space on the filesystem of {folder}, or move [agent] state_folder"
    if free < _LEAST_SPACE:
        return failed(f"{found}; the journal needs up to {amount(_LEAST_SPACE)}", cure)
    return warned(found, cure) if free < _EASY_SPACE else passed(found)


def _restore_space(context: Context) -> CheckOutcome:
    """Check that a restore of this instance would fit below each restore root.

    If it does not fit, this is only a warning, because a restore may be done elsewhere.
    """
    roots, needed = context.config.agent.restore_roots, context.datadir_bytes
    if not roots:
        return passed("[agent] restore_roots is not set: restores need --local")
    percent = context.config.agent.restore_reserve_percent
    lacking = [f"{root} ({why})" for root in roots if (why := _lacks(root, needed, percent))]
    if lacking:
        return warned(
            f"a restore can't go to {', '.join(lacking)}",
            "make the directory writable for the agent's OS user, free space there, or correct "
            "[agent] restore_roots",
        )
    size = (
        f"the datadir takes {amount(needed)}"
        if needed is not None
        else "the size of the datadir is not known"
    )
    free = ", ".join(f"{amount(host.free_bytes(root))} free in {root}" for root in roots)
    return passed(f"{free}; {size}")


def _lacks(root: Path, needed: int | None, percent: float) -> str | None:
    """Return why a restore of `needed` bytes can't go to `root`, or None if it can.

    If `needed` is None, the size is not known and the free space is not checked. `percent` is the
    part of the filesystem that must stay free.
    """
    try:
        if not root.is_dir():
            return "it does not exist or is not a directory"
    except PermissionError:
        return "it can't be reached"
    if not os.access(root, os.W_OK | os.X_OK):
        return "it can't be written to"
    space = host.space_of(root)
    kept = int(space.total * percent / 100)
    if needed is None or space.free >= needed + kept:
        return None
    return f"{amount(space.free)} free, {amount(needed)} needed, {amount(kept)} must stay free"


def _clock() -> CheckOutcome:
    if host.clock_synchronised():
        return passed("this machine's clock is synchronised")
    return warned(
        "this machine's clock is not synchronised, or this process can't find out",
        "run an NTP client: systemctl enable --now systemd-timesyncd (or chrony)",
    )


def _aes() -> CheckOutcome:
    flags = host.cpu_flags()
    if any(needed <= flags for needed in _AES):
        return passed("AES and carry-less multiply" + (", vectorised" if "vaes" in flags else ""))
    return warned(
        "the processor shows no AES instructions: encryption will be slow",
        "give the virtual machine the host's CPU model (libvirt: <cpu mode='host-passthrough'/>)",
    )


def _simd() -> CheckOutcome:
    there = [flag for flag in _SIMD if flag in host.cpu_flags()]
    if there:
        return passed(f"{there[0]} for compression and checksums")
    return warned(
        "the processor shows no SIMD instructions: compression will be slow",
        "give the virtual machine the host's CPU model (libvirt: <cpu mode='host-passthrough'/>)",
    )


def _compression() -> CheckOutcome:
    block = b"".join(b"row %d of a table; " % number for number in range(4000))
    member = deflate_member(block)
    if inflate_member(member) != block:
        return failed(
            "ISA-L decompressed a block to other bytes than it had compressed",
            "reinstall the Python package isal with pip",
        )
    return passed(f"ISA-L compressed {len(block)} bytes to {len(member)}, and restored them")


def _open_files(context: Context) -> CheckOutcome:
    """Check that the hard limit of open files is high enough for the engine.

    The soft limit does not matter: the engine raises it itself. The engine keeps each tablespace
    open.
    """
    soft, hard = host.open_files()
    tables = context.tablespaces
    found = f"hard limit {hard}, soft limit {soft}"
    if tables is None:
        return passed(f"{found}; the number of tablespaces is not known")
    found = f"{found} for {tables} tablespaces"
    if hard >= tables + _OTHER_FILES:
        return passed(found)
    return failed(found, f"set LimitNOFILE={2 * tables + 1000} in the agent's systemd unit")


def _user(context: Context) -> CheckOutcome:
    """Check that this process runs as the owner of the datadir, or as root.

    An installed agent runs as the server's own OS user. An agent without a unit may also run as
    root.
    """
    user = _name(os.geteuid())
    if context.server is None:
        return passed(f"running as {user}; the database server's user is not known")
    owner = _owner(context.server.datadir)
    if owner is None or owner == user:
        return passed(f"running as {user}, who owns the datadir" if owner else f"running as {user}")
    if os.geteuid() == 0:
        return _root(agent_user(context.config.agent.state_folder), owner)
    return warned(
        f"running as {user}, but the datadir belongs to {owner}: restored files would belong to "
        f"{user}",
        f"run the agent and this self-test as {owner}, or as root",
    )


def _root(agent: int | None, owner: str) -> CheckOutcome:
    """Return the outcome for root, a warning if the installed agent runs as another user.

    root may read files that the agent can't read. So the checks that root passes say little about
    the agent.
    """
    if agent is None:
        return passed(f"running as root; the engine runs as {owner}, who owns the datadir")
    user = _name(agent)
    return warned(
        f"running as root, but the agent here runs as {user}: a file that root can read may be "
        f"closed to {user}",
        "systemctl start backup-agent-self-test, or "
        f"sudo -u {user} backup-agent self-test if {user} may read the secrets",
    )


def _owner(folder: Path) -> str | None:
    try:
        return _name(folder.stat().st_uid)
    except OSError:
        return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _agent(config: Config) -> CheckOutcome:
    path = config.agent.lock_file
    running = activity_of_holder(path) is not None
    return passed(f"{'one' if running else 'no'} agent runs with {path.parent}")
