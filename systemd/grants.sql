-- Makes the agent's account with the privileges that it needs, on MariaDB 10.5 and later and on MySQL
-- and Percona Server. Run it as an administrator. You may repeat it:
--
--   mariadb < systemd/grants.sql          (or: mysql -u root -p < systemd/grants.sql)
--
-- The account is locked until you set a password. Type this statement into the client, not into a
-- shell. Put the same password into /etc/backup-agent/secrets/database-password:
--
--   ALTER USER 'backup_agent'@'localhost' IDENTIFIED BY '...' ACCOUNT UNLOCK;
--
-- Lines in /*M! ... */ are for MariaDB alone, those in /*!50700 ... */ for MySQL 5.7 and later, and
-- those in /*!80000 ... */ for MySQL 8.0 and later. MySQL 5.6 doesn't support IF NOT EXISTS and ACCOUNT
-- LOCK. Type the statements for it by hand.

CREATE USER IF NOT EXISTS 'backup_agent'@'localhost' ACCOUNT LOCK;

-- RELOAD and LOCK TABLES: to block DDL and commits for the moment at the end of a copy. MariaDB needs
-- no LOCK TABLES, but older manuals of it require it.
-- PROCESS: to see the state of the redo log, the tablespaces, and the running statements.
GRANT RELOAD, PROCESS, LOCK TABLES ON *.* TO 'backup_agent'@'localhost';

-- To read the positions of the binlog and of a replica. MariaDB ignores comments for MySQL 5.7 and 8.0.
/*M!100502 GRANT BINLOG MONITOR, REPLICA MONITOR ON *.* TO 'backup_agent'@'localhost' */;
/*!50700 GRANT REPLICATION CLIENT ON *.* TO 'backup_agent'@'localhost' */;
/*!80000 GRANT BACKUP_ADMIN ON *.* TO 'backup_agent'@'localhost' */;

-- From these tables XtraBackup 8 reads the LSN and the state of keyring and group replication.
/*!80000 GRANT SELECT ON performance_schema.log_status TO 'backup_agent'@'localhost' */;
/*!80000 GRANT SELECT ON performance_schema.keyring_component_status
  TO 'backup_agent'@'localhost' */;
/*!80000 GRANT SELECT ON performance_schema.replication_group_members
  TO 'backup_agent'@'localhost' */;

-- Only if agent.toml sets [engine] safe_slave_backup, which stops and starts the SQL thread of a
-- replica:
--   MariaDB:  GRANT REPLICATION SLAVE ADMIN ON *.* TO 'backup_agent'@'localhost';
--   MySQL 8:  GRANT REPLICATION_SLAVE_ADMIN ON *.* TO 'backup_agent'@'localhost';
--   MySQL 5.7: GRANT SUPER ON *.* TO 'backup_agent'@'localhost';
