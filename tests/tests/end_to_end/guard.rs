//! Whoever is killed while file systems are frozen or hooks run: writes work again, and the job tells what happened.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::place::target_folder;
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A write that has not ended after this waits for a thaw.
pub const A_WHILE: Duration = Duration::from_millis(300);
/// A write to a file system that takes them, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);
/// So many pieces of an image take XFS seconds to clone: long enough to be killed in the middle.
const PIECES: u64 = 150_000;

/// A machine with a disk that is mounted on this host, on an XFS that clones it.
struct Frozen {
    place: Place,
    /// Dropped from here on in this order: what lies on the other one first.
    inner: Scratch,
    _outer: Scratch,
}

impl Frozen {
    /// `slow`: with a disk that takes seconds to clone.
    fn new(freeze_at_most: &str, slow: bool) -> Self {
        let outer = Scratch::new("xfs", 2048 * MIB);
        let inner = Scratch::within(&outer.path(), "ext4", 200 * MIB);
        fs::write(inner.path().join("there"), "before the snapshot").unwrap();
        let mut images = vec![inner.image()];
        if slow {
            images.push(in_pieces(&outer.path().join("many.img")));
        }
        let images: Vec<String> = images.iter().map(|image| format!("\"{}\"", image.display())).collect();
        let place = Place::new(VaultKind::Folder)
            .with(&format!(
                "[policy.p]\nfreeze-at-most = \"{freeze_at_most}\"\n\
                 [machine.web01]\nprovider = \"reflink\"\nvault = \"main\"\npolicy = \"p\"\nfreeze = [\"{}\"]\n\
                 settings = {{ images = [{}], snapshots = \"{}\" }}\n",
                inner.freezable().display(),
                images.join(", "),
                outer.path().join("clones").display(),
            ))
            .init();
        fs::create_dir(outer.path().join("clones")).unwrap();
        Self {
            place,
            inner,
            _outer: outer,
        }
    }

    fn mount(&self) -> PathBuf {
        self.inner.path()
    }

    /// Starts a backup and waits until its file system is frozen.
    fn frozen(&self) -> Backup {
        let backup = Backup::start(&self.place);
        until_frozen(&self.place, &self.mount());
        backup
    }
}

/// Waits until a thaw is owed, and then until a write waits: the debt comes before the freeze, and a write that waits
/// may be one on a slow machine.
pub fn until_frozen(place: &Place, mount: &Path) {
    until(|| ledger(place).is_some_and(|text| text.contains("\"kind\":\"thaw\"")));
    until(|| !takes_writes(mount, A_WHILE));
}

/// A file in so many pieces.
fn in_pieces(path: &Path) -> PathBuf {
    let file = sparse(path, PIECES * 8192);
    let piece = [7; 4096];
    for number in 0..PIECES {
        file.write_all_at(&piece, number * 8192).unwrap();
    }
    file.sync_all().unwrap();
    path.to_owned()
}

pub struct Backup {
    child: Child,
}

