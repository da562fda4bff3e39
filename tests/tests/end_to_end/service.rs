//! `coffre run` as a service: what is due runs, on a real server, whatever happens to the service and its configuration.

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::{Place, VaultKind};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A minute until something is due, and far longer than it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);

/// A service that runs; it is killed when the test is over.
struct Service {
    child: Child,
    log: PathBuf,
    /// What systemd would have been told.
    told: Arc<Mutex<String>>,
}

impl Service {
    fn start(place: &Place) -> Self {
        let log = place.path("run.log");
        let mut command = place.command(&["run"]);
        let (socket, told) = (place.path("notify"), Arc::default());
        hear(&socket, &told);
        command.env("NOTIFY_SOCKET", socket);
        command.stderr(File::create(&log).unwrap()).stdout(Stdio::null());
        let service = Self {
            child: command.spawn().unwrap(),
            log,
            told,
        };
        service.says("with a schedule");
        service.tells("READY=1");
        service
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        wait(
            &format!("`{text}`"),
            || self.log().contains(text).then_some(()),
            || self.log(),
        );
    }

    #[track_caller]
    fn tells(&self, text: &str) {
        let told = || self.told.lock().unwrap().clone();
        wait(&format!("`{text}`"), || told().contains(text).then_some(()), told);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn ends(mut self) -> ExitStatus {
        let ended = wait("the end", || self.child.try_wait().unwrap(), || "it runs".to_owned());
        // What `drop` would kill is gone.
        std::mem::forget(self);
        ended
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes the part of systemd: hears what the service says until the test is over.
fn hear(socket: &Path, told: &Arc<Mutex<String>>) {
    let _ = fs::remove_file(socket);
    let socket = UnixDatagram::bind(socket).unwrap();
    let told = told.clone();
    std::thread::spawn(move || {
        let mut message = [0; 256];
        while let Ok(length) = socket.recv(&mut message) {
            let mut told = told.lock().unwrap();
            told.push_str(&String::from_utf8_lossy(&message[..length]));
            told.push('\n');
        }
    });
}

#[track_caller]
fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>, said: impl Fn() -> String) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come:\n{}", said());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn noise(place: &Place, name: &str, mib: u64, seed: u64) {
    let file = sparse(&place.images().join(name), mib * MIB);
    write_noise(&file, 0, mib * MIB, seed);
}

/// A window that opens in two hours.
fn closed_window() -> String {
    let hour = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 3600 % 24;
    format!("{:02}:00-{:02}:00 UTC", (hour + 2) % 24, (hour + 3) % 24)
}

fn running(place: &Place, machine: &str) -> Option<Value> {
    let status = place.run(&["status", "--json"]).json();
    let found = status["machines"]
        .as_array()?
        .iter()
        .find(|entry| entry["machine"] == machine)?;
    (!found["running"].is_null()).then(|| found["running"].clone())
}

fn phase(place: &Place, machine: &str) -> Option<String> {
    Some(running(place, machine)?["progress"]["phase"].as_str()?.to_owned())
}

fn outcome_of(place: &Place, machine: &str) -> Value {
    place.json(&["jobs", "--machine", machine])["jobs"][0]["outcome"].clone()
}

#[test]
fn a_service_runs_what_is_due_waits_for_windows_and_refuses_a_wrong_configuration() {
    let mut place = Place::new(VaultKind::S3)
        .with_machine("now", "image")
        .with("policy = \"now\"\n[policy.now]\nschedule = \"cron * * * * * UTC\"\nkeep = { last = 1 }\n")
        .with_machine("later", "image")
        .with(&format!(
            "policy = \"later\"\n[policy.later]\nschedule = \"cron * * * * * UTC\"\ntransfer = [\"{}\"]\n",
            closed_window()
        ))
        .init();
    noise(&place, "vda.img", 2, 1);
    place.backup("now");
    let service = Service::start(&place);
    // Only one runs what is due.
    place.run(&["backup", "--due"]).refused(75, &["coffre run since"]);

    // A configuration with an error is refused, whoever asks for it, and the old one stays.
    let right = place.config.clone();
    place.config = right.replace("keep = { last = 1 }", "keep = { lost = 1 }");
    place.write_config();
    service.says("the old configuration stays");
    service.says("did you mean `last`?");
    service.signal(Signal::HUP);
    wait(
        "the second refusal",
        || (service.log().matches("the old configuration stays").count() == 2).then_some(()),
        || service.log(),
    );
    place.config = right.clone();
    place.write_config();
    service.says("the configuration was read again");

    // One goes; the other one has its snapshot and waits, and somebody cancels it.
    service.says("now: point 1 is there");
    service.says("now: 1 point forgotten by its policy");
    wait(
        "the wait for the window",
        || (phase(&place, "later")? == "queue").then_some(()),
        || service.log(),
    );
    place.run(&["jobs", "cancel", "later"]).expect(0);
    service.says("later: cancelled, no point was written");
    assert_eq!(outcome_of(&place, "later"), "cancelled");
    assert!(place.points("later").is_empty());
    // A minute may have passed meanwhile, and the next one be made.
    let fates = || {
        let points = place.points("now");
        let fates = points.iter().map(|point| point["fate"].as_str().unwrap().to_owned());
        fates.collect::<Vec<_>>()
    };
    let only_newest = || fates().iter().rev().skip(1).all(|fate| fate == "forgotten");
    wait(
        "the newest alone",
        || only_newest().then_some(()),
        || format!("{:?}", fates()),
    );
    assert!(fates().len() >= 2);

    service.tells("RELOADING=1");
    service.tells("WATCHDOG=1");
    service.signal(Signal::TERM);
    service.tells("STOPPING=1");
    assert!(service.ends().success());
    place.run(&["doctor"]).expect(0);
    place.run(&["verify"]).expect(0);
}

#[test]
fn a_bandwidth_cap_is_kept_within_a_tenth() {
    const CAP_MIB: u64 = 8;
    let place = Place::new(VaultKind::S3)
        .with_machine("web01", "image")
        .with(&format!("[transfer]\nbandwidth = \"{CAP_MIB}MiB/s\"\n"))
        .init();
    noise(&place, "vda.img", 160, 1);
    let point = place.backup("web01");
    let job = place.json(&["jobs", "--machine", "web01"])["jobs"][0]["id"].clone();
    let job = place.json(&["jobs", "show", job.as_str().unwrap()]);
    let took_ms = |wanted: &str| {
        let phases = job["phases"].as_array().unwrap().iter();
        let of_phase = phases.filter(|phase| phase["phase"] == wanted);
        of_phase
            .map(|phase| phase["duration_ms"].as_u64().unwrap())
            .sum::<u64>()
    };
    // The last packs leave with the commit.
    let seconds = (took_ms("transfer") + took_ms("commit")) as f64 / 1000.0;
    let rate = point["stored_bytes"].as_u64().unwrap() as f64 / seconds / MIB as f64;
    let cap = CAP_MIB as f64;
    assert!(rate <= 1.1 * cap, "{rate:.2} MiB/s");
    assert!(rate >= 0.9 * cap, "{rate:.2} MiB/s");
}

/// Bytes that a machine's running job has sent so far.
fn stored(place: &Place) -> Option<u64> {
    let disks = running(place, "web01")?["progress"]["disks"].as_array()?.clone();
    Some(disks.iter().filter_map(|disk| disk["stored_bytes"].as_u64()).sum())
}

/// Runs a backup up to so many bytes, ends it by a signal, and says how much had been put into packs then.
fn ended_at(place: &Place, bytes: u64, signal: Signal, arguments: &[&str]) -> u64 {
    let mut child = place
        .command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let sent = wait(
        "the transfer",
        || stored(place).filter(|sent| *sent >= bytes),
        || format!("{:?}", stored(place)),
    );
    kill_process(Pid::from_child(&child), signal).unwrap();
    child.wait().unwrap();
    sent
}

#[test]
fn a_backup_that_ends_at_70_percent_sends_the_rest_and_what_was_in_flight_when_it_is_started_again() {
    const DISK_MIB: u64 = 384;
    /// What may have been on its way: the packs that are alive at once.
    const IN_FLIGHT_MIB: u64 = 128;
    let whole = DISK_MIB * MIB;
    for (signal, arguments) in [
        (Signal::KILL, &["backup", "web01"][..]),
        (Signal::TERM, &["backup", "--due"][..]),
    ] {
        let place = Place::new(VaultKind::S3)
            .with_machine("web01", "image")
            .with(
                "policy = \"p\"\n[policy.p]\nschedule = \"cron * * * * * UTC\"\n[transfer]\nbandwidth = \"64MiB/s\"\n",
            )
            .init();
        noise(&place, "vda.img", DISK_MIB, 1);
        if signal == Signal::TERM {
            // It is due for the first time in the minute after this.
            place.run(&["backup", "--due"]).expect(0);
            let minute = minute_now();
            wait("the next minute", || (minute_now() > minute).then_some(()), String::new);
        }
        let sent = ended_at(&place, whole * 7 / 10, signal, arguments);
        assert!(place.points("web01").is_empty());
        let point = place.backup("web01");
        let again = point["stored_bytes"].as_u64().unwrap();
        let most = whole - sent + IN_FLIGHT_MIB * MIB + MIB;
        assert!(
            again <= most,
            "{signal:?} after {sent}: {again} were sent again, {most} at most"
        );
        let restored = place.restore("web01");
        coffre_tests::disk::assert_same(&restored.join("vda.img"), &place.images().join("vda.img"));
    }
}

fn minute_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60
}

