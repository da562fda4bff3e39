//! Redis under a writer, with and without an append-only file.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

const SIZE_BYTES: u64 = 400 * MIB;
const TIMES: usize = 3;

struct Database {
    folder: tempfile::TempDir,
    _server: Server,
}

impl Database {
    fn start(data: &Path, keeps_log: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        own(folder.path(), user("redis"));
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--daemonize", "no", "--unixsocket"]);
        command.arg(folder.path().join("sock")).arg("--dir").arg(data);
        command.args(["--appendonly", if keeps_log { "yes" } else { "no" }]);
        let log = folder.path().join("log");
        let mut server = Server::start(command, user("redis"), &log, rustix::process::Signal::KILL);
        server.wait_until(&log, || ask(folder.path(), &["PING"]).starts_with("PONG"));
        Self {
            folder,
            _server: server,
        }
    }

    fn ask(&self, words: &[&str]) -> String {
        ask(self.folder.path(), words)
    }
}

fn redis(folder: &Path) -> Command {
    let mut client = client("redis-cli", &["-s"]);
    client.arg(folder.join("sock"));
    client
}

fn ask(folder: &Path, words: &[&str]) -> String {
    let output = redis(folder).args(words).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn is_whole_in_each_point(keeps_log: bool) {
    let mut database = None;
    let grant = grant_of("redis.rhai").replace("\"-p\", \"{number}\"", "\"-s\", \"{path}\"");
    let guest = Guest::new("redis.rhai", "", &grant, SIZE_BYTES, |disk| {
        let data = disk.join("redis");
        fs::create_dir(&data).unwrap();
        own(&data, user("redis"));
        let up = Database::start(&data, keeps_log);
        let socket: PathBuf = up.folder.path().join("sock");
        database = Some(up);
        format!("socket = \"{}\", folders = [\"{}\"]", socket.display(), disk.display())
    });
    let database = database.unwrap();
    let both = |number: u64| format!("MULTI\nSET one {number}\nSET two {number}\nEXEC\nECHO {number}\n");
    let writer = Writer::start(redis(database.folder.path()), guest.told(), both);
    let mut promised = Vec::new();
    for _ in 0..TIMES {
        // What was acknowledged before pre began is on disk: Redis writes what it holds then.
        promised.push(fs::read_to_string(guest.told()).unwrap().parse::<u64>().unwrap());
        guest.backup();
    }
    assert!(writer.stop() > promised[TIMES - 1]);
    assert!(promised[0] < promised[TIMES - 1], "the writer went on: {promised:?}");
    let points = guest.points();
    assert_held_shortly(&points, "Redis");
    drop(database);
    for (point, promised) in points.iter().zip(promised) {
        let restored = guest.restored(point);
        let database = Database::start(&restored.path().join("redis"), keeps_log);
        let (one, two) = (database.ask(&["GET", "one"]), database.ask(&["GET", "two"]));
        assert_eq!(one, two);
        assert!(
            one.parse::<u64>().unwrap() >= promised,
            "{one}, and {promised} was acknowledged"
        );
    }
}

#[test]
fn redis_is_whole_in_each_point() {
    is_whole_in_each_point(false);
}

#[test]
fn redis_with_an_append_only_file_is_whole_in_each_point() {
    is_whole_in_each_point(true);
}
