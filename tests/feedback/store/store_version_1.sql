-- A store of schema version 1, as rlhf-env 0.1 wrote it.
PRAGMA application_id = 1919707238;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE annotators (
            id INTEGER PRIMARY KEY,
            name TEXT NOT NULL UNIQUE);
INSERT INTO "annotators" VALUES(1,'ann');
CREATE TABLE judged (
            judgement INTEGER NOT NULL REFERENCES judgements ON DELETE CASCADE,
            position INTEGER NOT NULL,
            response INTEGER NOT NULL REFERENCES responses,
            PRIMARY KEY (judgement, position)) WITHOUT ROWID;
INSERT INTO "judged" VALUES(1,0,1);
INSERT INTO "judged" VALUES(1,1,2);
CREATE TABLE judgements (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            kind TEXT NOT NULL,
            prompt INTEGER NOT NULL REFERENCES prompts,
            annotator INTEGER NOT NULL REFERENCES annotators,
            criterion TEXT NOT NULL,
            weight REAL NOT NULL CHECK (weight > 0),
            created TEXT NOT NULL,
            payload TEXT NOT NULL);
INSERT INTO "judgements" VALUES(1,'0eea7729138b63fa979c340f3512f9bbb52595f65166662b2b5ab8c73bcfe5c8','comparison',1,1,'overall',0.5,'2024-05-01T10:00:00+00:00','{"verdict": "second"}');
CREATE TABLE prompts (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,
            text TEXT NOT NULL,
            meta TEXT NOT NULL);
INSERT INTO "prompts" VALUES(1,'fbc39957a38ea06b9363e3cbf9d6f3d6bd04dd96e34f86c1cc418cffe5a63012','p0','question','{"level":1}');
CREATE TABLE responses (
            id INTEGER PRIMARY KEY,
            digest TEXT NOT NULL UNIQUE,
            prompt INTEGER NOT NULL REFERENCES prompts,
            text TEXT NOT NULL,
            ids TEXT,
            prompt_ids TEXT,
            finish_reason TEXT,
            author_kind TEXT NOT NULL CHECK (author_kind IN ('policy', 'human', 'dataset')),
            author TEXT NOT NULL,
            temperature REAL);
INSERT INTO "responses" VALUES(1,'d81b64d7c62889f70ba2199ca299d4109a367936f56a0f3337f7c208501b782f',1,'yes','[7,2]','[1]','stop','policy','sft',0.7);
INSERT INTO "responses" VALUES(2,'21eaa7ee877620c14a7ddbee22bbceed14bb280c877ee9ddc8dd629225b011f1',1,'no',NULL,NULL,NULL,'human','Zoë',NULL);
CREATE INDEX responses_by_prompt ON responses (prompt);
CREATE INDEX judged_by_response ON judged (response);
COMMIT;