/// For minutes: `cargo test … -- --ignored` runs it.
#[test]
#[ignore = "takes five minutes"]
fn a_service_that_is_killed_at_random_moments_loses_nothing_and_leaves_nothing_held() {
    let place = Place::new(VaultKind::S3)
        .with_machine("web01", "image")
        .with("policy = \"p\"\n[policy.p]\nschedule = \"cron * * * * * UTC\"\nkeep = { last = 3 }\n[transfer]\nbandwidth = \"16MiB/s\"\n")
        .init();
    noise(&place, "vda.img", 96, 1);
    let started = Instant::now();
    let mut seed = 7_u64;
    let mut newest: Vec<Value> = Vec::new();
    while started.elapsed() < Duration::from_secs(300) {
        let mut service = Service::start(&place);
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_secs(5 + (seed >> 33) % 50));
        service.child.kill().unwrap();
        service.child.wait().unwrap();
        // Nothing that was there is gone but by the policy, and the newest restores.
        let points = place.points("web01");
        let kept = newest.iter().rev().take(1).all(|known| {
            let number = known["point"].as_u64();
            points.iter().any(|point| point["point"].as_u64() >= number)
        });
        assert!(kept, "{newest:?} then {points:?}");
        newest = points;
        let file = File::options()
            .write(true)
            .open(place.images().join("vda.img"))
            .unwrap();
        write_noise(&file, (seed % 64) * MIB, 20 * MIB, seed);
    }
    assert!(newest.len() >= 3, "{newest:?}");
    place.run(&["backup", "web01"]).expect(0);
    place.run(&["doctor"]).expect(0);
    place.run(&["verify"]).expect(0);
    let restored = place.restore("web01");
    coffre_tests::disk::assert_same(&restored.join("vda.img"), &place.images().join("vda.img"));
}
