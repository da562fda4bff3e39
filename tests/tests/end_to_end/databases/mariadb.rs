//! MariaDB under a writer and transfers between accounts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::*;

const SIZE_BYTES: u64 = 512 * MIB;
const ACCOUNTS: u64 = 100;
const MONEY: u64 = 1000 * ACCOUNTS;

/// A server that runs, reached by a socket of its own.
struct Database {
    folder: tempfile::TempDir,
    _server: Server,
}

/// Small files of its own, so that a point is not mostly an empty log.
const SMALL: [&str; 3] = [
    "--innodb-log-file-size=8M",
    "--innodb-buffer-pool-size=16M",
    "--skip-networking",
];

impl Database {
    fn create(data: &Path) {
        fs::create_dir(data).unwrap();
        own(data, user("mysql"));
        let mut install = Command::new("mariadb-install-db");
        install.args([
            "--no-defaults",
            "--user=mysql",
            "--skip-test-db",
            "--auth-root-authentication-method=socket",
        ]);
        run(install.args(SMALL).arg(format!("--datadir={}", data.display())));
    }

    fn start(data: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        own(folder.path(), user("mysql"));
        let mut command = Command::new("mariadbd");
        command.arg("--no-defaults").args(SMALL);
        command.arg(format!("--datadir={}", data.display()));
        command.arg(format!("--socket={}", folder.path().join("sock").display()));
        command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
        let log = folder.path().join("log");
        let mut server = Server::start(command, user("mysql"), &log, rustix::process::Signal::TERM);
        server.wait_until(&log, || {
            mysql(folder.path())
                .arg("--execute=SELECT 1")
                .output()
                .unwrap()
                .status
                .success()
        });
        Self {
            folder,
            _server: server,
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("sock")
    }

    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        run(mysql(self.folder.path()).arg(format!("--execute={sql}")))
            .trim()
            .to_owned()
    }
}

fn mysql(folder: &Path) -> Command {
    let mut mysql = client(
        "mysql",
        &["--no-defaults", "--batch", "--skip-column-names", "--unbuffered"],
    );
    mysql.arg(format!("--socket={}", folder.join("sock").display()));
    mysql
}

