//! The disks of a running QEMU: here of its storage daemon, which has the same monitor, block layer and bitmaps. What a guest
//! writes goes through files that the daemon serves (FUSE).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::{Place, VaultKind};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;
const SIZE_BYTES: u64 = 64 * MIB;
const DISKS: [&str; 2] = ["a", "b"];
/// The granularity of bitmaps.
const CLUSTER: u64 = 65_536;

struct Machine {
    place: Place,
    daemon: Child,
    /// Of a monitor of its own, which nobody but the test uses.
    answers: BufReader<ChildStdout>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Asked, it takes its mounts down.
        if let Some(mut monitor) = self.daemon.stdin.take() {
            let _ = writeln!(monitor, "{}", json!({ "execute": "quit" }));
            let until = Instant::now() + Duration::from_secs(5);
            while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < until {
                sleep(Duration::from_millis(20));
            }
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        for disk in DISKS {
            let guest = self.place.path(&format!("guest-{disk}"));
            let _ = Command::new("fusermount3").args(["-uqz"]).arg(guest).status();
        }
    }
}

impl Machine {
    /// `a` is a qcow2, which can keep bitmaps, `b` is raw.
    fn new() -> Self {
        let place = Place::new(VaultKind::Folder);
        let (qmp, scratch) = (place.path("qmp"), place.path("scratch"));
        fs::create_dir(&scratch).unwrap();
        let place = place.with(&format!(
            "[machine.vm]\nprovider = \"qemu\"\nvault = \"main\"\n\
             settings = {{ qmp = \"{}\", scratch = \"{}\", disks = {{ a = \"disk-a\", b = \"disk-b\" }} }}\n",
            qmp.display(),
            scratch.display()
        ));
        let mut arguments = vec!["--chardev".to_owned(), "stdio,id=t".to_owned()];
        let mut option = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
        option("monitor", "chardev=t".to_owned());
        option(
            "chardev",
            format!("socket,id=q,path={},server=on,wait=off", qmp.display()),
        );
        option("monitor", "chardev=q".to_owned());
        for disk in DISKS {
            let raw = place.images().join(format!("{disk}.raw"));
            write_noise(
                &sparse(&raw, SIZE_BYTES),
                5 * MIB,
                9 * MIB,
                u64::from(disk.as_bytes()[0]),
            );
            let (image, driver) = match disk {
                "a" => (place.images().join("a.qcow2"), "qcow2"),
                _ => (raw.clone(), "raw"),
            };
            if driver == "qcow2" {
                let mut convert = Command::new("qemu-img");
                convert
                    .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
                    .args([&raw, &image]);
                assert!(convert.status().unwrap().success());
            }
            option(
                "blockdev",
                format!("file,node-name=file-{disk},filename={}", image.display()),
            );
            option("blockdev", format!("{driver},node-name=disk-{disk},file=file-{disk}"));
            let guest = place.path(&format!("guest-{disk}"));
            fs::write(&guest, "").unwrap();
            option(
                "export",
                format!(
                    "fuse,id=guest-{disk},node-name=disk-{disk},mountpoint={},writable=on",
                    guest.display()
                ),
            );
        }
        let mut daemon = Command::new("qemu-storage-daemon")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-storage-daemon, which cargo xtask test installs");
        let answers = BufReader::new(daemon.stdout.take().unwrap());
        let mut machine = Self {
            place: place.init(),
            daemon,
            answers,
        };
        machine.answer();
        machine.ask("qmp_capabilities", json!({}));
        machine
    }

    fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let asked = json!({ "execute": command, "arguments": arguments });
        writeln!(self.daemon.stdin.as_mut().unwrap(), "{asked}").unwrap();
        loop {
            let answer = self.answer();
            if answer.get("event").is_none() {
                assert!(answer.get("return").is_some(), "{command}: {answer}");
                return answer["return"].clone();
            }
        }
    }

    fn guest(&self, disk: &str) -> PathBuf {
        self.place.path(&format!("guest-{disk}"))
    }

    fn write(&self, disk: &str, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(self.guest(disk)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// What the guest's disk holds now.
    fn content(&self, disk: &str) -> Vec<u8> {
        fs::read(self.guest(disk)).unwrap()
    }

    fn restored(&self, point: &Value, disk: &str) -> Vec<u8> {
        let folder = self.place.restore(&format!("vm@{}", point["point"]));
        fs::read(folder.join(format!("{disk}.img"))).unwrap()
    }

    /// Of everything that backups make in QEMU and beside it, the newest base alone is there.
    #[track_caller]
    fn assert_nothing_is_left(&mut self) {
        assert_eq!(self.ask("query-jobs", json!({})), json!([]));
        let exports = self.ask("query-block-exports", json!({})).to_string();
        assert!(!exports.contains("coffre"), "{exports}");
        let nodes = self.ask("query-named-block-nodes", json!({ "flat": true }));
        for node in nodes.as_array().unwrap() {
            let name = node["node-name"].as_str().unwrap();
            assert!(!name.starts_with("cf-"), "the node {name}");
            let bitmaps = node["dirty-bitmaps"].as_array().map_or(0, Vec::len);
            assert_eq!(bitmaps, usize::from(name.starts_with("disk-")), "{node}");
        }
        let left: Vec<_> = fs::read_dir(self.place.path("scratch")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn disk<'a>(point: &'a Value, id: &str) -> &'a Value {
    let disks = point["disks"].as_array().unwrap();
    disks.iter().find(|disk| disk["id"] == id).unwrap()
}

#[test]
fn a_running_machine_is_backed_up_and_then_what_its_bitmaps_say() {
    let mut machine = Machine::new();
    let first = machine.place.backup("vm");
    assert_eq!(first["consistency"], "crash");
    machine.assert_nothing_is_left();
    for id in DISKS {
        assert!(
            machine.restored(&first, id) == machine.content(id),
            "disk {id} is another"
        );
    }

    let before = machine.content("a");
    for offset in [0, 20 * MIB + 4096, SIZE_BYTES - 512] {
        machine.write("a", offset, &[0x5a; 512]);
    }
    let second = machine.place.backup("vm");
    machine.assert_nothing_is_left();
    for (id, clusters) in [("a", 3), ("b", 0)] {
        let disk = disk(&second, id);
        assert_eq!(disk["compared"], "tracked", "{disk}");
        let counted = |key: &str| disk[key].as_u64().unwrap();
        assert_eq!(
            counted("read_bytes") - counted("sampled_bytes"),
            clusters * CLUSTER,
            "{disk}"
        );
        assert!(
            machine.restored(&second, id) == machine.content(id),
            "disk {id} is another"
        );
    }
    assert!(machine.restored(&first, "a") == before, "the first point has changed");
}

/// The guest counts on both disks, one after the other, without a pause.
#[test]
fn while_it_is_written_to_all_disks_are_of_one_instant() {
    const SLOTS: u64 = 256;
    let mut machine = Machine::new();
    machine.place.backup("vm");
    let offset = |count: u64| count % SLOTS * CLUSTER * 3;
    let counts_of = |disk: &[u8]| -> Vec<u64> {
        let count = |slot: u64| {
            let at = offset(slot) as usize;
            u64::from_le_bytes(disk[at..at + 8].try_into().unwrap())
        };
        (0..SLOTS).map(count).collect()
    };
    let over = AtomicBool::new(false);
    let (point, counted) = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let files = DISKS.map(|disk| File::options().write(true).open(machine.guest(disk)).unwrap());
            let mut count = 1;
            while !over.load(Ordering::Relaxed) {
                for file in &files {
                    file.write_all_at(&u64::to_le_bytes(count), offset(count)).unwrap();
                }
                count += 1;
            }
            count
        });
        sleep(Duration::from_millis(300));
        let point = machine.place.backup("vm");
        over.store(true, Ordering::Relaxed);
        (point, guest.join().unwrap())
    });
    machine.assert_nothing_is_left();
    let [a, b] = DISKS.map(|disk| counts_of(&machine.restored(&point, disk)));
    let last = *a.iter().max().unwrap();
    assert!(
        last > 1 && last + 1 < counted,
        "{last} of {counted}: nothing was written meanwhile"
    );
    let then = |slot: u64, last: u64| {
        // The newest count in this slot that is not after `last`; slots that were not reached keep what was there.
        last.checked_sub((last + SLOTS - slot) % SLOTS)
            .filter(|newest| *newest > 0)
    };
    for slot in 0..SLOTS {
        let of_a = then(slot, last);
        if let Some(wanted) = of_a {
            assert_eq!(a[slot as usize], wanted, "slot {slot} of a, {last}");
        }
        // On b the last one may not have been written yet.
        let (reached, missed) = (then(slot, last), then(slot, last - 1));
        if let (Some(reached), Some(missed)) = (reached, missed) {
            let found = b[slot as usize];
            assert!(
                found == reached || found == missed,
                "slot {slot} of b has {found}, {last}"
            );
        }
    }
    let last_of_b = *b.iter().max().unwrap();
    assert!(
        last_of_b == last || last_of_b + 1 == last,
        "a is of {last}, b of {last_of_b}"
    );
}

#[test]
fn a_backup_that_is_killed_leaves_nothing_in_qemu_after_the_next() {
    let mut machine = Machine::new();
    machine.place.backup("vm");
    for wait_ms in [0, 20, 60, 150] {
        machine.write("b", 30 * MIB + wait_ms * 4096, &[7; 4096]);
        let mut command = machine.place.command(&["backup", "vm"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let has_begun = || fs::read_dir(machine.place.path("scratch")).unwrap().next().is_some();
        while !has_begun() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(wait_ms));
        child.kill().unwrap();
        child.wait().unwrap();

        let point = machine.place.backup("vm");
        machine.assert_nothing_is_left();
        assert_eq!(disk(&point, "b")["compared"], "tracked", "{point}");
        for id in DISKS {
            assert!(
                machine.restored(&point, id) == machine.content(id),
                "disk {id} is another"
            );
        }
    }
}

#[test]
fn a_monitor_that_somebody_else_uses_is_said_at_once() {
    let machine = Machine::new();
    let other = UnixStream::connect(machine.place.path("qmp")).unwrap();
    let started = Instant::now();
    let ran = machine.place.run(&["backup", "vm"]);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(other);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("somebody else is using it"), "{}", ran.stderr);
}
