"""What `keygen` says: the page to keep elsewhere, and what to do next."""

from collections.abc import Sequence
from pathlib import Path

from agent.keys.master import MasterKey, fingerprint, key_text
from agent.keys.recovery import RecoveryKey
from agent.model import printable

_RULE = "=" * 78
_UNIQUE = (
    "no other machine of the tenant may have a key with the id {}: its records could not be told "
    "from these; without an id keygen makes one that is unique"
)


def master_page(key: MasterKey, now: str) -> str:
    """The text that has to be kept off the machine; it holds the key itself."""
    text = key_text(key.secret)
    return f"""\
{_RULE}
MASTER KEY of backup-agent. Keep this page where the database's machine is not.

  id       {key.id}
  made     {now}
  key      {text}
  SHA-256  {fingerprint(text.encode())}

What it is     It opens every backup that was made with it, and vouches for their
               records. Whoever has it and the stored objects has the database.
Why keep it    If its only copy is on the database's machine, losing that machine
               loses every backup.
Put it back    Write the {len(text)} characters behind "key" into a file {key.id}.key in
               the folder that [keys] folder names, with mode 0600, owned by the
               agent's user. Any agent of this tenant opens the backups then; and
               without one: docs/restore-without-the-agent.md.
Check a copy   tr -d '\\n' < {key.id}.key | sha256sum
{_RULE}"""


def after_master(key_id: str, path: Path, of_root: bool, *, chosen: bool) -> Sequence[str]:
    """Return what to do next; `chosen`: someone gave the key its id."""
    for_root = "; it belongs to root, so let the agent's user or its unit have it"
    return (
        f"the key is in {printable(str(path))}{for_root if of_root else ''}",
        *([_UNIQUE.format(key_id)] if chosen else []),
        "keep the page above off this machine: print it, or put it into a password manager",
        f'for backups to use it: [keys] active = "{key_id}", then restart the agent',
        f"for the backups that are there: backup-agent rekey --to {key_id}",
        "an older key may go from this machine once rekey has exited with 0; keep its page",
    )


def recovery_page(key: RecoveryKey, private: Path, now: str, closed: bool) -> str:
    """What to file with the private half; nothing of it is secret."""
    passphrase = "\n               It is closed by the passphrase you gave." if closed else ""
    return f"""\
{_RULE}
RECOVERY KEY of backup-agent. Keep this page with the private half.

  id       {key.id}
  made     {now}
  private  {printable(str(private))}
  SHA-256  {fingerprint(key.pem())}   (of the public half)

What it is     Its public half closes the data key of every backup besides the master
               key; only the private half opens it again.{passphrase}
Why have it    A backup can be opened with it when the master key is lost, and nothing
               on the database's machine opens a backup with it.
What it isn't  It signs nothing: with it alone nobody can tell whether a record was
               made by the agent, or by someone who could write to the store.
Compare        openssl pkey -in PRIVATE -pubout | sha256sum
Use it         docs/restore-without-the-agent.md; openssl opens the data key
{_RULE}"""


def after_recovery(key_id: str, private: Path) -> Sequence[str]:
    return (
        f"move {printable(str(private))} off this machine now, and keep two copies of it",
        f'add "{key_id}" to [keys] recovery, then restart the agent',
        "for the backups that are there: backup-agent rekey --to ID, of the master key in use",
    )
