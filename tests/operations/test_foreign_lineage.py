"""The comparison of a foreign backup's pages with those of a datadir, page by page."""

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import AgentError, LineageChanged, ParentUnusable
from agent.operations.trove.foreign_lineage import PageComparison
from agent.stop import Stop
from tests.codec.streams import payload, seek, whole

SIZE = 16 << 10
PATH = b"shop/t.ibd"
_FULL_CRC32 = (1 << 4 | 5).to_bytes(4)  # the flags of pages of 16 KiB


def page(number: int, lsn: int, text: bytes = b"row", space: int = 7) -> bytes:
    """Return a page with the fields of its header that count, and `text` as its content."""
    head = bytes(4) + number.to_bytes(4) + bytes(8) + lsn.to_bytes(8) + bytes(10)
    flags = bytes(16) + _FULL_CRC32 if not number else b""
    return (head + space.to_bytes(4) + flags + text).ljust(SIZE, b".")


FIRST = page(0, 1)


class Healing(Stop):
    """A stop whose waits change the datadir, as a server that goes on writing does."""

    def __init__(self, heal: Callable[[], object]) -> None:
        super().__init__()
        self._heal = heal

    def wait(self, seconds: float) -> None:
        self._heal()


def compared(
    datadir: Path,
    live: bytes,
    stream: bytes,
    heal: Callable[[], object] = lambda: None,
    path: bytes = PATH,
) -> PageComparison:
    """Compare a stream with the datadir that has one file, `live`."""
    file = datadir / path.decode()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(live)
    comparison = PageComparison("p", datadir, Healing(heal))
    for at in range(0, len(stream), 5000):
        comparison.feed(memoryview(stream[at : at + 5000]))
    comparison.finish()
    return comparison


def test_equal_and_newer_pages_prove_the_same_history(tmp_path: Path) -> None:
    stored = FIRST + page(1, 40) + page(2, 50) + page(3, 60)
    live = page(0, 90) + page(1, 40) + page(2, 70, b"later") + page(3, 60)
    comparison = compared(tmp_path, live, whole(PATH, stored))
    assert (comparison.equal, comparison.newest) == (2, 60)
    comparison.check()


@pytest.mark.parametrize("other", [page(1, 39), page(1, 40, b"another row")])
def test_an_older_or_another_page_is_another_history(tmp_path: Path, other: bytes) -> None:
    with pytest.raises(LineageChanged, match=r"'shop/t\.ibd' with LSN 40"):
        compared(tmp_path, FIRST + other, whole(PATH, FIRST + page(1, 40)))


def test_a_page_that_the_server_writes_at_this_moment(tmp_path: Path) -> None:
    torn = page(1, 40)[: SIZE // 2].ljust(SIZE, b"!")
    after = FIRST + page(1, 41, b"later")
    file = tmp_path / PATH.decode()
    comparison = compared(
        tmp_path, FIRST + torn, whole(PATH, FIRST + page(1, 40)), lambda: file.write_bytes(after)
    )
    assert comparison.equal == 0


def test_what_says_nothing(tmp_path: Path) -> None:
    """Empty pages, pages with LSN 0, and those that one of the two files lacks."""
    stored = FIRST + bytes(SIZE) + page(2, 0) + page(3, 40) + page(4, 40)
    live = FIRST + page(1, 30) + page(2, 30) + bytes(SIZE)
    comparison = compared(tmp_path, live, whole(PATH, stored))
    with pytest.raises(ParentUnusable, match="nothing shows"):
        comparison.check()


@pytest.mark.parametrize("live", [b"", FIRST[:20], page(0, 1, space=8) + page(1, 39, space=8)])
def test_another_table_has_the_name_now(tmp_path: Path, live: bytes) -> None:
    assert compared(tmp_path, live, whole(PATH, FIRST + page(1, 40))).equal == 0


def test_a_table_that_was_dropped(tmp_path: Path) -> None:
    dropped = whole(b"shop/dropped.ibd", FIRST + page(1, 40))
    kept = whole(PATH, FIRST + page(1, 40))
    assert compared(tmp_path, FIRST + page(1, 40), dropped + kept).equal == 1


def test_tables_that_each_server_has_prove_nothing(tmp_path: Path) -> None:
    pages = FIRST + page(1, 40)
    comparison = compared(tmp_path, pages, whole(b"mysql/t.ibd", pages), path=b"mysql/t.ibd")
    assert comparison.equal == 0


def test_copies_in_the_doublewrite_buffer_are_skipped(tmp_path: Path) -> None:
    stored = page(0, 1, space=0) + page(1, 40, space=7) + page(9, 40, space=0)
    live = page(0, 1, space=0) + page(1, 30, space=7) + page(9, 30, space=0)
    assert compared(tmp_path, live, whole(b"ibdata1", stored), path=b"ibdata1").equal == 0


def test_a_page_of_the_system_tablespace_that_is_older(tmp_path: Path) -> None:
    stored = page(0, 1, space=0) + page(1, 40, space=0)
    live = page(0, 1, space=0) + page(1, 30, space=0)
    with pytest.raises(LineageChanged):
        compared(tmp_path, live, whole(b"ibdata1", stored), path=b"ibdata1")


def test_pages_with_holes(tmp_path: Path) -> None:
    """The engine leaves out the holes of compressed pages."""
    cut = page(1, 40)[:4096]
    stream = (payload(PATH, FIRST) + payload(PATH, cut, SIZE) + seek(PATH, 2 * SIZE)) + payload(
        PATH, page(2, 50), 2 * SIZE
    )
    stream += b"XBSTCK01\0E" + len(PATH).to_bytes(4, "little") + PATH
    live = FIRST + cut.ljust(SIZE, b"\0") + page(2, 50)
    comparison = compared(tmp_path, live, stream)
    assert (comparison.equal, comparison.newest) == (2, 50)


def test_a_stop_ends_it(tmp_path: Path) -> None:
    stop = Stop()
    stop.request(AgentError("enough"))
    (tmp_path / "shop").mkdir()
    (tmp_path / PATH.decode()).write_bytes(FIRST)
    with pytest.raises(AgentError, match="enough"):
        PageComparison("p", tmp_path, stop).feed(memoryview(whole(PATH, FIRST)))
