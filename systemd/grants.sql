-- The agent's account with the rights that it needs and no other, on MariaDB 10.5 and later and on
-- MySQL and Percona Server. Run it as an administrator; it can be repeated:
--
--   mariadb < systemd/grants.sql          (or: mysql -u root -p < systemd/grants.sql)
--
-- The account is locked until it has a password. Type this into the client, not into a shell, and
-- put the same password into /etc/backup-agent/secrets/database-password:
--
--   ALTER USER 'backup_agent'@'localhost' IDENTIFIED BY '...' ACCOUNT UNLOCK;
--
-- Lines in /*M! ... */ are for MariaDB alone, those in /*!50700 ... */ for MySQL 5.7 and later, and
-- those in /*!80000 ... */ for MySQL 8.0 and later. MySQL 5.6 knows neither IF NOT EXISTS nor ACCOUNT
-- LOCK: type its statements by hand.

CREATE USER IF NOT EXISTS 'backup_agent'@'localhost' ACCOUNT LOCK;

-- RELOAD and LOCK TABLES: to stop DDL and commits for the moment in which a copy ends.
-- PROCESS: to see the redo log's state, the tablespaces, and what runs.
GRANT RELOAD, PROCESS, LOCK TABLES ON *.* TO 'backup_agent'@'localhost';

-- The positions of the binlog and of a replica. MariaDB leaves comments for MySQL 5.7 and 8.0 out.
/*M!100502 GRANT BINLOG MONITOR, REPLICA MONITOR ON *.* TO 'backup_agent'@'localhost' */;
/*!50700 GRANT REPLICATION CLIENT ON *.* TO 'backup_agent'@'localhost' */;
/*!80000 GRANT BACKUP_ADMIN ON *.* TO 'backup_agent'@'localhost' */;

-- XtraBackup 8 reads the LSN and the state of keyring and group replication there.
/*!80000 GRANT SELECT ON performance_schema.log_status TO 'backup_agent'@'localhost' */;
/*!80000 GRANT SELECT ON performance_schema.keyring_component_status
  TO 'backup_agent'@'localhost' */;
/*!80000 GRANT SELECT ON performance_schema.replication_group_members
  TO 'backup_agent'@'localhost' */;

-- Only where agent.toml asks for it:
-- [engine] safe_slave_backup stops and starts the SQL thread of a replica.
--   MariaDB:  GRANT REPLICATION SLAVE ADMIN ON *.* TO 'backup_agent'@'localhost';
--   MySQL 8:  GRANT REPLICATION_SLAVE_ADMIN ON *.* TO 'backup_agent'@'localhost';
--   MySQL 5.7: GRANT SUPER ON *.* TO 'backup_agent'@'localhost';
