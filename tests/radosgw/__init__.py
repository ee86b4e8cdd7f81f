"""Tests with Ceph's gateway as the store. Only `script/test radosgw` runs them."""
