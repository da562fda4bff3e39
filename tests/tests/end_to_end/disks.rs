//! Disks of unusual sizes, many at once, and ones that break.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;
/// What a job may use at its peak, whatever the disk.
const PEAK_MIB: u64 = 256;

/// Runs the program and returns the peak of its resident memory, from VmHWM while it runs.
fn peak_mib(place: &Place, arguments: &[&str]) -> u64 {
    let mut child = place
        .command(arguments)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0;
    loop {
        if let Ok(text) = std::fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:"))
        {
            let kib = line
                .split_whitespace()
                .nth(1)
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
            peak_kib = peak_kib.max(kib);
        }
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{arguments:?} failed");
            return peak_kib / 1024;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn eight_tebibytes_with_one_gibibyte_in_it_take_seconds_and_little_memory() {
    let place = Place::new(VaultKind::Folder).with_machine("big", "image").init();
    let image = place.images().join("huge.img");
    let disk = sparse(&image, 8 * TIB);
    for part in 0..16 {
        write_noise(&disk, part * TIB / 2 + 12_345 * 512, 64 * MIB, part + 1);
    }
    let started = Instant::now();
    let peak = peak_mib(&place, &["backup", "big"]);
    assert!(peak < PEAK_MIB, "the first backup used {peak} MiB");
    write_noise(&disk, 5 * TIB + 4096, 4096, 99);
    let peak = peak_mib(&place, &["backup", "big"]);
    assert!(peak < PEAK_MIB, "the second backup used {peak} MiB");
    let restored = place.path("restored");
    let peak = peak_mib(&place, &["restore", "big", "--to", &restored.display().to_string()]);
    assert!(peak < PEAK_MIB, "the restore used {peak} MiB");
    assert_same(&image, &restored.join("huge.img"));
    // Seconds, not hours, also in a build without optimisation on a busy machine.
    assert!(started.elapsed() < Duration::from_secs(300), "{:?}", started.elapsed());
    let points = place.points("big");
    let stored = points[1]["stored_bytes"].as_u64().unwrap();
    assert!(stored < MIB, "{stored} bytes were stored for one page");
}

#[test]
fn odd_sizes_restore_exactly() {
    let place = Place::new(VaultKind::Folder).with_machine("odd", "image").init();
    for (name, size) in [
        ("a.img", 512),
        ("b.img", 4096 + 512),
        ("c.img", 8 * MIB - 512),
        ("d.img", 8 * MIB + 512),
    ] {
        let disk = sparse(&place.images().join(name), size);
        write_noise(&disk, 0, size, size);
    }
    place.backup("odd");
    let restored = place.restore("odd");
    for name in ["a.img", "b.img", "c.img", "d.img"] {
        assert_same(&place.images().join(name), &restored.join(name));
    }
}

#[test]
fn one_disk_restores_alone_to_a_file() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    write_noise(&sparse(&place.images().join("a.img"), 3 * MIB), 0, MIB, 1);
    write_noise(&sparse(&place.images().join("b.img"), 3 * MIB), MIB, MIB, 2);
    let point = place.backup("web01");
    let id = point["disks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|disk| disk["id"].as_str().unwrap().contains('b'))
        .unwrap();
    let id = id["id"].as_str().unwrap();
    let target = place.path("b-again.img");
    let to = target.display().to_string();
    place.run(&["restore", "web01", "--disk", id, "--to", &to]).expect(0);
    assert_same(&place.images().join("b.img"), &target);
    // A second time it is not empty, unless told so.
    place
        .run(&["restore", "web01", "--disk", id, "--to", &to])
        .refused(64, &["not empty", "--overwrite"]);
    place
        .run(&["restore", "web01", "--disk", id, "--to", &to, "--overwrite"])
        .expect(0);
    assert_same(&place.images().join("b.img"), &target);
}

#[test]
fn a_restore_to_a_device_zeroes_what_the_disk_has_as_zero() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    let disk = sparse(&place.images().join("a.img"), 20 * MIB);
    write_noise(&disk, 9 * MIB, MIB, 1);
    let point = place.backup("web01");
    let id = point["disks"][0]["id"].as_str().unwrap().to_owned();
    let backing = place.path("backing");
    write_noise(&sparse(&backing, 20 * MIB), 0, 20 * MIB, 2);
    let device = LoopDevice::new(&backing);
    let to = device.path();
    place
        .run(&["restore", "web01", "--disk", &id, "--to", to])
        .refused(64, &["not empty"]);
    place
        .run(&["restore", "web01", "--disk", &id, "--to", to, "--overwrite"])
        .expect(0);
    drop(device);
    assert_same(&place.images().join("a.img"), &backing);

    let small = place.path("small");
    sparse(&small, MIB);
    let device = LoopDevice::new(&small);
    place
        .run(&["restore", "web01", "--disk", &id, "--to", device.path(), "--overwrite"])
        .refused(64, &["bytes"]);
}

#[test]
fn a_mounted_target_is_refused_even_with_overwrite() {
    let scratch = coffre_tests::mount::Scratch::new("ext4", 32 * MIB);
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    let point = place.backup("web01");
    let id = point["disks"][0]["id"].as_str().unwrap();
    let mounted = scratch.path().parent().unwrap().join("image").display().to_string();
    place
        .run(&["restore", "web01", "--disk", id, "--to", &mounted, "--overwrite"])
        .refused(64, &["mounted"]);
}

/// A loop device upon a file, detached at the end.
struct LoopDevice(String);

impl LoopDevice {
    fn new(file: &std::path::Path) -> Self {
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_disk_that_breaks_fails_the_job_and_leaves_no_point() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    write_noise(&sparse(&place.images().join("good.img"), 20 * MIB), 0, 20 * MIB, 1);
    let broken = BrokenDisk::new(&place.images(), "broken.img");
    let ran = place.run(&["backup", "web01"]).refused(1, &["broken", "read"]);
    assert!(
        ran.stderr.to_lowercase().contains("input/output error"),
        "{}",
        ran.stderr
    );
    assert!(place.points("web01").is_empty());
    drop(broken);
    place.backup("web01");
}

/// A file of 32 MiB whose bytes past the first MiB cannot be read: nbdkit with its error filter, as a file by nbdfuse.
struct BrokenDisk {
    server: std::process::Child,
    mount: std::path::PathBuf,
    link: std::path::PathBuf,
}

impl BrokenDisk {
    fn new(images: &std::path::Path, name: &str) -> Self {
        let mount = images.parent().unwrap().join("broken-mount");
        std::fs::create_dir(&mount).unwrap();
        let mut command = Command::new("nbdfuse");
        command
            .arg(mount.join("disk"))
            .args(["--command", "nbdkit", "-s", "--filter=error", "pattern", "32M"]);
        command
            .args(["error-pread=EIO", "error-pread-rate=100%"])
            .process_group(0);
        let server = command.spawn().expect("hint: apt-get install nbdkit libnbd-bin");
        let started = Instant::now();
        while !mount.join("disk").exists() {
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "nbdfuse does not serve its file"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        // The image folder may hold no links, so the served file is bound into it.
        let link = images.join(name);
        std::fs::write(&link, b"").unwrap();
        let bound = Command::new("mount")
            .arg("--bind")
            .arg(mount.join("disk"))
            .arg(&link)
            .status()
            .unwrap();
        assert!(bound.success());
        Self { server, mount, link }
    }
}

impl Drop for BrokenDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.link).status();
        let _ = Command::new("fusermount3").arg("-u").arg(&self.mount).status();
        let _ = Command::new("umount")
            .arg(&self.mount)
            .stderr(std::process::Stdio::null())
            .status();
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = std::fs::remove_file(&self.link);
    }
}
