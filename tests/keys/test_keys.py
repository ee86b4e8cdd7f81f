"""Tests of master keys.

A key opens only the data keys that it wrapped, and accepts only the records that it signed.
"""

import base64
import hashlib
import hmac
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap, aes_key_wrap
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from hypothesis import given, settings, strategies as st

from agent.errors import DataDamaged, Internal, KeyNotHere, KeyUnusable
from agent.keys.ids import unique_key_id
from agent.keys.keyring import Keyring, RecordState, signer
from agent.keys.master import MasterKey, key_text, parse_key_text
from agent.keys.recovery import RecoveryKey, RecoverySecret, parse_recovery_key
from agent.model import WrappedKey
from tests.records.made import recovery_secret

SECRET = bytes(range(32))
KEY = MasterKey("2026-01", SECRET)
OTHER = MasterKey("recovery", bytes(range(1, 33)))
DATA_KEY = bytes(range(100, 132))
RING = Keyring({KEY.id: KEY, OTHER.id: OTHER}, KEY.id)
LINE = b'{"format": 1, "status": "COMPLETED"}'


def derived(info: bytes) -> bytes:
    return HKDF(SHA256(), 32, None, info).derive(SECRET)


class TestMasterKey:
    def test_text_round_trip(self) -> None:
        assert parse_key_text("2026-01", key_text(SECRET) + "\n") == KEY

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "not base64!",
            "ключ",
            base64.b64encode(b"x" * 31).decode(),
            base64.b64encode(b"x" * 33).decode(),
            base64.b64encode(SECRET).decode()[:-1],
            base64.b64encode(SECRET).decode()[:20] + "\n" + base64.b64encode(SECRET).decode()[20:],
        ],
    )
    def test_unusable_text_is_not_shown(self, text: str) -> None:
        with pytest.raises(KeyUnusable) as caught:
            parse_key_text("k1", text)
        assert "k1" in str(caught.value)
        assert not text or text not in str(caught.value)
        assert caught.value.__cause__ is None

    @pytest.mark.parametrize("key_id", ["", "a b", "a/b", "x" * 65, "a\n", "ключ"])
    def test_ids_are_plain(self, key_id: str) -> None:
        with pytest.raises(KeyUnusable, match="id"):
            MasterKey(key_id, SECRET)

    def test_repr_hides_the_secret(self) -> None:
        key = MasterKey("2026-01", SECRET)
        assert key.mac(LINE)
        assert key.wrap(DATA_KEY)
        assert repr(key) == "MasterKey(id='2026-01')"

    def test_wrapping_is_rfc_3394_under_its_own_key(self) -> None:
        wrapped = KEY.wrap(DATA_KEY)
        sealed = base64.b64decode(wrapped.wrapped)
        assert (wrapped.id, wrapped.alg) == ("2026-01", "A256KW")
        assert aes_key_unwrap(derived(b"backup-agent v1 wrap"), sealed) == DATA_KEY
        assert KEY.unwrap(wrapped) == DATA_KEY

    def test_only_data_keys_are_wrapped(self) -> None:
        with pytest.raises(Internal):
            KEY.wrap(b"x" * 24)

    @pytest.mark.parametrize(
        "wrapped",
        [
            "",
            "not base64!",
            "ключ",
            base64.b64encode(b"x" * 8).decode(),
            base64.b64encode(b"x" * 40).decode(),
            base64.b64encode(b"x" * 41).decode(),
            OTHER.wrap(DATA_KEY).wrapped,
            KEY.wrap(DATA_KEY).wrapped + "\n",
            base64.b64encode(
                aes_key_wrap(derived(b"backup-agent v1 wrap"), b"only sixteen byt")
            ).decode(),
        ],
    )
    def test_damage_is_refused_and_names_the_key(self, wrapped: str) -> None:
        with pytest.raises(DataDamaged, match="2026-01"):
            KEY.unwrap(WrappedKey(id="2026-01", wrapped=wrapped))

    def test_every_flipped_bit_of_a_wrapped_key_is_refused(self) -> None:
        sealed = base64.b64decode(KEY.wrap(DATA_KEY).wrapped)
        for position in range(len(sealed) * 8):
            bad = bytearray(sealed)
            bad[position // 8] ^= 1 << position % 8
            with pytest.raises(DataDamaged):
                KEY.unwrap(WrappedKey(id=KEY.id, wrapped=base64.b64encode(bad).decode()))


class TestKeyring:
    def test_active_key_must_be_here(self) -> None:
        assert RING.active is KEY
        with pytest.raises(KeyUnusable, match="'gone'"):
            Keyring({KEY.id: KEY}, "gone")

    def test_any_key_of_the_record_opens_it(self) -> None:
        recovery_only = Keyring({OTHER.id: OTHER}, OTHER.id)
        wrapped = [KEY.wrap(DATA_KEY), OTHER.wrap(DATA_KEY)]
        assert RING.unwrap(wrapped) == DATA_KEY
        assert recovery_only.unwrap(wrapped) == DATA_KEY

    def test_missing_keys_are_named(self) -> None:
        ring = Keyring({KEY.id: KEY}, KEY.id)
        with pytest.raises(KeyNotHere, match="'recovery'"):
            ring.unwrap([OTHER.wrap(DATA_KEY)])
        with pytest.raises(KeyNotHere, match="none named"):
            ring.unwrap([])

    def test_keys_by_name(self) -> None:
        assert RING.key("recovery") is OTHER
        with pytest.raises(KeyNotHere, match="'gone'"):
            RING.key("gone")

    def test_every_key_in_use_wraps_a_data_key(self, pair: RecoverySecret) -> None:
        ring = Keyring({KEY.id: KEY, OTHER.id: OTHER}, KEY.id, [pair.public])
        master, recovery = ring.wrap_all(DATA_KEY)
        assert KEY.unwrap(master) == pair.unwrap(recovery) == DATA_KEY
        assert (recovery.id, recovery.alg) == ("offline", "RSA-OAEP-256")
        assert OTHER.unwrap(ring.wrap_all(DATA_KEY, OTHER.id)[0]) == DATA_KEY
        with pytest.raises(KeyNotHere, match="'gone'"):
            ring.wrap_all(DATA_KEY, "gone")

    def test_entries_of_recovery_keys_are_none_of_its_business(self, pair: RecoverySecret) -> None:
        namesake = RecoveryKey(KEY.id, pair.public.public).wrap(DATA_KEY)
        assert RING.unwrap([namesake, KEY.wrap(DATA_KEY)]) == DATA_KEY
        with pytest.raises(KeyNotHere, match="none named"):
            RING.unwrap([namesake])


@pytest.fixture(scope="module")
def pair() -> RecoverySecret:
    return RecoverySecret.make("offline")


class TestRecoveryKey:
    @pytest.mark.parametrize("passphrase", [b"", b"correct horse battery"])
    def test_openssl_opens_what_was_wrapped(
        self, pair: RecoverySecret, tmp_path: Path, passphrase: bytes
    ) -> None:
        (tmp_path / "private.pem").write_bytes(pair.pem(passphrase))
        (tmp_path / "passphrase").write_bytes(passphrase + b"\n")
        (tmp_path / "wrapped").write_bytes(base64.b64decode(pair.public.wrap(DATA_KEY).wrapped))
        options = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]
        command = ["openssl", "pkeyutl", "-decrypt", "-inkey", "private.pem", "-in", "wrapped"]
        command += [word for option in options for word in ("-pkeyopt", option)]
        command += ["-passin", "file:passphrase"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.stdout == DATA_KEY, done.stderr

    def test_a_pair_of_openssl_is_taken(self, tmp_path: Path) -> None:
        make = "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072 -out private.pem"
        for command in (make, "openssl pkey -in private.pem -pubout -out public.pem"):
            subprocess.run(command.split(), cwd=tmp_path, capture_output=True, check=True)
        wrapped = parse_recovery_key("o", (tmp_path / "public.pem").read_bytes()).wrap(DATA_KEY)
        secret = recovery_secret("o", (tmp_path / "private.pem").read_bytes())
        assert secret.unwrap(wrapped) == DATA_KEY

    def test_round_trip_of_the_private_half(self, pair: RecoverySecret) -> None:
        wrapped = pair.public.wrap(DATA_KEY)
        closed = pair.pem(b"a long passphrase")
        assert b"ENCRYPTED" in closed
        assert recovery_secret("o", closed, b"a long passphrase").unwrap(wrapped) == DATA_KEY
        for passphrase in (b"", b"another"):
            with pytest.raises((ValueError, TypeError)):
                recovery_secret("o", closed, passphrase)

    def test_the_same_key_is_never_wrapped_to_the_same_bytes(self, pair: RecoverySecret) -> None:
        assert pair.public.wrap(DATA_KEY) != pair.public.wrap(DATA_KEY)
        with pytest.raises(Internal):
            pair.public.wrap(b"x" * 31)

    def test_another_pair_or_a_changed_entry_is_refused(self, pair: RecoverySecret) -> None:
        wrapped = pair.public.wrap(DATA_KEY)
        sealed = bytearray(base64.b64decode(wrapped.wrapped))
        sealed[100] ^= 1
        changed = wrapped.model_copy(update={"wrapped": base64.b64encode(sealed).decode()})
        short = wrapped.model_copy(update={"wrapped": "AAAA"})
        other = RecoverySecret.make("offline").public.wrap(DATA_KEY)
        small = pair.public.public.encrypt(b"16 bytes, no key", oaep())
        no_key = wrapped.model_copy(update={"wrapped": base64.b64encode(small).decode()})
        for bad in (changed, short, other, no_key):
            with pytest.raises(DataDamaged, match="offline"):
                pair.unwrap(bad)

    def test_what_is_no_recovery_key(self, pair: RecoverySecret) -> None:
        small = rsa.generate_private_key(65537, 2048).public_key()
        curve = ec.generate_private_key(ec.SECP256R1())
        spki = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        bad = {
            "not a public key in PEM": b"hunter2",
            "holds the private half": pair.pem(),
            "2048 bits": small.public_bytes(*spki),
            "not RSA": curve.public_key().public_bytes(*spki),
        }
        for says, text in bad.items():
            with pytest.raises(KeyUnusable, match=f"offline.*{says}"):
                parse_recovery_key("offline", text)
        with pytest.raises(KeyUnusable, match="not a valid id"):
            parse_recovery_key("a/b", pair.public.pem())

    def test_repr_hides_the_secret(self, pair: RecoverySecret) -> None:
        assert repr(pair) == "RecoverySecret(id='offline')"


def oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)


