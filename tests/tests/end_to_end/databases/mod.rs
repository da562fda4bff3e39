//! The scripts that ship, around real databases under load: every point is restored, started and looked into.
//!
//! What is protected is a *guest*: one disk image on XFS, taken by the reflink provider, whose file system (XFS too) is
//! mounted here, so that the database runs on it as it would in a machine.

mod mariadb;
mod postgres;
mod redis;
mod sqlite;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coffre_tests::disk::sparse;
use coffre_tests::mount::Scratch;
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// How often a database is backed up under load.
const TIMES: usize = 20;

/// What of the hold is ours may take this long at the 95th percentile, if nobody says otherwise: ten times what is promised
/// of a machine that does nothing else. `cargo xtask bench hold` asks for what is promised.
const HOLD_OVERHEAD_MS: u64 = 1000;

/// A machine with one disk that is mounted here, and the folder with the configuration that backs it up.
struct Guest {
    place: Place,
    // Unmounted in this order.
    disk: Scratch,
    _images: Scratch,
}

impl Guest {
    /// Backed up with a shipped script and these settings. `grant` is what the script's header asks for. A second hook
    /// notes, while the first one holds, what the writer had been told by then.
    fn new(script: &str, settings: &str, grant: &str, size_bytes: u64, make: impl FnOnce(&Path) -> String) -> Self {
        let images = Scratch::new("xfs", 4 * size_bytes);
        let image = images.path().join("root.img");
        drop(sparse(&image, size_bytes));
        run(Command::new("mkfs.xfs").arg("-q").arg(&image));
        let disk = Scratch::of_image(&image);
        let more = make(&disk.path());
        let place = Place::new(VaultKind::Folder);
        let (told, noted) = (place.path("told"), place.path("noted"));
        fs::write(&told, "0").unwrap();
        let config = format!(
            "[machine.db01]\nprovider = \"reflink\"\nvault = \"main\"\nsettings = {{ images = \"{}\" }}\n\
             hooks = [\"db\", \"note\"]\n\
             [hook.db]\nkind = \"rhai\"\non = \"host\"\nfile = \"{script}\"\nsettings = {{ {settings}{more} }}\n\
             [hook.db.grant]\n{grant}\n\
             [hook.note]\nkind = \"rhai\"\non = \"host\"\nfile = \"note.rhai\"\n\
             [hook.note.grant]\nprocess = [[\"/bin/sh\", \"-c\", \"{{text}}\"]]\n",
            images.path().display(),
        );
        let place = place.with(&config);
        fs::create_dir(place.path("scripts")).unwrap();
        fs::write(place.path("scripts").join(script), shipped(script)).unwrap();
        let note = format!(
            "fn pre(ctx) {{ if run(\"/bin/sh\", [\"-c\", \"cat {} > {}\"]).status != 0 {{ fail(\"no note\"); }} }}\n",
            told.display(),
            noted.display()
        );
        fs::write(place.path("scripts/note.rhai"), note).unwrap();
        Self {
            place: place.init(),
            disk,
            _images: images,
        }
    }

    /// Backs up and returns the last number that the writer had been told is committed, when the script's pre had ended.
    #[track_caller]
    fn backup(&self) -> u64 {
        self.place.run(&["backup", "db01"]).expect(0);
        fs::read_to_string(self.place.path("noted")).unwrap().parse().unwrap()
    }

    fn points(&self) -> Vec<Value> {
        self.place.points("db01")
    }

    /// What the writer was told last.
    fn told(&self) -> PathBuf {
        self.place.path("told")
    }

    /// Restores a point and mounts its disk; dropping it takes both away.
    fn restored(&self, point: &Value) -> Restored {
        let folder = self.place.restore(&format!("db01@{}", point["point"]));
        let disk = Scratch::of_image(&folder.join("root.img"));
        Restored {
            disk: Some(disk),
            folder,
        }
    }

    /// The same machine without hooks is backed up, and the point says what that is worth.
    #[track_caller]
    fn without_the_script_the_point_says_so(&mut self) {
        self.place.config = self.place.config.replace("hooks = [\"db\", \"note\"]\n", "");
        self.place.write_config();
        let point = self.place.backup("db01");
        assert_eq!(point["consistency"], "crash", "{point}");
        let why = point["consistency_reason"].as_str().unwrap();
        assert!(why.contains("is taken as running"), "{why}");
        assert_eq!(point["held_ms"], Value::Null);
        assert_eq!(point["hold_overhead_ms"], Value::Null);
    }
}

struct Restored {
    disk: Option<Scratch>,
    folder: PathBuf,
}

