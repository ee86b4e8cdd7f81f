"""Ceph's gateway as the store; `script/test radosgw` runs these, and nothing else does."""