class TestEnvelope:
    def test_any_key_at_hand_may_sign(self) -> None:
        raw = RING.sign(LINE, OTHER.id)
        assert (signer(raw), signer(RING.sign(LINE))) == ("recovery", "2026-01")
        assert RING.check(raw) == (RecordState.OK, LINE)
        assert Keyring({KEY.id: KEY}, KEY.id).check(raw)[0] is RecordState.KEY_NOT_HERE
        assert (signer(b""), signer(LINE + b"\n{}\n")) == (None, None)
        with pytest.raises(KeyNotHere, match="'gone'"):
            RING.sign(LINE, "gone")

    def test_form(self) -> None:
        line, seal, rest = RING.sign(LINE).split(b"\n")
        assert (line, rest) == (LINE, b"")
        mac = hmac.new(derived(b"backup-agent v1 mac"), LINE, hashlib.sha256).hexdigest()
        assert json.loads(seal) == {"key_id": "2026-01", "mac": mac}

    def test_signed_is_ok_for_whoever_has_the_key(self) -> None:
        assert RING.check(RING.sign(LINE)) == (RecordState.OK, LINE)
        stranger = Keyring({OTHER.id: OTHER}, OTHER.id)
        assert stranger.check(RING.sign(LINE)) == (RecordState.KEY_NOT_HERE, LINE)
        impostor = Keyring({KEY.id: MasterKey(KEY.id, OTHER.secret)}, KEY.id)
        assert impostor.check(RING.sign(LINE)) == (RecordState.BAD, LINE)

    def test_values_of_states(self) -> None:
        assert list(RecordState) == ["ok", "bad", "unsupported", "key-not-here", "other-key"]

    def test_a_line_is_one_line(self) -> None:
        with pytest.raises(Internal):
            RING.sign(b"{}\n{}")

    def test_no_flipped_bit_is_ok(self) -> None:
        signed = RING.sign(LINE)
        for position in range(len(signed) * 8):
            bad = bytearray(signed)
            bad[position // 8] ^= 1 << position % 8
            assert RING.check(bytes(bad))[0] is not RecordState.OK

    def test_no_truncation_or_addition_is_ok(self) -> None:
        signed = RING.sign(LINE)
        for length in range(len(signed)):
            assert RING.check(signed[:length])[0] is RecordState.BAD
        assert RING.check(signed + b"\n")[0] is RecordState.BAD
        assert RING.check(b"\n" + signed)[0] is RecordState.BAD

    @pytest.mark.parametrize(
        "raw",
        [
            b"",
            b"\n",
            b"\n\n",
            LINE + b"\n" + b"[" * 200_000,
            LINE + b"\n{}\n",
            LINE + b'\n{"key_id": 5, "mac": 6}\n',
            LINE + b'\n{"key_id": "2026-01", "mac": ""}\n',
            LINE + b'\n{"key_id": "\xff", "mac": "00"}\n',
        ],
    )
    def test_hostile_bytes_are_bad(self, raw: bytes) -> None:
        assert RING.check(raw) == (RecordState.BAD, raw.split(b"\n")[0])

    @settings(max_examples=100, deadline=None)
    @given(raw=st.binary(max_size=300))
    def test_check_never_raises(self, raw: bytes) -> None:
        assert RING.check(raw)[0] is RecordState.BAD

    @settings(max_examples=50, deadline=None)
    @given(line=st.binary(max_size=300).filter(lambda line: b"\n" not in line))
    def test_any_line_is_kept_exactly(self, line: bytes) -> None:
        assert RING.check(RING.sign(line)) == (RecordState.OK, line)


def test_random_keys_differ_in_all_they_make() -> None:
    first, second = (MasterKey("k", os.urandom(32)) for _ in range(2))
    assert first.mac(LINE) != second.mac(LINE)
    assert first.wrap(DATA_KEY) != second.wrap(DATA_KEY)


# --- two keys with one id ----------------------------------------------------------------------


def signed(key: MasterKey, line: bytes = LINE) -> bytes:
    return Keyring({key.id: key}, key.id).sign(line)


def test_another_key_of_the_same_id_is_told_from_a_changed_record() -> None:
    namesake = MasterKey(KEY.id, OTHER.secret)
    theirs, mine = (namesake.wrap(DATA_KEY),), (KEY.wrap(DATA_KEY),)
    assert RING.other_key(signed(namesake), theirs) == KEY
    changed = signed(KEY).replace(b"COMPLETED", b"BUILDING")
    assert RING.check(changed)[0] is RecordState.BAD
    assert RING.other_key(changed, mine) is None
    # There is nothing to try. The record has no wrapped key, or none of that id.
    assert RING.other_key(signed(namesake), ()) is None
    assert RING.other_key(signed(namesake), (OTHER.wrap(DATA_KEY),)) is None
    assert RING.other_key(b"no record", theirs) is None
    assert RING.other_key(signed(MasterKey("elsewhere", SECRET)), theirs) is None


def test_a_fingerprint_is_how_the_page_in_escrow_begins() -> None:
    whole = hashlib.sha256(key_text(SECRET).encode()).hexdigest()
    assert (KEY.fingerprint, len(KEY.fingerprint)) == (whole[:16], 16)
    assert KEY.fingerprint != OTHER.fingerprint
    with pytest.raises(DataDamaged, match=KEY.fingerprint):
        KEY.unwrap(OTHER.wrap(DATA_KEY))


@given(st.text(max_size=80))
def test_a_unique_id_is_one_whatever_the_machine_is_called(name: str) -> None:
    key_id = unique_key_id(name, "20261130", "abcdef0123")
    assert MasterKey(key_id, SECRET).id.endswith("-20261130-abcdef")


def test_a_unique_id_names_the_machine() -> None:
    assert unique_key_id("db1.example.com", "20261130", "3fa9c1d2") == "db1-20261130-3fa9c1"
