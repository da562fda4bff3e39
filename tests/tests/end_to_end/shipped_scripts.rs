//! The shipped scripts that need no database: file systems frozen, services stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coffre_tests::mount::Scratch;
use coffre_tests::{Place, VaultKind};

use crate::guard::{Backup, SOON, takes_writes, until, until_frozen};

const MIB: u64 = 1 << 20;

/// A machine with a disk that is mounted here, on an XFS that clones it, and one shipped script.
struct Host {
    place: Place,
    /// Unmounted in this order: what lies on another one first.
    inner: Scratch,
    disk: Scratch,
    _images: Scratch,
}

impl Host {
    /// `hook` is what stands in the hook's table, with DISK and INNER for mount points.
    fn new(script: &str, hook: &str) -> Self {
        let images = Scratch::new("xfs", 1024 * MIB);
        let disk = Scratch::within(&images.path(), "ext4", 400 * MIB);
        let inner = Scratch::within(&disk.path(), "ext4", 64 * MIB);
        let clones = images.path().join("clones");
        fs::create_dir(&clones).unwrap();
        let hook = hook
            .replace("DISK", &disk.freezable().display().to_string())
            .replace("INNER", &inner.freezable().display().to_string());
        let place = Place::new(VaultKind::Folder).with(&format!(
            "[machine.web01]\nprovider = \"reflink\"\nvault = \"main\"\nhooks = [\"app\"]\n\
             settings = {{ images = \"{}\", snapshots = \"{}\" }}\n\
             [hook.wait]\nkind = \"rhai\"\non = \"host\"\nfile = \"wait.rhai\"\ntimeout = \"60s\"\n\
             [hook.wait.grant]\nprocess = [[\"/bin/sleep\", \"60\"]]\n\
             [hook.app]\nkind = \"rhai\"\non = \"host\"\nfile = \"{script}\"\n{hook}",
            disk.image().display(),
            clones.display(),
        ));
        fs::create_dir(place.path("scripts")).unwrap();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(script);
        fs::copy(&shipped, place.path("scripts").join(script)).unwrap();
        let wait = "fn pre(ctx) { run(\"/bin/sleep\", [\"60\"]); }\n";
        fs::write(place.path("scripts/wait.rhai"), wait).unwrap();
        Self {
            place: place.init(),
            inner,
            disk,
            _images: images,
        }
    }

    /// A backup in which a second hook takes its time, so that it can be killed while the first one holds.
    fn slow_backup(&mut self) -> Backup {
        self.place.config = self
            .place
            .config
            .replace("hooks = [\"app\"]", "hooks = [\"app\", \"wait\"]");
        self.place.write_config();
        let backup = Backup::start(&self.place);
        self.place.config = self.place.config.replace(", \"wait\"]", "]");
        backup
    }

    /// The disk as the newest point has it, mounted.
    fn restored(&self) -> Scratch {
        let folder = self.place.restore("web01");
        let image = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
        let image = image.filter(|path| path.is_file()).min().unwrap();
        let check = Command::new("e2fsck").args(["-f", "-n"]).arg(&image).output().unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && !said.contains("recovering journal"), "{said}");
        let aside = self.place.path("restored.img");
        fs::copy(image, &aside).unwrap();
        Scratch::of_image(&aside)
    }
}

const FREEZE_BOTH: &str =
    "settings = { mounts = [\"DISK\", \"INNER\"] }\n[hook.app.grant]\nfreeze = [\"DISK\", \"INNER\"]\n";

