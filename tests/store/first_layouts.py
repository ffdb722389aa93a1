"""The tables as the first versions made them, word by word: what is on the disks of operators."""

SCHEDULER_1 = """
CREATE TABLE deployments (
    name TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    record BLOB NOT NULL,
    load_request BLOB NOT NULL
);
"""
SLICES_1 = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE slices (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE nodes (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE admissions (key TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE ended (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE requests (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    answer BLOB NOT NULL
);
CREATE TABLE traffic (name TEXT PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE reporters (name TEXT PRIMARY KEY, record TEXT NOT NULL);
INSERT INTO facts VALUES ('mark', '00ff'), ('version', '7');
"""
AGGREGATOR_1 = """
CREATE TABLE runs (
    name TEXT PRIMARY KEY,
    request_id TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    why TEXT NOT NULL,
    weights_round INTEGER NOT NULL,
    strategy TEXT NOT NULL,
    began_ns INTEGER NOT NULL
);
CREATE TABLE rounds (
    run TEXT NOT NULL REFERENCES runs (name) ON DELETE CASCADE,
    round INTEGER NOT NULL,
    record TEXT NOT NULL,
    report TEXT NOT NULL,
    PRIMARY KEY (run, round)
);
CREATE TABLE notes (
    run TEXT NOT NULL REFERENCES runs (name) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    content TEXT NOT NULL,
    PRIMARY KEY (run, kind)
);
"""
AGGREGATOR_1_WITH_PLACES = (
    AGGREGATOR_1
    + """
CREATE TABLE IF NOT EXISTS places (
    request_id TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    slice TEXT NOT NULL,
    holder TEXT NOT NULL
);
"""
)
