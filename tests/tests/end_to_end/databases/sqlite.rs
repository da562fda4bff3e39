//! SQLite under a writer.

use std::fs;

use super::*;

const SIZE_BYTES: u64 = 400 * MIB;
const TIMES: usize = 3;

#[test]
fn sqlite_under_a_writer_is_whole_in_each_point() {
    let grant = grant_of("sqlite.rhai");
    let guest = Guest::new("sqlite.rhai", "", &grant, SIZE_BYTES, |disk| {
        let path = disk.join("app.db");
        let create = "PRAGMA journal_mode = WAL; CREATE TABLE seen (n INTEGER PRIMARY KEY, text TEXT);";
        run(client("sqlite3", &["-batch"]).arg(&path).arg(create));
        format!("database = \"{}\"", path.display())
    });
    let database = guest.disk.path().join("app.db");
    let mut sqlite = client("sqlite3", &["-batch", "-bail", "-cmd", ".timeout 10000"]);
    sqlite.arg(&database);
    let statement = |number: u64| {
        format!("BEGIN; INSERT INTO seen VALUES ({number}, hex(randomblob(200))); COMMIT; SELECT {number};\n")
    };
    let writer = Writer::start(sqlite, guest.told(), statement);
    let mut promised = Vec::new();
    for _ in 0..TIMES {
        // With its log SQLite waits for the disk at a checkpoint, not at each commit.
        promised.push(fs::read_to_string(guest.told()).unwrap().parse::<u64>().unwrap());
        guest.backup();
    }
    assert!(writer.stop() > promised[TIMES - 1]);
    let points = guest.points();
    assert_held_shortly(&points, "SQLite");
    for (point, promised) in points.iter().zip(promised) {
        let restored = guest.restored(point);
        let ask = |sql: &str| {
            run(client("sqlite3", &["-batch"])
                .arg(restored.path().join("app.db"))
                .arg(sql))
        };
        assert_eq!(ask("PRAGMA integrity_check").trim(), "ok");
        assert_eq!(ask("SELECT count(*) = max(n) FROM seen").trim(), "1");
        let last: u64 = ask("SELECT max(n) FROM seen").trim().parse().unwrap();
        assert!(
            last >= promised,
            "{promised} was committed, and the point ends at {last}"
        );
    }
}
