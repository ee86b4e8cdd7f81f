"""A stand-in for `xtrabackup` and `xbstream`, which can't be installed here. A script runs it.

The words and the behaviour of 2.4 were seen on 2.4.20 with MySQL 5.7.32. It silently ignores
options that it doesn't know, so a test looks at the recorded calls. Later series are as strict as
Percona's documentation and source say. An unknown option, a missing value or a prepare out of order
fails.

A test sets these globals: `ROLE` (xtrabackup or xbstream), `VERSION` (such as `8.0.35-30`),
`STREAM` (the file with the stream that a backup writes), and `SAYS` (lines of an error with which a
backup fails).
"""

import re
import stat
import struct
import sys
import zlib
from pathlib import Path

ROLE: str = globals()["ROLE"]
VERSION: str = globals()["VERSION"]
STREAM: str = globals()["STREAM"]
SAYS: list[str] = globals()["SAYS"]

NUMBER = tuple(map(int, re.findall(r"\d+", VERSION.split("-")[0])))
# Options that these series document. True means that the option needs a value.
OPTIONS = {
    "backup": False,
    "prepare": False,
    "stream": True,
    "target-dir": True,
    "datadir": True,
    "parallel": True,
    "incremental-lsn": True,
    "incremental-dir": True,
    "open-files-limit": True,
    "log-copy-interval": True,
    "ftwrl-wait-timeout": True,
    "ftwrl-wait-threshold": True,
    "lock-ddl-timeout": True,
    "backup-lock-timeout": True,
    "slave-info": False,
    "galera-info": False,
    "safe-slave-backup": False,
    "safe-slave-backup-timeout": True,
    "no-version-check": False,
    "keyring-file-data": True,
    "server-id": True,
    "lock-ddl": True,
    "use-memory": True,
    "tmpdir": True,
    "apply-log-only": False,
}
if NUMBER >= (8, 0, 30):
    OPTIONS["register-redo-log-consumer"] = False
OLD = NUMBER < (8, 0)
BASED_ON = "5.7.26" if OLD else VERSION.split("-")[0]
CLOCK = "261130 06:49:38"


def say(text: str, level: str = "Note") -> None:
    """Print a line of the log in the version's form.

    2.4 puts the time only before lines of its own. Its error lines have no time.
    """
    if NUMBER >= (8, 0, 28):
        head = f"2024-01-01T12:00:00.000000-00:00 0 [{level}] [MY-011825] [Xtrabackup] "
    elif OLD:
        head = "" if level == "ERROR" else f"{CLOCK} "
    else:
        head = f"{CLOCK} " if text.startswith(("completed OK!", ">>")) else "xtrabackup: "
    print(head + text, file=sys.stderr, flush=True)


def plain(*lines: str) -> None:
    """Print lines without a time, if the version is 2.4."""
    if OLD:
        print("\n".join(lines), file=sys.stderr, flush=True)


def scanned(times: int) -> None:
    """Print lines of the thread that copies the redo log.

    That thread prints fifty lines a second that say nothing of interest.
    """
    for _ in range(times):
        say(">> log scanned up to (3626807)")


def die(text: str, status: int = 1) -> None:
    say(text, "ERROR")
    sys.exit(status)


def main(arguments: list[str]) -> None:
    if ROLE == "xbstream":
        extract(arguments)
    elif arguments == ["--no-defaults", "--version"]:
        print("xtrabackup: recognized server arguments: ", file=sys.stderr)
        print(
            # the program's name as it was called
            f"{sys.argv[0]} version {VERSION} based on MySQL server {BASED_ON} Linux (x86_64) "
            "(revision id: 4a6ced01)",
            file=sys.stderr,
        )
    else:
        run(arguments)


def run(arguments: list[str]) -> None:
    file = None
    if arguments[0].startswith("--defaults-file="):
        file = arguments.pop(0).partition("=")[2]
    options = parsed(arguments)
    if "backup" in options and file is not None:
        check_option_file(Path(file))
        backup(options)
    elif "prepare" in options:
        prepare(options)
    else:
        die("neither --backup with an option file nor --prepare")
    say("completed OK!")


def parsed(arguments: list[str]) -> dict[str, str]:
    options = {}
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            die(f"xtrabackup: Error: unknown argument: '{argument}'")
        if name not in OPTIONS:
            if OLD:
                continue
            die(f"unknown option '{argument}'", 255)
        if OPTIONS[name] != bool(equals and value):
            die(f"option '--{name}' requires an argument, or takes none", 255)
        options[name] = value
    return options