impl Backup {
    pub fn start(place: &Place) -> Self {
        let mut command = place.command(&["backup", "web01"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its guard, which is a child of it.
    pub fn guard(&self) -> i32 {
        let found = processes().find(|(_, name, parent)| name.starts_with("coffre-guard") && *parent == self.pid());
        found.expect("it has a guard").0
    }

    pub fn kill(&mut self) {
        signal("KILL", self.pid());
        self.child.wait().unwrap();
    }

    /// Its exit code and what it said.
    pub fn end(mut self) -> (i32, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        stderr.read_to_string(&mut said).unwrap();
        (code, said)
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Number, name and parent of every process that is not a zombie.
pub fn processes() -> impl Iterator<Item = (i32, String, i32)> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let alive = fields.next()? != "Z";
        let parent = fields.next()?.parse().ok()?;
        alive.then(|| (pid, name.to_owned(), parent))
    })
}

pub fn signal(name: &str, pid: i32) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(status.unwrap().success());
}

#[track_caller]
pub fn until(mut what: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < give_up, "it did not come to be within a minute");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What is owed and ends with the kernel, if anything ever was.
fn ledger(place: &Place) -> Option<String> {
    let entries = fs::read_dir(place.path("run/guard")).ok()?;
    let texts = entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    Some(texts.collect())
}

/// Whether a write ends within that time, by a process that may sleep for good.
pub fn takes_writes(mount: &Path, within: Duration) -> bool {
    let mut child = Command::new(target_folder().join("coffre-guard"))
        .arg("prove")
        .arg(mount)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let give_up = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{status}");
            return true;
        }
        if Instant::now() >= give_up {
            let _ = child.kill();
            // It ends when the file system is thawed, and is reaped with this process.
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The job that died, as `jobs show` tells it.
fn told(place: &Place) -> String {
    let jobs = place.json(&["jobs", "list"]);
    let died: Vec<&Value> = jobs["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|job| job["outcome"] == "died")
        .collect();
    assert_eq!(died.len(), 1, "{jobs}");
    died[0]["notes"].to_string()
}

#[test]
fn file_systems_that_are_frozen_around_the_snapshot_make_it_file_system_consistent() {
    let frozen = Frozen::new("10s", false);
    // Dirty data that only a freeze brings into the image.
    let mut file = fs::File::create(frozen.mount().join("dirty")).unwrap();
    file.write_all(&vec![42; 20 << 20]).unwrap();
    let point = frozen.place.backup("web01");
    assert_eq!(point["consistency"], "file-system", "{point}");
    assert!(point["frozen_ms"].as_u64().is_some_and(|ms| ms < 10_000), "{point}");
    assert!(takes_writes(&frozen.mount(), SOON));
    let restored = frozen.place.restore("web01");
    let image = fs::read_dir(&restored).unwrap().flatten().next().unwrap().path();
    // Without a journal to play back: every inode and bitmap is as it must be.
    let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "{said}");
    assert!(!said.contains("recovering journal"), "{said}");
    let listed = Command::new("debugfs")
        .args(["-R", "stat /dirty"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&listed.stdout).contains("Size: 20971520"));
}

#[test]
fn a_backup_killed_while_it_holds_a_freeze_leaves_writes_working_and_its_job_tells() {
    let frozen = Frozen::new("60s", true);
    let mut backup = frozen.frozen();
    backup.kill();
    assert!(takes_writes(&frozen.mount(), SOON));
    let doctor = frozen.place.run(&["doctor"]).expect(0);
    assert!(doctor.stdout.contains("was thawed by the guard"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("all is well"), "{}", doctor.stdout);
    let told = told(&frozen.place);
    assert!(
        told.contains("was thawed by the guard") && told.contains("takes writes"),
        "{told}"
    );
    frozen.place.backup("web01");
}

#[test]
fn a_backup_whose_guard_is_killed_thaws_at_once_and_fails() {
    let frozen = Frozen::new("60s", true);
    let backup = frozen.frozen();
    signal("KILL", backup.guard());
    let began = Instant::now();
    assert!(takes_writes(&frozen.mount(), SOON));
    assert!(began.elapsed() < Duration::from_secs(20), "not only at the deadline");
    let (code, said) = backup.end();
    assert_eq!(code, 75, "{said}");
    assert!(said.contains("the guard went away") && said.contains("hint:"), "{said}");
    assert!(frozen.place.points("web01").is_empty());
    frozen.place.backup("web01");
}

#[test]
fn when_backup_and_guard_are_both_killed_the_next_start_thaws_and_shows_that_writes_work() {
    let frozen = Frozen::new("60s", true);
    let mut backup = frozen.frozen();
    let guard = backup.guard();
    // At once, so that neither can act for the other.
    signal("STOP", backup.pid());
    signal("KILL", guard);
    backup.kill();
    until(|| !processes().any(|(pid, ..)| pid == guard));
    assert!(!takes_writes(&frozen.mount(), A_WHILE), "nobody was there to thaw it");
    let document = frozen.place.json(&["doctor"]);
    assert_eq!(document["ok"], true, "{document}");
    assert!(takes_writes(&frozen.mount(), SOON));
    let text = document["left_behind"][0]["text"].as_str().unwrap();
    assert!(
        text.contains("was thawed at a later start") && text.contains("takes writes"),
        "{text}"
    );
    assert!(told(&frozen.place).contains("was thawed at a later start"));
    let again = frozen.place.json(&["doctor"]);
    assert!(again["left_behind"].as_array().unwrap().is_empty(), "{again}");
    frozen.place.backup("web01");
}

#[test]
fn every_start_of_a_backup_pays_what_is_owed() {
    let frozen = Frozen::new("60s", true);
    let mut backup = frozen.frozen();
    signal("STOP", backup.pid());
    signal("KILL", backup.guard());
    backup.kill();
    let ran = frozen.place.run(&["backup", "web01"]).expect(0);
    assert!(
        ran.stderr.contains("left behind:") && ran.stderr.contains("was thawed"),
        "{}",
        ran.stderr
    );
    assert!(takes_writes(&frozen.mount(), SOON));
}

#[test]
fn a_snapshot_that_hangs_does_not_hold_file_systems_past_their_time() {
    let images = Scratch::new("xfs", 512 * MIB);
    let apart = Scratch::new("ext4", 200 * MIB);
    let image = images.path().join("root.img");
    // Open for writing all the while, as the disk of a machine that runs.
    let disk = sparse(&image, 8 * MIB);
    write_noise(&disk, 0, MIB, 1);
    let place = Place::new(VaultKind::Folder)
        .with(&format!(
            "[policy.p]\nfreeze-at-most = \"5s\"\n\
             [machine.web01]\nprovider = \"reflink\"\nvault = \"main\"\npolicy = \"p\"\nfreeze = [\"{}\"]\n\
             settings = {{ images = \"{}\" }}\n",
            apart.freezable().display(),
            images.path().display(),
        ))
        .init();
    // The place of the clones is frozen by somebody else: cloning there sleeps, and no signal ends that.
    images.freeze();
    let backup = Backup::start(&place);
    until_frozen(&place, &apart.path());
    let began = Instant::now();
    assert!(takes_writes(&apart.path(), SOON));
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    images.thaw();
    let (code, said) = backup.end();
    assert_eq!(code, 4, "{said}");
    let point = place.points("web01").pop().unwrap();
    assert_eq!(point["consistency"], "crash");
    let reason = point["consistency_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the snapshot was not there after a freeze of"),
        "{reason}"
    );
}

#[test]
fn what_coffre_itself_needs_is_never_frozen() {
    let scratch = Scratch::new("ext4", 200 * MIB);
    let place = Place::within(&scratch.path(), VaultKind::Folder).with_machine("web01", "image");
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    let place = place
        .with(&format!("freeze = [\"{}\"]\n", scratch.freezable().display()))
        .init();
    place
        .run(&["backup", "web01"])
        .refused(1, &["must not be frozen: it holds", "state folder"]);
    let ran = place.run(&["config", "check"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("must not be frozen"), "{ran:?}");
    assert!(takes_writes(&scratch.path(), SOON));
}

#[test]
fn a_killed_backup_leaves_no_process_of_its_hooks() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    let begun = place.path("begun");
    let place = place.with(
        "hooks = [\"slow\"]\n[hook.slow]\nkind = \"rhai\"\nfile = \"slow.rhai\"\non = \"host\"\n\
         [hook.slow.grant]\nprocess = [[\"/bin/sh\", \"-c\", \"{text}\"]]\n",
    );
    fs::create_dir(place.path("scripts")).unwrap();
    // One of them in a session of its own and without the marker.
    let command = format!(
        "setsid env -i sleep 3000 & echo $! > {0}; setsid sleep 3000 & echo $! >> {0}; wait",
        begun.display()
    );
    let script = format!("fn pre(ctx) {{ run(\"/bin/sh\", [\"-c\", `{command}`]); }}\nfn post(ctx) {{}}\n");
    fs::write(place.path("scripts/slow.rhai"), script).unwrap();
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    let place = place.init();
    let mut backup = Backup::start(&place);
    let written = || fs::read_to_string(&begun).unwrap_or_default();
    until(|| written().lines().count() == 2);
    let pids: Vec<i32> = written().lines().map(|line| line.trim().parse().unwrap()).collect();
    let alive = |pid: &i32| processes().any(|(other, ..)| other == *pid);
    assert!(pids.iter().all(alive));
    backup.kill();
    until(|| !pids.iter().any(alive));
    // And the post that is owed runs.
    let doctor = place.run(&["doctor"]).expect(0);
    assert!(
        doctor.stdout.contains("processes of a command were ended"),
        "{}",
        doctor.stdout
    );
    let jobs = place.json(&["jobs", "list"]);
    let died = jobs["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .find(|job| job["outcome"] == "died")
        .unwrap();
    assert_eq!(died["hooks"][0]["post"]["ok"], true, "{died}");
    assert_eq!(died["owes"], false, "{died}");
}
