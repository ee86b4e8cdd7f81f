"""Tests of child processes, and of mariadb-backup and mbstream on a real server."""
