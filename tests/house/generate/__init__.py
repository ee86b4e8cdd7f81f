"""Writes documents from the code (`script/docs`); documents.py names them.

tests/house/test_generated.py fails where one is stale.
"""
