"""Checks of `backup-agent self-test`, which tell if this installation can be trusted with backups.

plan.py names every check. Each group has one module with its checks. run.py runs and counts them.
"""
