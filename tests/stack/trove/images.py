"""The images of the stand-in for Docker: a name and its tags stand for programs of this machine."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[3]
DATABASE: Final = "mariadb"
BACKUP: Final = "db-backup-mariadb"
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """What an image consists of. Its root file system is `root`, or that of this machine.

    `programs` comes first in PATH. A container starts in `directory`. `environment` has the image's
    own variables. `files` are files or directories of this machine by their path in the image.
    """

    tags: list[str]
    programs: str
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    root: str = ""

    @property
    def path(self) -> str:
        return f"{self.programs}:{SYSTEM_PATH}"


def write(file: Path, images: dict[str, Image]) -> None:
    """Replace the list of images. The next container uses it."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({name: asdict(image) for name, image in images.items()}))
    draft.replace(file)


def find(file: Path, reference: str) -> Image | None:
    """Return the image of a reference like `mariadb:10.11`, or None if no registry has it."""
    name, _, tag = reference.partition(":")
    row = json.loads(file.read_text()).get(name)
    image = Image(**row) if row else None
    return image if image and (tag or "latest") in image.tags else None
