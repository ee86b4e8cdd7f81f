"""The limits and abilities that a store announces at Swift's /info.

https://docs.openstack.org/swift/latest/api/discoverability.html
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from swiftclient import client

from agent.errors import StoreRejected
from agent.store.protocol import StoreLimits
from agent.store.swift.session import Link

# The defaults of max_file_size (in bytes) and of max_manifest_segments in Swift, and also in Ceph.
_OBJECT_BYTES: Final = 5 << 30
_ENTRIES: Final = 1000
# Assumed for a store that shows no /info, because every store of this kind can do this much. A
# store that can do less refuses an object or a manifest as too large, and the backup fails.
HIDDEN_LIMITS: Final = StoreLimits(_ENTRIES, _OBJECT_BYTES, nesting=False, announced=False)
# Swift with the setting `expose_info = false` answers with one of these statuses. So does a gateway
# that forwards only /auth and /v1.
_HIDDEN: Final = (403, 404, 405)


def read_limits(link: Link) -> StoreLimits:
    """Return the limits from the store's /info, or HIDDEN_LIMITS if the store hides its /info.

    Raises:
        StoreRejected: the store has no static large objects, or a number can't be read.
    """
    parsed, connection = link.http
    # Ceph has its /info below the prefix of its Swift API.
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
        # Ceph's gateway can't read nested manifests. It announces max_manifest_segments, but not
        # max_manifest_size.
        nesting="max_manifest_size" in slo,
    )


def _section(info: Any, name: str) -> Mapping[str, Any] | None:
    # `name` is a text, so an answer that is no object is refused, too
    found = info.get(name) if isinstance(info, dict) else name
    if found is not None and not isinstance(found, dict):
        raise StoreRejected(f"the section {name} of the store's /info can't be read")
    return found


def _count(section: Mapping[str, Any], key: str, default: int) -> int:
    value = section.get(key, default)
    if type(value) is not int or value < 1:
        raise StoreRejected(f"the store's /info has no valid number for {key}: {str(value)[:40]!r}")
    return value