impl Restored {
    fn path(&self) -> PathBuf {
        self.disk.as_ref().unwrap().path()
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        self.disk = None;
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Every point is worth `application`, by the script, and what was held beside hooks and snapshot is within bounds.
#[track_caller]
fn assert_held_shortly(points: &[Value], what: &str) {
    let mut overheads = Vec::new();
    for point in points {
        assert_eq!(point["consistency"], "application", "{point}");
        assert_eq!(point["consistency_reason"], "brought to rest by db", "{point}");
        assert_eq!(point["hooks"][0]["post"]["ok"], true, "{point}");
        overheads.push(point["hold_overhead_ms"].as_u64().expect("a measure"));
    }
    let held: Vec<u64> = points.iter().map(|point| point["held_ms"].as_u64().unwrap()).collect();
    overheads.sort_unstable();
    let p95 = overheads[(overheads.len() * 95).div_ceil(100) - 1];
    let most: u64 = std::env::var("COFFRE_TEST_HOLD_MS").map_or(HOLD_OVERHEAD_MS, |text| text.parse().unwrap());
    let _ = writeln!(
        std::io::stderr(),
        "{what}: neither in hooks nor in the snapshot, ms: {overheads:?}, 95th percentile {p95} (at most {most}); held in all, \
         ms: {held:?}"
    );
    assert!(p95 <= most, "{what}: {overheads:?} ms");
}

fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The `process` grant that a script's header asks for, word for word.
fn grant_of(script: &str) -> String {
    let header: Vec<String> = shipped(script)
        .lines()
        .take_while(|line| line.starts_with("//"))
        .map(|line| line.trim_start_matches('/').trim().to_owned())
        .collect();
    let begin = header.iter().position(|line| line == "process = [").expect(script);
    let end = header[begin..].iter().position(|line| line == "]").expect(script);
    header[begin..=begin + end].join("\n")
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The numbers of a system user, which the package of its database makes.
fn user(name: &str) -> (u32, u32) {
    let id = |what: &str| run(Command::new("id").args([what, name])).trim().parse().unwrap();
    (id("-u"), id("-g"))
}

fn own(path: &Path, user: (u32, u32)) {
    std::os::unix::fs::chown(path, Some(user.0), Some(user.1)).unwrap();
}

/// A server of ours: as another user, with its words in a file, ended with the test however that ends.
struct Server {
    child: Child,
    /// Ends it in order.
    signal: rustix::process::Signal,
}

impl Server {
    fn start(mut command: Command, user: (u32, u32), log: &Path, signal: rustix::process::Signal) -> Self {
        let log = fs::File::create(log).unwrap();
        command
            .uid(user.0)
            .gid(user.1)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, signal }
    }

    #[track_caller]
    fn wait_until(&mut self, log: &Path, mut is_up: impl FnMut() -> bool) {
        let began = Instant::now();
        while !is_up() {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && began.elapsed() < Duration::from_secs(90),
                "the server is not up ({ended:?}): {}",
                fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn end(&mut self, signal: rustix::process::Signal, within: Duration) -> bool {
        let _ = rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal);
        let began = Instant::now();
        while began.elapsed() < within {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.end(self.signal, Duration::from_secs(30)) {
            self.end(rustix::process::Signal::KILL, Duration::from_secs(10));
        }
    }
}

/// A client that commits one number after the other, and writes down each that it was told is committed.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    /// `statement` commits a number and then says it on a line of its own. When this returns, it has done so once.
    fn start(client: Command, told: PathBuf, statement: impl Fn(u64) -> String + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let first = told.clone();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut talk = Talk::start(client);
            let aside = told.with_extension("new");
            let mut number = 1;
            while !stopped.load(Ordering::Relaxed) {
                talk.say(&statement(number));
                talk.hear(&number.to_string());
                fs::write(&aside, number.to_string()).unwrap();
                fs::rename(&aside, &told).unwrap();
                number += 1;
            }
            number - 1
        });
        let began = Instant::now();
        while fs::read_to_string(&first).map_or(true, |text| text == "0") {
            assert!(
                began.elapsed() < Duration::from_secs(60) && !thread.is_finished(),
                "the writer commits nothing"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Stops it; the last number that it was told is committed.
    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .unwrap()
            .join()
            .expect("the writer went on to the end")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A program that is told lines and answers with lines.
struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Talk {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    #[track_caller]
    fn say(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).expect("the client is there");
        input.flush().unwrap();
    }

    /// Reads up to a line.
    #[track_caller]
    fn hear(&mut self, wanted: &str) {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the client has ended");
            if line.trim() == wanted {
                return;
            }
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client with these arguments.
fn client(program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C.UTF-8");
    command
}
