"""The verbs `keygen` and `rekey`.

`keygen` makes master keys and recovery keys. `rekey` brings all records under one master key.
"""

import argparse
import getpass
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from agent import wiring
from agent.cli import embedded, escrow, streams, tables
from agent.cli.keyfile import check_free, make_folder, write_once
from agent.cli.verb import Verbs, add_json, add_store, add_verb
from agent.config.reading import keys_folder
from agent.config.secrets import read_secret
from agent.config.settings import Config, need
from agent.errors import BackupBusy, ConfigInvalid, KeyUnusable, UsageWrong
from agent.keys.ids import check_key_id, unique_key_id
from agent.keys.master import KEY_BYTES, MasterKey, fingerprint, key_text
from agent.keys.recovery import RecoverySecret
from agent.model import printable, utc_now
from agent.operations.rekey import Rekey, Rekeyed, RekeyOutcome

# In characters. OpenSSL derives the key of a PKCS #8 file with only 2048 rounds, so a short
# passphrase could be guessed.
_LEAST_PASSPHRASE = 16
# Requests at the same time. A record takes three requests to read and one to write. Most of that
# time is spent on waiting for answers.
_CONNECTIONS = 8


def add(verbs: Verbs) -> None:
    keygen_verb = add_verb(
        verbs,
        "keygen",
        keygen,
        "make a master key, or a recovery key",
        configuration=Path,
        examples=("", "--recovery offline-1 --passphrase --private /media/usb/offline-1.pem"),
    )
    keygen_verb.add_argument(
        "id",
        nargs="?",
        help="1 to 64 letters, digits, dots, dashes and underscores; no other key of the tenant "
        "may have this id (default: the machine's name, or `recovery` for a recovery key, then the "
        "day, and six digits of the key's SHA-256)",
    )
    keygen_verb.add_argument(
        "--folder", type=Path, help="the directory for the key, instead of [keys] folder"
    )
    keygen_verb.add_argument("--recovery", action="store_true", help="make a recovery key")
    keygen_verb.add_argument(
        "--private",
        metavar="FILE",
        type=Path,
        help="the file to write the recovery key's private half to",
    )
    secrets = keygen_verb.add_mutually_exclusive_group()
    secrets.add_argument(
        "--passphrase-file",
        metavar="FILE",
        type=Path,
        help="the file with the passphrase that encrypts the private half",
    )
    secrets.add_argument(
        "--passphrase", action="store_true", help="ask for the passphrase on the terminal"
    )
    rekey_verb = add_verb(
        verbs,
        "rekey",
        rekey,
        "bring all records under another master key",
        examples=("--dry-run --to KEY", "--to KEY"),
    )
    rekey_verb.add_argument("--to", required=True, metavar="ID", help="a key in [keys] folder")
    rekey_verb.add_argument(
        "--dry-run", action="store_true", help="show the result, but change nothing"
    )
    add_store(rekey_verb)
    add_json(rekey_verb)


def keygen(config_path: Path, arguments: argparse.Namespace) -> int:
    """Make a key, print its page and the next steps, and return the exit status.

    The directory for the key comes from --folder, or from [keys] folder. The rest of the
    configuration may be missing.
    """
    if arguments.id is not None:
        check_key_id(arguments.id)
    if arguments.recovery != (arguments.private is not None):
        raise UsageWrong(
            "--recovery and --private FILE go together",
            hint="backup-agent keygen --recovery --private FILE",
        )
    if not arguments.recovery and (arguments.passphrase or arguments.passphrase_file):
        raise UsageWrong(
            "a passphrase is for the private half of a recovery key only",
            hint="remove the passphrase option, or add --recovery --private FILE",
        )
    folder = arguments.folder.absolute() if arguments.folder else _folder(config_path)
    passphrase = _passphrase(arguments) if arguments.recovery else b""
    make_folder(folder)
    if arguments.recovery:
        _make_recovery(arguments.id, folder, arguments.private.absolute(), passphrase)
    else:
        _make_master(arguments.id, folder)
    return 0


def _free(folder: Path, key_id: str) -> str:
    """Return `key_id`, or raise KeyUnusable if a key in `folder` has that id."""
    for suffix in (".key", ".pub"):
        check_free(folder / f"{key_id}{suffix}")
    return key_id


def _folder(config_path: Path) -> Path:
    try:
        return keys_folder(config_path)
    except ConfigInvalid as error:
        raise ConfigInvalid(
            str(error),
            hint="name the directory for the key with --folder, or correct the configuration file",
        ) from error


def _passphrase(arguments: argparse.Namespace) -> bytes:
    if arguments.passphrase_file:
        given = read_secret(arguments.passphrase_file, "--passphrase-file")
    elif arguments.passphrase:
        given = _ask_passphrase()
    else:
        return b""
    if len(given) < _LEAST_PASSPHRASE:
        raise UsageWrong(
            f"the passphrase has fewer than {_LEAST_PASSPHRASE} characters",
            hint="take several random words: a person who finds the file has years to guess",
        )
    return given.encode()


