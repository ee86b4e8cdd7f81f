"""What a store says of itself at Swift's /info: its limits, and what it checks by itself.

https://docs.openstack.org/swift/latest/api/discoverability.html
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from swiftclient import client

from agent.errors import StoreRejected
from agent.store.protocol import StoreLimits
from agent.store.swift.session import Link

# The defaults of Swift's max_file_size and of its max_manifest_segments, and Ceph's, too.
_OBJECT_BYTES: Final = 5 << 30
_ENTRIES: Final = 1000
# Taken for granted of a store that shows no /info: what every store of this kind can do. One
# that can do less refuses an object or a manifest as too large, so its backup fails.
HIDDEN_LIMITS: Final = StoreLimits(_ENTRIES, _OBJECT_BYTES, nesting=False, announced=False)
# What the setting `expose_info = false` answers, or a gateway that passes on only /auth and /v1.
_HIDDEN: Final = (403, 404, 405)


def read_limits(link: Link) -> StoreLimits:
    """Ask the store for its limits; HIDDEN_LIMITS if it has no /info for us."""
    parsed, connection = link.http
    # Ceph has its /info below the prefix of its Swift API
    path = re.sub(r"/v\d+(\.\d+)?(/.*)?$", "/info", parsed.path)
    try:
        info = client.get_capabilities((parsed._replace(path=path), connection))
    except client.ClientException as error:
        if error.http_status not in _HIDDEN:
            raise
        return HIDDEN_LIMITS
    slo = _section(info, "slo")
    if slo is None:
        raise StoreRejected("the store does not offer static large objects (slo in /info)")
    return StoreLimits(
        manifest_entries=_count(slo, "max_manifest_segments", _ENTRIES),
        object_bytes=_count(_section(info, "swift") or {}, "max_file_size", _OBJECT_BYTES),
        # Ceph's gateway, which can't read nested manifests, announces only the limit above
        nesting="max_manifest_size" in slo,
    )


def _section(info: Any, name: str) -> Mapping[str, Any] | None:
    found = info.get(name) if isinstance(info, dict) else name
    if found is not None and not isinstance(found, dict):
        raise StoreRejected(f"what the store's /info says of {name} can't be read")
    return found


def _count(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key, default)
    if type(value) is not int or value < 1:
        raise StoreRejected(f"the store's /info has no number for {key}: {str(value)[:40]!r}")
    return value