def check_option_file(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) != 0o600:
        die(f"{path} is open to others")
    group, *lines = path.read_text().splitlines()
    names = [line.partition("=")[0] for line in lines]
    if group != "[xtrabackup]" or names != ["user", "password", "socket"]:
        die(f"unknown variable in {path}: {group} {names}", 255)


def backup(options: dict[str, str]) -> None:
    if options["stream"] != "xbstream" or not int(options["parallel"]):
        die(f"Invalid --stream argument: {options['stream']}")
    plain(
        "xtrabackup: recognized server arguments: --parallel=2 --open_files_limit=65535 ",
        "xtrabackup: recognized client arguments: --user=agent --password=* --backup=1 ",
    )
    say("Connecting to MySQL server host: localhost, user: agent, password: set, port: not set")
    for line in SAYS:
        say(line, "ERROR")
    if SAYS:
        # other threads continue for a while
        scanned(60)
        sys.exit(1)
    plain("Using server version 5.7.32-log", "xtrabackup: uses posix_fadvise().")
    plain(f"xtrabackup: cd to {options.get('datadir', '/another/instance')}")
    scanned(60)
    say("[02] Streaming ./mysql/help_topic.ibd")
    say("[02]        ...done")
    sys.stdout.buffer.write(Path(STREAM).read_bytes())
    sys.stdout.buffer.flush()
    say("Executing FLUSH TABLES WITH READ LOCK...")
    plain("xtrabackup: The latest check point (for incremental): '3626688'")
    plain("xtrabackup: Stopping log copying thread.")
    print(".", end="", file=sys.stderr)
    scanned(1)
    plain("")
    say("Executing UNLOCK TABLES")
    plain("MySQL binlog position: filename 'binlog.000002', position '1815337'")
    plain("xtrabackup: Transaction log of lsn (3626688) to (3626807) was copied.")


def note(folder: str) -> dict[str, str]:
    text = (Path(folder) / "xtrabackup_checkpoints").read_text()
    return dict(re.findall(r"(\w+) = (\S+)", text))


def prepare(options: dict[str, str]) -> None:
    """Prepare the target, or refuse an incremental.

    A target that was prepared without --apply-log-only takes no more incrementals.
    """
    if not int(options["use-memory"]):
        die("no --use-memory")
    target = note(options["target-dir"])
    if "incremental-dir" in options:
        added = note(options["incremental-dir"])
        if target["backup_type"] != "log-applied":
            die("applying incremental backup needs target prepared with --apply-log-only.")
        if added["from_lsn"] != target["to_lsn"]:
            die("This incremental backup seems not to be proper for the target.")
        target |= {name: added[name] for name in ("to_lsn", "last_lsn")}
    elif target["backup_type"] != "full-backuped":
        # Seen on 2.4: it prints this line and ends with status 0.
        say("This target seems to be already prepared.")
        if not OLD:
            sys.exit(1)
    target["backup_type"] = "log-applied" if "apply-log-only" in options else "full-prepared"
    lines = [f"{name} = {value}\n" for name, value in target.items()]
    (Path(options["target-dir"]) / "xtrabackup_checkpoints").write_text("".join(lines))


def extract(arguments: list[str]) -> None:
    if arguments[:2] != ["-x", "-C"] or len(arguments) != 3:
        sys.exit(f"xbstream: {arguments}")
    folder, stream = Path(arguments[2]), sys.stdin.buffer
    files = {}
    while magic := stream.read(8):
        kind = stream.read(2)[1:]
        name = stream.read(struct.unpack("<I", stream.read(4))[0]).decode()
        path = folder / name
        if magic != b"XBSTCK01" or kind not in (b"P", b"S", b"E"):
            sys.exit("xb_stream_read_chunk(): wrong chunk magic")
        if name not in files:
            path.parent.mkdir(exist_ok=True)
            files[name] = path.open("xb")
        if kind == b"E":
            files[name].truncate(files[name].tell())
            files[name].close()
        else:
            write_chunk(files[name], stream, kind)


def write_chunk(file, stream, kind: bytes) -> None:  # type: ignore[no-untyped-def]
    entries = struct.unpack("<I", stream.read(4))[0] if kind == b"S" else 0
    length, offset, expected = struct.unpack("<QQI", stream.read(20))
    table = stream.read(8 * entries)
    content = stream.read(length)
    if zlib.crc32(content, zlib.crc32(table)) != expected or file.tell() != offset:
        sys.exit("xb_stream_read_chunk(): invalid checksum or offset")
    pairs = list(struct.iter_unpack("<II", table)) if entries else [(0, length)]
    for skip, count in pairs:
        file.seek(skip, 1)
        file.write(content[:count])
        content = content[count:]


if __name__ == "__main__":
    main(sys.argv[1:])
