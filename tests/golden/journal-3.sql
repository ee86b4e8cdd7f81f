-- A journal as version 3 of its schema left it.
BEGIN TRANSACTION;
CREATE TABLE lineages (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    lineage TEXT NOT NULL UNIQUE,
    lsn INTEGER NOT NULL,
    generation TEXT NOT NULL
);
INSERT INTO "lineages" VALUES(1,'uuid:12:1700000000',47119,'');
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY,
    task_id TEXT NOT NULL,
    weight INTEGER NOT NULL,
    routing_key TEXT NOT NULL,
    body BLOB NOT NULL
);
INSERT INTO "outbox" VALUES(1760000000000,'00000001-0000-4000-8000-000000000000',1,'6523132a-21a6-49f5-a2f8-c3e32d60983d.backup.create.ACCEPTED',CAST('{"task_id":"00000001-0000-4000-8000-000000000000","type":"backup.create","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000000000,"at":"2025-10-09T08:53:20Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000001000,'00000001-0000-4000-8000-000000000000',0,'6523132a-21a6-49f5-a2f8-c3e32d60983d.backup.create.RUNNING',CAST('{"task_id":"00000001-0000-4000-8000-000000000000","type":"backup.create","status":"RUNNING","progress":{"raw_bytes":1,"stored_bytes":0,"bytes_per_second":1.5},"version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000001000,"at":"2025-10-09T08:53:21Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000002000,'00000002-0000-4000-8000-000000000000',1,'6523132a-21a6-49f5-a2f8-c3e32d60983d.backup.restore.ACCEPTED',CAST('{"task_id":"00000002-0000-4000-8000-000000000000","type":"backup.restore","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000002000,"at":"2025-10-09T08:53:22Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000003000,'00000003-0000-4000-8000-000000000000',1,'6523132a-21a6-49f5-a2f8-c3e32d60983d.backup.delete.ACCEPTED',CAST('{"task_id":"00000003-0000-4000-8000-000000000000","type":"backup.delete","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000003000,"at":"2025-10-09T08:53:23Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000004000,'00000004-0000-4000-8000-000000000000',1,'6523132a-21a6-49f5-a2f8-c3e32d60983d.task.cancel.ACCEPTED',CAST('{"task_id":"00000004-0000-4000-8000-000000000000","type":"task.cancel","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000004000,"at":"2025-10-09T08:53:24Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000005000,'00000005-0000-4000-8000-000000000000',1,'6523132a-21a6-49f5-a2f8-c3e32d60983d.agent.ping.ACCEPTED',CAST('{"task_id":"00000005-0000-4000-8000-000000000000","type":"agent.ping","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000005000,"at":"2025-10-09T08:53:25Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
INSERT INTO "outbox" VALUES(1760000006000,'00000005-0000-4000-8000-000000000000',2,'6523132a-21a6-49f5-a2f8-c3e32d60983d.agent.ping.DONE',CAST('{"task_id":"00000005-0000-4000-8000-000000000000","type":"agent.ping","status":"DONE","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000006000,"at":"2025-10-09T08:53:26Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB));
CREATE TABLE sequence (last INTEGER NOT NULL);
INSERT INTO "sequence" VALUES(1760000006000);
CREATE TABLE tasks (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    body BLOB NOT NULL,
    last_seq INTEGER NOT NULL,
    last_report BLOB NOT NULL,
    record TEXT,
    ended INTEGER,
    store TEXT NOT NULL DEFAULT '',
    attempt TEXT NOT NULL DEFAULT '',
    runs INTEGER NOT NULL DEFAULT 0,
    cancels TEXT
);
INSERT INTO "tasks" VALUES(1,'00000001-0000-4000-8000-000000000000','RUNNING',CAST('{"version":1,"task_id":"00000001-0000-4000-8000-000000000000","store":{"container":"other"},"type":"backup.create","backup":{"id":"a17461ab-6c97-4abf-8890-9f8b10886ecc","name":"bäse","description":"","parent_id":"b17461ab-6c97-4abf-8890-9f8b10886ecc"},"on_broken_chain":"fail","limits":{},"retry":true}' AS BLOB),1760000001000,CAST('{"task_id":"00000001-0000-4000-8000-000000000000","type":"backup.create","status":"RUNNING","progress":{"raw_bytes":1,"stored_bytes":0,"bytes_per_second":1.5},"version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000001000,"at":"2025-10-09T08:53:21Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB),'{"kept": true}',NULL,'','c17461ab-6c97-8abf-8890-9f8b10886ecc',1,NULL);
INSERT INTO "tasks" VALUES(2,'00000002-0000-4000-8000-000000000000','ACCEPTED',CAST('{"version":1,"task_id":"00000002-0000-4000-8000-000000000000","type":"backup.restore","backup_id":"b17461ab-6c97-4abf-8890-9f8b10886ecc","target":"/srv/restored","retry":false}' AS BLOB),1760000002000,CAST('{"task_id":"00000002-0000-4000-8000-000000000000","type":"backup.restore","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000002000,"at":"2025-10-09T08:53:22Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB),NULL,NULL,'','',0,NULL);
INSERT INTO "tasks" VALUES(3,'00000003-0000-4000-8000-000000000000','ACCEPTED',CAST('{"version":1,"task_id":"00000003-0000-4000-8000-000000000000","type":"backup.delete","backup_id":"b17461ab-6c97-4abf-8890-9f8b10886ecc"}' AS BLOB),1760000003000,CAST('{"task_id":"00000003-0000-4000-8000-000000000000","type":"backup.delete","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000003000,"at":"2025-10-09T08:53:23Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB),NULL,NULL,'','',0,NULL);
INSERT INTO "tasks" VALUES(4,'00000004-0000-4000-8000-000000000000','ACCEPTED',CAST('{"version":1,"task_id":"00000004-0000-4000-8000-000000000000","type":"task.cancel","cancels":"00000001-0000-4000-8000-000000000000"}' AS BLOB),1760000004000,CAST('{"task_id":"00000004-0000-4000-8000-000000000000","type":"task.cancel","status":"ACCEPTED","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000004000,"at":"2025-10-09T08:53:24Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB),NULL,NULL,'','',0,'00000001-0000-4000-8000-000000000000');
INSERT INTO "tasks" VALUES(5,'00000005-0000-4000-8000-000000000000','DONE','',1760000006000,CAST('{"task_id":"00000005-0000-4000-8000-000000000000","type":"agent.ping","status":"DONE","version":1,"agent_run_id":"00000000-0000-4000-8000-00000000000a","seq":1760000006000,"at":"2025-10-09T08:53:26Z","instance_id":"6523132a-21a6-49f5-a2f8-c3e32d60983d"}' AS BLOB),NULL,1760000006000,'','',0,NULL);
CREATE INDEX tasks_by_cancelled ON tasks (cancels) WHERE cancels IS NOT NULL AND ended IS NULL;
CREATE INDEX tasks_by_status ON tasks (status, position);
CREATE INDEX tasks_by_end ON tasks (ended) WHERE ended IS NOT NULL;
CREATE INDEX outbox_by_weight ON outbox (weight, seq);
CREATE INDEX outbox_by_task ON outbox (task_id);
COMMIT;
PRAGMA user_version = 3;
