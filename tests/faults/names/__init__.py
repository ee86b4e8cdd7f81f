"""A fuzzer for names. It backs up random schemas and their changes, restores and compares them."""
