//! `kill -9` in the middle of a backup.

use std::process::Stdio;
use std::time::{Duration, Instant};

use coffre_tests::disk::{assert_same, sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

/// Files below a folder, in any depth.
fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

#[test]
fn a_backup_killed_at_any_time_harms_nothing_and_leaves_nothing_behind() {
    let scratch = Scratch::new("xfs", 1024 * MIB);
    let place = Place::within(&scratch.path(), VaultKind::Folder)
        .with_machine("web01", "reflink")
        .init();
    let image = place.images().join("root.img");
    let disk = sparse(&image, 200 * MIB);
    write_noise(&disk, 0, 120 * MIB, 1);
    place.backup("web01");
    let first = place.path("first.img");
    std::fs::copy(&image, &first).unwrap();

    for round in 0..6 {
        write_noise(&disk, round * 7 * MIB, 60 * MIB, round + 2);
        let mut command = place.command(&["backup", "web01"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(80 + 150 * round));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let point = place.backup("web01");
    let restored = place.restore(&format!("web01@{}", point["point"]));
    assert_same(&image, &restored.join("root.img"));
    let restored = place.restore("web01@0");
    assert_same(&first, &restored.join("root.img"));
    place.run(&["verify", "main", "--read-data"]).expect(0);
    // What the provider still holds is the base for next time: one copy of one disk, and no snapshot.
    let held: Vec<_> = files_below(&place.images())
        .into_iter()
        .filter(|path| *path != image)
        .collect();
    assert_eq!(held.len(), 1, "{held:?}");
    let jobs = place.json(&["jobs", "list"]);
    assert!(jobs.to_string().contains("web01"), "{jobs}");
}

#[test]
fn a_second_backup_of_a_busy_machine_says_try_again() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    let place = place.with(
        "hooks = [\"slow\"]\n[hook.slow]\nkind = \"rhai\"\nfile = \"slow.rhai\"\non = \"host\"\n\
         [hook.slow.grant]\nprocess = [[\"/bin/touch\", \"{path}\"]]\n",
    );
    let begun = place.path("begun");
    std::fs::create_dir(place.path("scripts")).unwrap();
    let script = format!(
        "fn pre(ctx) {{ run(\"/bin/touch\", [\"{}\"]); sleep(8000); }}\nfn post(ctx) {{}}\n",
        begun.display()
    );
    std::fs::write(place.path("scripts/slow.rhai"), script).unwrap();
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    let place = place.init();
    let mut child = place
        .command(&["backup", "web01"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // While its hook sleeps, the first backup holds the machine.
    let started = Instant::now();
    while !begun.exists() {
        assert!(started.elapsed() < Duration::from_secs(60), "the hook never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    place.run(&["backup", "web01"]).refused(75, &["web01"]);
    // It wanted `application`, and its hook does not declare that.
    assert_eq!(child.wait().unwrap().code(), Some(4));
}