def _ask_passphrase() -> str:
    try:
        given = getpass.getpass("passphrase of the private half: ")
        again = getpass.getpass("repeat the passphrase: ")
    except EOFError:
        raise UsageWrong(
            "no passphrase was typed",
            hint="type it on a terminal, or use --passphrase-file FILE",
        ) from None
    if again != given:
        raise UsageWrong("the two passphrases differ", hint="run the command again")
    return given


def _make_master(key_id: str | None, folder: Path) -> None:
    secret = os.urandom(KEY_BYTES)
    digest = fingerprint(key_text(secret).encode())
    key = MasterKey(_free(folder, key_id or _new_id(platform.node(), digest)), secret)
    path = folder / f"{key.id}.key"
    write_once(path, key_text(key.secret).encode() + b"\n", 0o600, give=True)
    print(escrow.master_page(key, utc_now()))
    _note(escrow.after_master(key.id, path, _belongs_to_root(folder), chosen=key_id is not None))


def _new_id(name: str, digest: str) -> str:
    return unique_key_id(name, utc_now()[:10].replace("-", ""), digest)


def _belongs_to_root(folder: Path) -> bool:
    return folder.stat().st_uid == 0


def _make_recovery(key_id: str | None, folder: Path, private: Path, passphrase: bytes) -> None:
    check_free(private)
    pair = RecoverySecret.make(key_id or "recovery")
    key_id = _free(folder, key_id or _new_id("recovery", fingerprint(pair.public.pem())))
    secret = RecoverySecret(key_id, pair.private)
    probe = os.urandom(KEY_BYTES)
    if secret.unwrap(secret.public.wrap(probe)) != probe:
        raise KeyUnusable(f"the recovery key {key_id} can't decrypt its own test data")
    write_once(private, secret.pem(passphrase), 0o600)
    write_once(folder / f"{key_id}.pub", secret.public.pem(), 0o644, give=True)
    print(escrow.recovery_page(secret.public, private, utc_now(), bool(passphrase)))
    _note(escrow.after_recovery(key_id, private))


def _note(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"backup-agent: note: {line}", file=sys.stderr)


def rekey(config: Config, arguments: argparse.Namespace) -> int:
    """Bring all records under the key `--to`, and return 1 if some are not under it, else 0."""
    embedded.need_key(config, arguments)
    keyring = wiring.keyring(config)
    counts = dict.fromkeys(RekeyOutcome, 0)
    remaining: list[Rekeyed] = []
    with wiring.catalogue(config, keyring) as catalogue:
        operation = Rekey(catalogue, keyring, arguments.to, dry_run=arguments.dry_run)
        _note_of_active(need(config.keys, "keys").active, arguments.to)
        for one in _with_progress(operation.run(_CONNECTIONS)):
            counts[one.outcome] += 1
            if one.outcome in (RekeyOutcome.LEFT, RekeyOutcome.FAILED):
                remaining.append(one)
    if arguments.json:
        print(tables.as_json(_as_json(arguments, counts, remaining)))
    else:
        _show(arguments, counts, remaining)
    if not remaining:
        return 0
    codes = [one.code for one in remaining if one.outcome is RekeyOutcome.FAILED]
    tables.complain(
        codes[0] if codes else BackupBusy.code,
        f"{len(remaining)} of the records are not under the key {arguments.to}",
        "keep the old key, remove the cause that is shown for each record, and run rekey again",
    )
    return 1


def _note_of_active(active: str, to: str) -> None:
    if active != to and streams.wants_notes():
        _note(
            [
                f"[keys] active is {active!r}: backups are still made with that key",
                f"restart each agent that was started before {to}.key existed: it can't read the "
                "re-wrapped records",
            ]
        )


def _shows_progress() -> bool:
    return sys.stderr.isatty() and streams.wants_notes()


def _with_progress(rekeyed: Iterator[Rekeyed]) -> Iterator[Rekeyed]:
    bar = tqdm(rekeyed, desc="rekey", unit=" records", disable=not _shows_progress())
    with bar:
        yield from bar


def _as_json(
    arguments: argparse.Namespace, counts: dict[RekeyOutcome, int], remaining: list[Rekeyed]
) -> dict[str, Any]:
    return {
        "to": arguments.to,
        "dry_run": arguments.dry_run,
        "done": counts[RekeyOutcome.DONE],
        "already": counts[RekeyOutcome.ALREADY],
        "left": counts[RekeyOutcome.LEFT],
        "failed": counts[RekeyOutcome.FAILED],
        "remaining": [one._asdict() for one in remaining],
    }


def _show(
    arguments: argparse.Namespace, counts: dict[RekeyOutcome, int], remaining: list[Rekeyed]
) -> None:
    if remaining:
        rows = ((one.backup_id, one.outcome, one.code, printable(one.why)) for one in remaining)
        print(tables.table(["ID", "Outcome", "Error", "Why"], rows))
    did = "would be re-wrapped" if arguments.dry_run else "re-wrapped"
    print(
        f"{sum(counts.values())} records: {counts[RekeyOutcome.DONE]} {did} for {arguments.to}, "
        f"{counts[RekeyOutcome.ALREADY]} were already, {counts[RekeyOutcome.LEFT]} left, "
        f"{counts[RekeyOutcome.FAILED]} failed"
    )
