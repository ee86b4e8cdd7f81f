"""Build an image from a Dockerfile without Docker: the steps run in trees that debootstrap makes.

Only the instructions that this project uses are known. Others are refused.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.stack.process import StackError
from tests.stack.trove.images import SYSTEM_PATH, Image

_SECONDS: Final = 600
# What Docker passes to each RUN if the builder has it.
_PROXIES: Final = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_AUTHORITIES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_AUTHORITIES_INSIDE: Final = "/run/authorities.crt"
# Arguments: the tree, the shell command, the certificates inside, and the variables. The mounts end
# with the processes.
_RUN: Final = """
tree=$1 command=$2 authorities=$3
shift 3
mount -t proc proc "$tree/proc"
mount --rbind /dev "$tree/dev"
for pair in /etc/resolv.conf:/etc/resolv.conf "$AUTHORITIES:$authorities"; do
    if [[ -e ${pair%%:*} ]]; then
        rm -f "$tree${pair#*:}"
        touch "$tree${pair#*:}"
        mount --bind "${pair%%:*}" "$tree${pair#*:}"
    fi
done
# this shell stays as the first process: it reaps processes that have lost their parent
chroot "$tree" /usr/bin/env -i "$@" /bin/sh -c "$command" || exit
"""


@dataclass
class Stage:
    """A root file system, and what an image says of its containers."""

    root: Path
    variables: dict[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH})
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)

    def image(self, tags: list[str]) -> Image:
        """Return it as an image of the stand-in for Docker."""
        others = dict(self.variables)
        programs = others.pop("PATH").removesuffix(f":{SYSTEM_PATH}")
        return Image(tags, programs, self.directory, self.entrypoint, others, root=str(self.root))


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield each instruction of a Dockerfile with its arguments."""
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            continue
        joined += line.removesuffix("\\")
        if not line.endswith("\\") and joined.strip():
            name, _, rest = joined.strip().partition(" ")
            yield name, rest.strip()
            joined = ""


