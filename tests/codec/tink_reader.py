"""The same streaming AEAD in Google's own implementation, for comparison."""

import io
from typing import Any

import tink
from tink import cleartext_keyset_handle, streaming_aead
from tink.proto import aes_gcm_hkdf_streaming_pb2, common_pb2, tink_pb2


def tink_primitive(key: bytes) -> Any:
    """Return Tink's primitive for AES256_GCM_HKDF_1MB with our `key`."""
    streaming_aead.register()
    proto = aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingKey(
        version=0,
        key_value=key,
        params=aes_gcm_hkdf_streaming_pb2.AesGcmHkdfStreamingParams(
            ciphertext_segment_size=1 << 20,
            derived_key_size=32,
            hkdf_hash_type=common_pb2.SHA256,
        ),
    )
    keyset = tink_pb2.Keyset(primary_key_id=1)
    entry = keyset.key.add()
    entry.key_id = 1
    entry.status = tink_pb2.ENABLED
    entry.output_prefix_type = tink_pb2.RAW
    entry.key_data.type_url = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
    entry.key_data.value = proto.SerializeToString()
    entry.key_data.key_material_type = tink_pb2.KeyData.SYMMETRIC
    reader = tink.BinaryKeysetReader(keyset.SerializeToString())
    return cleartext_keyset_handle.read(reader).primitive(streaming_aead.StreamingAead)


class KeptBytes(io.BytesIO):
    """A stream that keeps its bytes in `kept`, because Tink closes the stream that it writes to."""

    kept = b""

    def close(self) -> None:
        self.kept = self.getvalue()
        super().close()


def tink_seal(key: bytes, associated: bytes, plain: bytes) -> bytes:
    sink = KeptBytes()
    with tink_primitive(key).new_encrypting_stream(sink, associated) as stream:
        stream.write(plain)
    return sink.kept


def tink_open(key: bytes, associated: bytes, sealed: bytes) -> bytes:
    """Return the plaintext. Raise tink.TinkError if it can't be opened."""
    with tink_primitive(key).new_decrypting_stream(io.BytesIO(sealed), associated) as stream:
        return bytes(stream.read())