#[test]
fn fsfreeze_holds_writes_while_the_snapshot_is_taken_and_what_was_written_before_is_in_it() {
    let host = Host::new("fsfreeze.rhai", FREEZE_BOTH);
    host.place.run(&["config", "check"]).expect(0);
    // Dirty data that only a freeze brings into the images.
    fs::write(host.disk.path().join("dirty"), vec![42; 20 << 20]).unwrap();
    fs::write(host.inner.path().join("dirty"), vec![43; 10 << 20]).unwrap();
    host.place.run(&["backup", "web01"]).expect(4);
    let point = host.place.points("web01").pop().unwrap();
    // It asked no application, and says so; both steps went well.
    assert_eq!(point["consistency"], "crash", "{point}");
    assert_eq!(point["hooks"][0]["pre"]["ok"], true, "{point}");
    assert_eq!(point["hooks"][0]["post"]["ok"], true, "{point}");
    let said = point["hooks"][0]["post"]["output"].as_str().unwrap();
    assert!(said.contains("thaw"), "{point}");
    for mount in [host.disk.path(), host.inner.path()] {
        assert!(takes_writes(&mount, SOON));
    }
    let restored = host.restored();
    assert_eq!(fs::read(restored.path().join("dirty")).unwrap(), vec![42; 20 << 20]);
    // And the file system in a file of it.
    let inner = host.inner.image();
    let inner = inner.strip_prefix(host.disk.path()).unwrap();
    let inner = Scratch::of_image(&restored.path().join(inner));
    assert_eq!(fs::read(inner.path().join("dirty")).unwrap(), vec![43; 10 << 20]);
}

#[test]
fn fsfreeze_leaves_out_what_it_is_told_to_and_a_killed_backup_leaves_nothing_frozen() {
    let skip = FREEZE_BOTH.replace("] }", "], skip = [\"INNER\"] }");
    let apart = Scratch::new("ext4", 64 * MIB);
    // The skipped one lies apart here: what lies on something frozen cannot go on.
    let skip = skip.replace("INNER", &apart.freezable().display().to_string());
    let mut host = Host::new("fsfreeze.rhai", &skip);
    let mut backup = host.slow_backup();
    until_frozen(&host.place, &host.disk.path());
    assert!(takes_writes(&apart.path(), SOON), "it was left out");
    backup.kill();
    assert!(takes_writes(&host.disk.path(), SOON));
    let doctor = host.place.run(&["doctor"]).expect(0);
    assert!(doctor.stdout.contains("was thawed by the guard"), "{}", doctor.stdout);
    host.place.write_config();
    host.place.run(&["backup", "web01"]).expect(4);
    assert!(takes_writes(&host.disk.path(), SOON));
}

#[test]
fn fsfreeze_freezes_nothing_that_is_not_granted_or_that_coffre_needs() {
    let other = FREEZE_BOTH.replace("freeze = [\"DISK\", \"INNER\"]", "freeze = [\"INNER\"]");
    let host = Host::new("fsfreeze.rhai", &other);
    host.place.run(&["backup", "web01"]).expect(4);
    let point = host.place.points("web01").pop().unwrap();
    let pre = &point["hooks"][0]["pre"];
    assert_eq!(pre["code"], "denied", "{point}");
    assert!(
        pre["error"].as_str().unwrap().contains("no grant allows freezing"),
        "{point}"
    );
    let root = "settings = { mounts = [\"/\"] }\n[hook.app.grant]\nfreeze = [\"/\"]\n";
    let host = Host::new("fsfreeze.rhai", root);
    host.place.run(&["backup", "web01"]).expect(4);
    let point = host.place.points("web01").pop().unwrap();
    let said = point["hooks"][0]["pre"]["error"].as_str().unwrap();
    assert!(said.contains("must not be frozen"), "{point}");
}

/// A service of this host's, by an init script of its own: it keeps `PATH/dirty` as long as it runs, and leaves `PATH/clean`
/// when it is asked to stop. Gone with the test.
struct Service {
    name: String,
    script: PathBuf,
    data: PathBuf,
}

