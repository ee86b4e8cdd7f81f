"""The texts that `keygen` prints, which are a page to keep elsewhere and the next steps."""

from collections.abc import Sequence
from pathlib import Path

from agent.keys.master import MasterKey, fingerprint, key_text
from agent.keys.recovery import RecoveryKey
from agent.model import printable

_RULE = "=" * 78
_UNIQUE = (
    "no other machine of the tenant may have a key with the id {}: agents could not tell its "
    "records from those of this machine. Run keygen without an id to get a unique one"
)


def master_page(key: MasterKey, now: str) -> str:
    """Return the page to keep away from this machine.

    The page contains the key itself.
    """
    text = key_text(key.secret)
    return f"""\
{_RULE}
MASTER KEY of backup-agent. Keep this page away from the database's machine.

  id       {key.id}
  made     {now}
  key      {text}
  SHA-256  {fingerprint(text.encode())}

Purpose        This key opens every backup that was made with it, and signs their
               records. A person with this key and the stored objects has the
               database.
Why keep it    If its only copy is on the database's machine, losing that machine
               loses every backup.
Put it back    Write the {len(text)} characters behind "key" into a file {key.id}.key in
               the directory that [keys] folder names, with mode 0600, owned by
               the agent's user. Then any agent of this tenant opens the backups.
               Without an agent: see docs/restore-without-the-agent.md.
Check a copy   tr -d '\\n' < {key.id}.key | sha256sum
{_RULE}"""


def after_master(key_id: str, path: Path, of_root: bool, *, chosen: bool) -> Sequence[str]:
    """Return notes on the next steps after a master key was made.

    `of_root` means that the key belongs to root, and `chosen` that the caller gave the key its id.
    """
    for_root = ". It belongs to root: give it to the agent's user, or let the agent's unit load it"
    return (
        f"the key is in {printable(str(path))}{for_root if of_root else ''}",
        *([_UNIQUE.format(key_id)] if chosen else []),
        "keep the page above off this machine: print it, or put it into a password manager",
        f'to use the key for backups, set [keys] active = "{key_id}", then restart the agent',
        f"to use it for the existing backups too, run backup-agent rekey --to {key_id}",
        "when rekey has exited with 0, you may remove an older key from this machine, but keep "
        "its page",
    )


def recovery_page(key: RecoveryKey, private: Path, now: str, encrypted: bool) -> str:
    """Return the page to keep with the private half.

    Nothing on the page is secret. `encrypted` means that a passphrase protects the private half.
    """
    protection = ""
    if encrypted:
        protection = "\n               The private half is encrypted with the passphrase you gave."
    return f"""\
{_RULE}
RECOVERY KEY of backup-agent. Keep this page with the private half.

  id       {key.id}
  made     {now}
  private  {printable(str(private))}
  SHA-256  {fingerprint(key.pem())}   (of the public half)

Purpose        The public half encrypts the data key of every backup, in addition to
               the master key. Only the private half decrypts it again.{protection}
Why have it    The private half opens a backup if the master key is lost. The public
               half, which stays on the database's machine, opens no backup.
Limits         It signs nothing. With it alone you can't tell whether a record was
               made by the agent, or by someone else who could write to the store.
Compare        openssl pkey -in PRIVATE -pubout | sha256sum
Use it         docs/restore-without-the-agent.md; openssl opens the data key
{_RULE}"""


def after_recovery(key_id: str, private: Path) -> Sequence[str]:
    """Return notes on the next steps after a recovery key was made."""
    return (
        f"move {printable(str(private))} off this machine now, and keep two copies of it",
        f'add "{key_id}" to [keys] recovery, then restart the agent',
        "to use it for the existing backups too, run backup-agent rekey --to ID with the id of the "
        "master key in use",
    )
