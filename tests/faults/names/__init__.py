"""A fuzzer for names: random schemas and changes of them, backed up, restored and compared."""
