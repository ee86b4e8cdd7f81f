#!/usr/bin/env bash
# What the health check of MariaDB's image does for Trove: it logs in as the user that the entry point
# made. Usage: healthcheck.sh --defaults-file FILE --connect --innodb_initialized
set -euo pipefail

exec mariadb --defaults-file="$2" --execute="SELECT 1"