impl Service {
    fn new(name: &str, data: &Path) -> Self {
        let name = format!("coffre-test-{name}-{}", std::process::id());
        let script = Path::new("/etc/init.d").join(&name);
        let run = "#!/bin/sh\ntrap 'mv DATA/dirty DATA/clean; sync; exit 0' TERM\nrm -f DATA/clean; echo open > DATA/dirty\n\
                   while :; do sleep 0.1; done\n";
        let init = "#!/bin/sh\n### BEGIN INIT INFO\n# Provides: NAME\n# Required-Start:\n# Required-Stop:\n# Default-Start:\n\
                    # Default-Stop:\n# Short-Description: a test of coffre's\n### END INIT INFO\n\
                    D='/sbin/start-stop-daemon --quiet --pidfile DATA/pid'\n\
                    case $1 in\n\
                    start) $D --start --background --make-pidfile --startas DATA/run ;;\n\
                    stop) $D --stop --retry TERM/20 --remove-pidfile --oknodo ;;\n\
                    status) $D --status ;;\n\
                    esac\n";
        let fill = |text: &str| text.replace("DATA", &data.display().to_string()).replace("NAME", &name);
        let program = |path: &Path, text: &str| {
            fs::write(path, fill(text)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        fs::create_dir(data).unwrap();
        program(&data.join("run"), run);
        let service = Self {
            name: name.clone(),
            script,
            data: data.to_owned(),
        };
        program(&service.script, init);
        reload();
        service
    }

    fn started(self) -> Self {
        self.act("start");
        until(|| self.runs());
        self
    }

    fn act(&self, act: &str) {
        let output = Command::new("/usr/sbin/service")
            .args([&self.name, act])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn runs(&self) -> bool {
        self.data.join("dirty").exists() && !self.data.join("clean").exists()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new("/usr/sbin/service").args([&self.name, "stop"]).output();
        let _ = fs::remove_file(&self.script);
        reload();
    }
}

/// systemd, where it runs, makes units out of init scripts.
fn reload() {
    if Path::new("/run/systemd/system").is_dir() {
        let _ = Command::new("/usr/bin/systemctl").arg("daemon-reload").status();
    }
}

fn services(names: &[&str]) -> String {
    let list = names
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    format!("settings = {{ services = [{list}] }}\n[hook.app.grant]\nservice = [{list}]\n")
}

#[test]
fn services_that_run_are_stopped_for_the_snapshot_and_started_again() {
    let mut host = Host::new("service.rhai", "");
    let one = Service::new("one", &host.disk.path().join("one")).started();
    let off = Service::new("off", &host.disk.path().join("off"));
    host.place.config.push_str(&services(&[&one.name, &off.name]));
    host.place.write_config();
    host.place.run(&["config", "check"]).expect(0);
    let point = host.place.backup("web01");
    assert_eq!(point["consistency"], "application", "{point}");
    assert_eq!(point["consistency_reason"], "brought to rest by app");
    let said = point["hooks"][0]["pre"]["output"].as_str().unwrap();
    assert!(said.contains(&format!("{} does not run", off.name)), "{said}");
    until(|| one.runs());
    assert!(!off.data.join("dirty").exists(), "what did not run was not started");
    // In the point it has ended as it does when it is asked to.
    let restored = host.place.restore("web01");
    let image = fs::read_dir(&restored).unwrap().flatten().map(|entry| entry.path());
    let image = image.filter(|path| path.is_file()).min().unwrap();
    let listed = Command::new("debugfs")
        .args(["-R", "ls -p /one"])
        .arg(&image)
        .output()
        .unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.contains("/clean/") && !listed.contains("/dirty/"), "{listed}");
}

#[test]
fn a_service_that_was_stopped_is_started_by_the_guard_when_the_backup_is_killed() {
    let mut host = Host::new("service.rhai", "");
    let service = Service::new("killed", &host.disk.path().join("app")).started();
    host.place.config.push_str(&services(&[&service.name]));
    host.place.write_config();
    let mut backup = host.slow_backup();
    until(|| service.data.join("clean").exists());
    backup.kill();
    until(|| service.runs());
    let doctor = host.place.run(&["doctor"]).expect(0);
    assert!(
        doctor.stdout.contains("start was run by the guard"),
        "{}",
        doctor.stdout
    );
    assert!(service.runs());
}
