//! PostgreSQL under pgbench.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::*;

const SIZE_BYTES: u64 = 512 * MIB;

/// Where Debian puts the programs of the newest version that is there.
fn program(name: &str) -> PathBuf {
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed: apt-get install postgresql")
        .map(|entry| entry.unwrap().path().join("bin").join(name))
        .filter(|path| path.is_file())
        .collect();
    versions.sort();
    versions.pop().unwrap_or_else(|| panic!("{name} is not there"))
}

/// A cluster that runs, reached by a socket of its own.
struct Cluster {
    socket: tempfile::TempDir,
    _server: Server,
}

impl Cluster {
    fn create(data: &Path) {
        fs::create_dir(data).unwrap();
        own(data, user("postgres"));
        let mut initdb = Command::new(program("initdb"));
        let (uid, gid) = user("postgres");
        initdb.uid(uid).gid(gid).arg("-D").arg(data);
        // Small segments of the log, since each is written whole at first.
        run(initdb.args(["--auth=trust", "--wal-segsize=1", "--no-locale", "--encoding=UTF8"]));
    }

    fn start(data: &Path, more: &[&str]) -> Self {
        let socket = tempfile::tempdir().unwrap();
        own(socket.path(), user("postgres"));
        let mut command = Command::new(program("postgres"));
        command.arg("-D").arg(data).arg("-k").arg(socket.path());
        command.args([
            "-c",
            "listen_addresses=",
            "-c",
            "shared_buffers=16MB",
            "-c",
            "max_wal_size=32MB",
        ]);
        command.args(more);
        let log = socket.path().join("log");
        let mut server = Server::start(command, user("postgres"), &log, rustix::process::Signal::INT);
        let up = |socket: &Path| {
            let asked = psql(socket).arg("--command=SELECT 1").output().unwrap();
            asked.status.success()
        };
        server.wait_until(&log, || up(socket.path()));
        Self {
            socket,
            _server: server,
        }
    }

    #[track_caller]
    fn ask(&self, sql: &str) -> String {
        run(psql(self.socket.path()).arg(format!("--command={sql}")))
            .trim()
            .to_owned()
    }
}

fn psql(socket: &Path) -> Command {
    let mut psql = client(
        program("psql"),
        &["--no-psqlrc", "--tuples-only", "--no-align", "--quiet"],
    );
    psql.args([
        "--username=postgres",
        "--dbname=postgres",
        "--set=ON_ERROR_STOP=1",
        "--host",
    ]);
    psql.arg(socket);
    psql
}

/// Numbers are committed whole, none is missing up to the last, and every transaction of pgbench is there or is not.
#[track_caller]
fn assert_whole(cluster: &Cluster, promised: u64) {
    let sums = cluster.ask(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(bbalance) FROM pgbench_branches) \
         AND (SELECT sum(tbalance) FROM pgbench_tellers) = (SELECT sum(bbalance) FROM pgbench_branches) \
         AND (SELECT coalesce(sum(delta), 0) FROM pgbench_history) = (SELECT sum(bbalance) FROM pgbench_branches), \
         (SELECT count(*) > 0 FROM pgbench_history), (SELECT count(*) = max(n) FROM seen)",
    );
    assert_eq!(sums, "t|t|t");
    let last: u64 = cluster.ask("SELECT max(n) FROM seen").parse().unwrap();
    assert!(
        last >= promised,
        "{promised} was committed before pre had ended, and the point ends at {last}"
    );
}

/// Load and a writer that end with the test.
struct Load {
    pgbench: Child,
    writer: Option<Writer>,
}

impl Load {
    fn on(cluster: &Cluster, told: PathBuf) -> Self {
        let pgbench = |arguments: &[&str]| {
            let mut command = client(program("pgbench"), arguments);
            command
                .arg("-h")
                .arg(cluster.socket.path())
                .args(["-U", "postgres", "postgres"]);
            command
        };
        run(&mut pgbench(&["-i", "-s", "1", "-q"]));
        cluster.ask("CREATE TABLE seen (n bigint PRIMARY KEY)");
        // Bounded, so that the machine has something left for the backup; still a hundred commits a second.
        let mut load = pgbench(&["-n", "-c", "2", "-T", "3600", "--rate=100"]);
        let pgbench = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let statement = |number: u64| format!("INSERT INTO seen VALUES ({number});\n\\echo {number}\n");
        let writer = Writer::start(psql(cluster.socket.path()), told, statement);
        Self {
            pgbench,
            writer: Some(writer),
        }
    }

