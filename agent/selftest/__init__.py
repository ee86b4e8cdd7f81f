"""`backup-agent self-test`: whether this installation can be trusted with backups.

plan.py names every check, one module a group does them, run.py runs and counts them.
"""
