#!/usr/bin/env bash
# What the entry point of MariaDB's image does for Trove: it makes an empty data directory into a
# database, gives a restored one a user for the health check, and becomes the server.
set -euo pipefail

if [[ ${1:-} == -* ]]; then
    set -- mariadbd "$@"
fi
defaults=/etc/mysql/my.cnf
datadir=/var/lib/mysql
for argument in "$@"; do
    case $argument in
    --datadir=*) datadir=${argument#*=} ;;
    --defaults-file=*) defaults=${argument#*=} ;;
    esac
done

# Runs statements before the server accepts connections. The options are those of the server.
bootstrap() {
    (echo "FLUSH PRIVILEGES;" && cat) | "$@" --bootstrap
}

make_health_check() {
    local password
    password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
    echo "CREATE OR REPLACE USER healthcheck@localhost IDENTIFIED BY '$password';" | bootstrap "$@"
    printf '[client]\nuser=healthcheck\npassword=%s\nsocket=/var/run/mysqld/mysqld.sock\n' \
        "$password" >"$datadir/.my-healthcheck.cnf"
}

if [[ ! -d $datadir/mysql ]]; then
    mariadb-install-db --defaults-file="$defaults" --datadir="$datadir" --skip-test-db \
        --auth-root-authentication-method=normal
    echo "ALTER USER root@localhost IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';" | bootstrap "$@"
    make_health_check "$@"
elif [[ -n ${MARIADB_AUTO_UPGRADE:-} && ! -e $datadir/mysql_upgrade_info ]]; then
    # the real one runs mariadb-upgrade here, which writes the same file
    make_health_check "$@"
    mariadbd --version >"$datadir/mysql_upgrade_info"
fi
# Docker would give the container a network interface with this address.
exec "$@" ${STAND_IN_ADDRESS:+"--bind-address=$STAND_IN_ADDRESS"}
