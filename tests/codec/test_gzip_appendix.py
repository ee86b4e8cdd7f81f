"""Content behind a gzip stream: no gzip reader sees it, and no damage to it goes unnoticed."""

import gzip
import subprocess

import pytest
from hypothesis import given, strategies as st

from agent.codec.gzip_appendix import LOCATOR_BYTES, appendix_bytes, decode, encode
from agent.errors import DataDamaged

# of one byte of content, made by hand from RFC 1952 and docs/format.md
GOLDEN = bytes.fromhex(
    "1f8b08040000000000ff 0500 4252 0100 61 0300 0000000000000000"
    "1f8b08040000000000ff 0c00 424c 0800 3d00000000000000 0300 0000000000000000"
)


def test_the_bytes_are_those_of_the_format() -> None:
    assert encode(b"a") == GOLDEN
    assert decode(GOLDEN) == b"a"
    assert appendix_bytes(GOLDEN[-LOCATOR_BYTES:]) == len(GOLDEN)


@given(st.binary(min_size=1, max_size=200_000))
def test_content_of_any_length_comes_back(content: bytes) -> None:
    appendix = encode(content)
    assert decode(appendix) == content
    assert appendix_bytes(appendix[-LOCATOR_BYTES:]) == len(appendix)


@pytest.mark.parametrize("size", [1, 60_000, 60_001, 1_000_000])
def test_gzip_reads_only_the_stream_before_it(size: int) -> None:
    stored = gzip.compress(b"the stream") + encode(b"x" * size)
    assert gzip.decompress(stored) == b"the stream"
    done = subprocess.run(["gzip", "-dc"], input=stored, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"the stream", b"")


@pytest.mark.parametrize("at", range(len(GOLDEN)))
def test_each_changed_byte_is_noticed(at: int) -> None:
    changed = bytearray(GOLDEN)
    changed[at] ^= 1
    if at == GOLDEN.index(b"a"):
        assert decode(bytes(changed)) == b"`"  # the MD5 of the object shows this one
        return
    with pytest.raises(DataDamaged):
        decode(bytes(changed))


@given(st.binary(max_size=300))
def test_other_bytes_are_no_appendix(other: bytes) -> None:
    assert appendix_bytes(other[-LOCATOR_BYTES:]) is None
    with pytest.raises(DataDamaged):
        decode(other)


@pytest.mark.parametrize("length", range(len(GOLDEN)))
def test_each_truncation_is_noticed(length: int) -> None:
    with pytest.raises(DataDamaged):
        decode(GOLDEN[:length])
    with pytest.raises(DataDamaged):
        decode(GOLDEN[len(GOLDEN) - length :])
