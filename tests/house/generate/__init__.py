"""Generators of documents from the code (`script/docs`). documents.py lists the documents.

tests/house/test_generated.py fails if a document is stale.
"""