class Build:
    """One build. `images` are the images that FROM may name, besides Debian's own."""

    def __init__(
        self,
        context: Path,
        scratch: Path,
        *,
        arguments: Mapping[str, str] | None = None,
        images: Mapping[str, Stage] | None = None,
    ) -> None:
        self._context = context
        self._scratch = scratch
        self._given = dict(arguments or {})
        self._stages = dict(images or {})
        self._patterns = list(_ignored(context))
        self._global: dict[str, str] = {}
        self._stage: Stage | None = None
        self._steps: dict[str, Callable[[str], None]] = {
            **{"ARG": self._arg, "COPY": self._copy, "ENTRYPOINT": self._entrypoint},
            **{"ENV": self._env, "FROM": self._from, "RUN": self._run, "WORKDIR": self._workdir},
        }

    def run(self, dockerfile: str) -> Stage:
        """Perform all instructions, and return the last stage."""
        for name, rest in instructions(dockerfile):
            if name not in self._steps:
                raise StackError(f"the instruction {name} is not known here")
            self._steps[name](rest)
        return self._here

    @property
    def _here(self) -> Stage:
        assert self._stage, "no FROM"
        return self._stage

    # --- the instructions ----------------------------------------------------------------------

    def _from(self, rest: str) -> None:
        name, _, stage = self._expand(rest).partition(" AS ")
        root = self._scratch / f"stage-{len(list(self._scratch.glob('stage-*')))}"
        parent = self._stages.get(name) or Stage(debian(name, self._scratch))
        subprocess.run(["cp", "--archive", "--reflink=auto", parent.root, root], check=True)
        here = Stage(root, dict(parent.variables), parent.directory, list(parent.entrypoint))
        self._stage = self._stages[stage or root.name] = here

    def _arg(self, rest: str) -> None:
        name, equals, default = rest.partition("=")
        value = self._given.get(name, self._global.get(name))
        if value is None and not equals:
            return  # it isn't set
        value = self._expand(default) if value is None else value
        (self._global if self._stage is None else self._here.arguments)[name] = value

    def _env(self, rest: str) -> None:
        name, equals, value = rest.partition("=")
        assert equals
        assert " " not in value, "one variable a line"
        self._here.variables[name] = self._expand(value)

    def _workdir(self, rest: str) -> None:
        self._here.directory = os.path.join(self._here.directory, self._expand(rest))
        self._inside(self._here.directory).mkdir(parents=True, exist_ok=True)

    def _entrypoint(self, rest: str) -> None:
        self._here.entrypoint = json.loads(rest)

    def _run(self, rest: str) -> None:
        variables = self._here.variables | self._here.arguments
        variables |= {name: os.environ[name] for name in _PROXIES if name in os.environ}
        variables |= {"HOME": "/root"}
        if _AUTHORITIES.exists():
            # pip trusts only its own list, which lacks an authority of this machine's network
            variables["PIP_CERT"] = _AUTHORITIES_INSIDE
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-euc", _RUN]
        argv += ["run", str(self._here.root), rest, _AUTHORITIES_INSIDE]
        argv += [f"{name}={value}" for name, value in variables.items()]
        _checked(argv, {**os.environ, "AUTHORITIES": str(_AUTHORITIES)})

    def _copy(self, rest: str) -> None:
        *words, target = self._expand(rest).split()
        flags = dict(one.removeprefix("--").split("=") for one in words if one.startswith("--"))
        sources = [one for one in words if not one.startswith("--")]
        assert set(flags) <= {"from", "chmod"}, flags
        origin = self._stages[flags["from"]].root if "from" in flags else self._context
        goal = self._inside(os.path.join(self._here.directory, target))
        copied = 0
        for one in sources:
            for path in [origin] if one == "." else sorted(origin.glob(one.lstrip("/"))):
                into = goal / path.name if path.is_file() and target.endswith("/") else goal
                copied += self._copy_all(path, into, flags)
        if not copied:
            raise StackError(f"COPY {rest}: there is no such file")

    def _copy_all(self, source: Path, goal: Path, flags: Mapping[str, str]) -> int:
        """Copy a file, or the files of a directory. Return their number."""
        if "from" in flags:
            goal.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", f"{source}/.", goal], check=True)
            return 1
        files = [source] if source.is_file() else list(source.rglob("*"))
        kept = [one for one in files if one.is_file() and not self._is_ignored(one)]
        for file in kept:
            to = goal / file.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)
            if "chmod" in flags:
                to.chmod(int(flags["chmod"], 8))
        return len(kept)

    # --- parts ---------------------------------------------------------------------------------

    def _inside(self, path: str) -> Path:
        return self._here.root / path.lstrip("/")

    def _expand(self, text: str) -> str:
        known = self._global if self._stage is None else self._here.variables | self._here.arguments
        if self._stage is not None and text.startswith("debian:"):
            known = self._global
        return re.sub(r"\$\{?(\w+)\}?", lambda match: known[match[1]], text)

    def _is_ignored(self, file: Path) -> bool:
        """Return True if .dockerignore keeps the file out. The last line that fits decides."""
        name = file.relative_to(self._context)
        ignored = False
        for pattern, kept in self._patterns:
            if any(pattern.fullmatch(str(one)) for one in (name, *name.parents)):
                ignored = not kept
        return ignored


def _ignored(context: Path) -> Iterator[tuple[re.Pattern[str], bool]]:
    """Yield the patterns of .dockerignore, with True for those that begin with `!`."""
    file = context / ".dockerignore"
    for line in file.read_text().splitlines() if file.exists() else ():
        if line and not line.startswith("#"):
            pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(.*/)?")
            yield re.compile(pattern.replace(r"\*", "[^/]*")), line.startswith("!")


def debian(name: str, scratch: Path) -> Path:
    """Return a tree like Docker's image `debian:SUITE-slim`. It is made once for `scratch`."""
    match = re.fullmatch(r"debian:(\w+)-slim", name)
    if match is None:
        raise StackError(f"there is no image {name}")
    root = scratch / match[1]
    if not root.exists():
        mirror, security = _mirrors()
        # It mounts /proc in the tree. If it is killed, the mount must not outlive it, because
        # whoever removes the tree would reach this machine's own files.
        apart = ["unshare", "--mount", "debootstrap", "--variant=minbase"]
        _checked([*apart, match[1], str(root), *mirror[:1]])
        if security:
            line = f"deb {security[0]} {match[1]}-security main\n"
            (root / "etc/apt/sources.list.d/security.list").write_text(line)
    return root


def _mirrors() -> tuple[list[str], list[str]]:
    """Return this machine's mirrors of Debian and of its security updates, as apt's sources say."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*.[ls]*")]
    text = " \n".join(file.read_text() for file in files if file.exists())
    return re.findall(r"https?://\S+/debian/?(?=\s)", text), re.findall(
        r"https?://\S+/debian-security/?(?=\s)", text
    )


def _checked(argv: list[str], environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        argv, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise StackError(f"{argv[0]} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