    #[track_caller]
    fn stop(mut self) -> u64 {
        assert!(
            matches!(self.pgbench.try_wait(), Ok(None)),
            "pgbench went on to the end"
        );
        self.writer.take().unwrap().stop()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.pgbench.kill();
        let _ = self.pgbench.wait();
    }
}

/// The header's grant, with the words that it writes short.
fn grant(script: &str) -> String {
    let words = [
        "/usr/sbin/runuser",
        "-u",
        "postgres",
        "--",
        "/usr/bin/psql",
        "--no-psqlrc",
        "--no-password",
        "--tuples-only",
        "--no-align",
        "--dbname=postgres",
        "--host={path}",
    ];
    grant_of(script).replace("PSQL", &words.map(|word| format!("\"{word}\"")).join(", "))
}

fn guest(script: &str, more: &[&str]) -> (Guest, Cluster) {
    let mut cluster = None;
    let guest = Guest::new(script, "port = 5432, ", &grant(script), SIZE_BYTES, |disk| {
        let data = disk.join("cluster");
        Cluster::create(&data);
        let up = Cluster::start(&data, more);
        let socket = up.socket.path().display().to_string();
        cluster = Some(up);
        format!("host = \"{socket}\", folders = [\"{}\"]", disk.display())
    });
    (guest, cluster.unwrap())
}

#[test]
fn postgres_under_pgbench_is_whole_in_each_of_twenty_points() {
    let (mut guest, cluster) = guest("postgres.rhai", &[]);
    let load = Load::on(&cluster, guest.told());
    let promised: Vec<u64> = (0..TIMES).map(|_| guest.backup()).collect();
    assert!(load.stop() > promised[TIMES - 1]);
    assert!(
        promised.windows(2).all(|pair| pair[0] < pair[1]),
        "the writer went on: {promised:?}"
    );
    let points = guest.points();
    assert_eq!(points.len(), TIMES);
    assert_held_shortly(&points, "PostgreSQL");
    guest.without_the_script_the_point_says_so();
    drop(cluster);
    for (point, promised) in points.iter().zip(promised) {
        let restored = guest.restored(point);
        let data = restored.path().join("cluster");
        // It was running when it was taken.
        fs::remove_file(data.join("postmaster.pid")).unwrap();
        assert_whole(&Cluster::start(&data, &[]), promised);
    }
}

#[test]
fn a_cluster_that_archives_its_log_is_backed_up_with_its_label_and_rolled_forward() {
    let archive = tempfile::tempdir().unwrap();
    own(archive.path(), user("postgres"));
    let command = format!("archive_command=cp %p {}/%f", archive.path().display());
    let (guest, cluster) = guest("postgres-wal.rhai", &["-c", "archive_mode=on", "-c", &command]);
    let load = Load::on(&cluster, guest.told());
    let promised = guest.backup();
    let last = load.stop();
    cluster.ask("SELECT pg_switch_wal()");
    drop(cluster);
    let point = guest.points().pop().unwrap();
    assert_held_shortly(std::slice::from_ref(&point), "PostgreSQL with its archive");
    assert_eq!(point["attachments"][0]["name"], "backup_label", "{point}");

    // To the snapshot's instant, as after a power cut.
    let restored = guest.restored(&point);
    let data = restored.path().join("cluster");
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    assert_whole(&Cluster::start(&data, &["-c", "archive_mode=off"]), promised);
    drop(restored);

    // To the end of the archive, by the label.
    let restored = guest.restored(&point);
    let data = restored.path().join("cluster");
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    fs::copy(
        restored.folder.join("attachments/backup_label"),
        data.join("backup_label"),
    )
    .unwrap();
    for entry in fs::read_dir(data.join("pg_wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    fs::write(data.join("recovery.signal"), "").unwrap();
    own(&data.join("backup_label"), user("postgres"));
    own(&data.join("recovery.signal"), user("postgres"));
    let command = format!("restore_command=cp {}/%f %p", archive.path().display());
    let cluster = Cluster::start(&data, &["-c", "archive_mode=off", "-c", &command]);
    assert_whole(&cluster, last);
}