/// One account gives to another, in a transaction with the number. In one statement, which locks rows in the order of their
/// key: two writers that lock them in different ones would end each other's transactions.
fn transfer(table: &'static str) -> impl Fn(u64) -> String + Send + 'static {
    move |number| {
        let (from, to) = (number * 7 % ACCOUNTS, number * 13 % ACCOUNTS);
        format!(
            "START TRANSACTION; \
             UPDATE bank.account SET money = money + (id = {to}) - (id = {from}) WHERE id IN ({from}, {to}); \
             INSERT INTO bank.{table} VALUES ({number}); COMMIT; SELECT {number};\n"
        )
    }
}

fn guest() -> (Guest, Database) {
    let mut database = None;
    let grant = grant_of("mariadb.rhai");
    let guest = Guest::new("mariadb.rhai", "", &grant, SIZE_BYTES, |disk| {
        let data = disk.join("mysql");
        Database::create(&data);
        let up = Database::start(&data);
        let settings = format!(
            "socket = \"{}\", folders = [\"{}\"]",
            up.socket().display(),
            disk.display()
        );
        database = Some(up);
        settings
    });
    let database = database.unwrap();
    database.ask(
        "CREATE DATABASE bank; CREATE TABLE bank.account (id INT PRIMARY KEY, money BIGINT NOT NULL); \
         CREATE TABLE bank.seen (n BIGINT PRIMARY KEY); CREATE TABLE bank.others (n BIGINT PRIMARY KEY); \
         CREATE TABLE bank.plain (n BIGINT) ENGINE = MyISAM;",
    );
    let rows: Vec<_> = (0..ACCOUNTS)
        .map(|id| format!("({id}, {})", MONEY / ACCOUNTS))
        .collect();
    database.ask(&format!("INSERT INTO bank.account VALUES {};", rows.join(", ")));
    (guest, database)
}

#[track_caller]
fn assert_whole(database: &Database, promised: u64) {
    let said = database.ask(
        "SELECT (SELECT SUM(money) FROM bank.account), (SELECT COUNT(*) = MAX(n) FROM bank.seen), \
         (SELECT COUNT(*) = MAX(n) FROM bank.others); CHECK TABLE bank.account, bank.seen, bank.plain",
    );
    assert!(said.starts_with(&format!("{MONEY}\t1\t1\n")), "{said}");
    assert_eq!(said.matches("\tOK").count(), 3, "{said}");
    let last: u64 = database.ask("SELECT MAX(n) FROM bank.seen").parse().unwrap();
    // One that waits for its COMMIT may be in the log already.
    assert!(
        last == promised || last == promised + 1,
        "{promised} was committed while commits were held, and the point ends at {last}"
    );
}

#[test]
fn mariadb_under_a_writer_is_whole_in_each_of_twenty_points() {
    let (mut guest, database) = guest();
    let writer = Writer::start(mysql(database.folder.path()), guest.told(), transfer("seen"));
    let other = Writer::start(mysql(database.folder.path()), guest.place.path("other"), |number| {
        format!(
            "INSERT INTO bank.plain VALUES ({number}); {}",
            transfer("others")(number)
        )
    });
    let promised: Vec<u64> = (0..TIMES).map(|_| guest.backup()).collect();
    assert!(writer.stop() > promised[TIMES - 1]);
    assert!(other.stop() > 0);
    assert!(
        promised.windows(2).all(|pair| pair[0] < pair[1]),
        "the writer went on: {promised:?}"
    );
    let points = guest.points();
    assert_eq!(points.len(), TIMES);
    assert_held_shortly(&points, "MariaDB");
    guest.without_the_script_the_point_says_so();
    drop(database);
    for (point, promised) in points.iter().zip(promised) {
        let restored = guest.restored(point);
        assert_whole(&Database::start(&restored.path().join("mysql")), promised);
    }
}

/// What another hook does while the lock is held.
fn meanwhile(guest: &Guest, shell: &str) {
    let script = format!(
        "fn pre(ctx) {{ let done = run(\"/bin/sh\", [\"-c\", `{shell}`]); if done.status != 0 {{ fail(done.stderr); }} }}\n"
    );
    fs::write(guest.place.path("scripts/note.rhai"), script).unwrap();
}

/// Writes work, and soon.
#[track_caller]
fn assert_writes_work(database: &Database, number: u64) {
    let began = Instant::now();
    database.ask(&format!(
        "SET SESSION lock_wait_timeout = 20; INSERT INTO bank.seen VALUES ({number});"
    ));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_lock_that_the_server_took_away_marks_the_point_down() {
    let (guest, database) = guest();
    let mysql = format!("mysql --no-defaults --socket={} -BN", database.socket().display());
    meanwhile(
        &guest,
        &format!(
            "{mysql} -e \"$({mysql} -e \"SELECT CONCAT('KILL ', id, ';') FROM information_schema.processlist WHERE command = 'Sleep'\")\""
        ),
    );
    guest.place.run(&["backup", "db01"]).expect(4);
    let point = guest.points().pop().unwrap();
    assert_eq!(point["consistency"], "crash", "{point}");
    assert!(
        point["consistency_reason"]
            .as_str()
            .unwrap()
            .starts_with("post of hook db failed"),
        "{point}"
    );
    assert_writes_work(&database, 1);
}

#[test]
fn a_lock_whose_client_is_gone_marks_the_point_down() {
    let (guest, database) = guest();
    // The client is the only one that says this to this server.
    meanwhile(
        &guest,
        &format!(
            "for p in /proc/[0-9]*; do if tr '\\0' ' ' < $p/cmdline | grep -q -- '^/usr/bin/mysql .*--socket={}.*skip-reconnect'; \
             then kill -9 $(basename $p); fi; done",
            database.socket().display()
        ),
    );
    guest.place.run(&["backup", "db01"]).expect(4);
    let point = guest.points().pop().unwrap();
    assert_eq!(point["consistency"], "crash", "{point}");
    assert!(
        point["consistency_reason"]
            .as_str()
            .unwrap()
            .starts_with("hook db lost what it held before the snapshot was there"),
        "{point}"
    );
    assert_writes_work(&database, 1);
}

#[test]
fn a_backup_that_is_killed_while_the_lock_is_held_leaves_no_lock() {
    let (guest, database) = guest();
    let begun = guest.place.path("begun");
    meanwhile(&guest, &format!("touch {}; sleep 30", begun.display()));
    let mut backup = guest
        .place
        .command(&["backup", "db01"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !begun.exists() {
        assert!(began.elapsed() < Duration::from_secs(60), "the second hook never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut blocked = mysql(database.folder.path());
    blocked.arg("--execute=SET SESSION lock_wait_timeout = 1; INSERT INTO bank.seen VALUES (1);");
    let said = blocked.output().unwrap();
    assert!(!said.status.success(), "the lock is held");
    backup.kill().unwrap();
    backup.wait().unwrap();
    assert_writes_work(&database, 2);
    // The next one pays what this one owed, and finds nothing that is locked.
    meanwhile(&guest, "true");
    guest.place.run(&["backup", "db01"]).expect(0);
    assert_eq!(guest.points().pop().unwrap()["consistency"], "application");
}
