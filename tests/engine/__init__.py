"""Child processes, and mariadb-backup and mbstream on a real server."""
