//! Hooks that misbehave, and backups that are killed while hooks run, in whole groups and beside a guard of another unit.

use std::fs::{self, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::place::target_folder;
use coffre_tests::{Place, VaultKind};

use crate::guard::{A_WHILE, Backup, SOON, processes, takes_writes, until};

const MIB: u64 = 1 << 20;

fn place(config: &str, files: &[(&str, &str, u32)]) -> Place {
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with(config);
    fs::create_dir(place.path("scripts")).unwrap();
    for (name, content, mode) in files {
        let file = place.path("scripts").join(name);
        fs::write(
            &file,
            content.replace("FOLDER", place.path("").display().to_string().trim_end_matches('/')),
        )
        .unwrap();
        fs::set_permissions(&file, Permissions::from_mode(*mode)).unwrap();
    }
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    place.init()
}

#[test]
fn scripts_without_end_or_measure_end_at_a_limit_and_their_post_runs() {
    for (pre, code) in [
        ("fn f(n) { f(n + 1) } fn pre(ctx) { f(0) }", "limit"),
        ("fn pre(ctx) { let s = \"x\"; loop { s += s; } }", "limit"),
        ("fn pre(ctx) { loop {} }", "limit"),
        ("fn pre(ctx) { import \"/etc/evil\" as evil; }", "denied"),
    ] {
        let script = format!(
            "{pre}\nfn post(ctx) {{ if run(\"/usr/bin/touch\", [\"FOLDER/post\"]).status != 0 {{ fail(\"touch\"); }} }}\n"
        );
        let config = "hooks = [\"db\"]\n[hook.db]\nkind = \"rhai\"\non = \"host\"\nfile = \"db.rhai\"\n\
                      [hook.db.grant]\nprocess = [[\"/usr/bin/touch\", \"{path}\"]]\n";
        let place = place(config, &[("db.rhai", &script, 0o644)]);
        place.run(&["backup", "web01"]).expect(4);
        let point = place.points("web01").pop().unwrap();
        assert_eq!(point["hooks"][0]["pre"]["code"], code, "{pre}: {point}");
        assert_eq!(point["hooks"][0]["post"]["ok"], true, "{pre}: {point}");
        assert!(place.path("post").exists(), "{pre}");
    }
    // What cannot be right is found before anything is disturbed.
    let eval = "fn pre(ctx) { eval(\"1\"); }\n";
    let place = place(
        "hooks = [\"db\"]\n[hook.db]\nkind = \"rhai\"\non = \"host\"\nfile = \"db.rhai\"\n",
        &[("db.rhai", eval, 0o644)],
    );
    place.run(&["hook", "check"]).expect(65);
    let ran = place.run(&["backup", "web01"]).expect(65);
    assert!(ran.stderr.contains("db.rhai:1:15: "), "{}", ran.stderr);
    assert!(place.points("web01").is_empty());
}

/// The folders in which programs find their secrets.
fn with_secret(secret: &str) -> Vec<PathBuf> {
    let places = ["/run", "/dev/shm", "/tmp"].into_iter().map(PathBuf::from);
    let places = places.chain(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from));
    let folders = places.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let files = folders.map(|entry| entry.path().join("secrets/token"));
    files
        .filter(|file| fs::read_to_string(file).is_ok_and(|text| text == secret))
        .collect()
}

#[test]
fn the_secrets_of_a_hook_that_was_killed_with_its_backup_are_gone_after_the_next_start() {
    let secret = format!("a secret of test {}", std::process::id());
    let place = place(
        "hooks = [\"app\"]\n[hook.app]\nkind = \"exec\"\non = \"host\"\nfile = \"app\"\n",
        &[(
            "app",
            "#!/bin/sh\n[ $1 = post ] || { : > FOLDER/begun; sleep 300; }\n",
            0o755,
        )],
    );
    place.write_secret("token", &secret);
    let place = place.with("[hook.app.grant]\nsecret = { token = { file = \"FOLDER\" } }\n");
    let mut place = place;
    place.config = place
        .config
        .replace("FOLDER", &place.path("token").display().to_string());
    place.write_config();
    for start in [&["doctor"][..], &["backup", "web01"]] {
        let mut backup = Backup::start(&place);
        until(|| place.path("begun").exists());
        assert_eq!(with_secret(&secret).len(), 1);
        backup.kill();
        assert_eq!(with_secret(&secret).len(), 1, "nobody was there to remove it");
        // The second time the hook has nothing to wait for.
        fs::write(place.path("scripts/app"), "#!/bin/sh\n").unwrap();
        let ran = place.run(start);
        assert!(matches!(ran.code, 0 | 4), "{ran:?}");
        assert!(with_secret(&secret).is_empty());
        let _ = fs::remove_file(place.path("begun"));
        let script = format!(
            "#!/bin/sh\n[ $1 = post ] || {{ : > {}; sleep 300; }}\n",
            place.path("begun").display()
        );
        fs::write(place.path("scripts/app"), script).unwrap();
    }
}

/// Plays systemd with `coffre-guard.socket`: one guard for each connection, with that as its standard input, in a session of
/// its own.
fn guards_of_their_own(place: &Place) {
    fs::create_dir_all(place.path("run")).unwrap();
    let listener = UnixListener::bind(place.path("run/guard.sock")).unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut guard = Command::new("/usr/bin/setsid");
            guard.arg(target_folder().join("coffre-guard"));
            let mut child = guard
                .stdin(OwnedFd::from(connection))
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::spawn(move || child.wait());
        }
    });
}

#[test]
fn with_a_guard_that_is_a_unit_of_its_own_everything_in_the_group_of_a_backup_can_be_killed() {
    let mount = Scratch::new("ext4", 64 * MIB);
    let script = "fn pre(ctx) { freeze(ctx.settings.mount); run(\"/bin/sh\", [\"-c\", \"echo $$ > FOLDER/begun; sleep 300\"]); }\n\
                  fn post(ctx) { thaw(); }\n";
    let place = place(
        &format!(
            "hooks = [\"app\"]\n[hook.app]\nkind = \"rhai\"\non = \"host\"\nfile = \"app.rhai\"\ntimeout = \"60s\"\n\
             settings = {{ mount = \"{0}\" }}\n[hook.app.grant]\nfreeze = [\"{0}\"]\nprocess = [[\"/bin/sh\", \"-c\", \"{{text}}\"]]\n",
            mount.freezable().display()
        ),
        &[("app.rhai", script, 0o644)],
    );
    guards_of_their_own(&place);
    let mut command = place.command(&["backup", "web01"]);
    let mut backup = command
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let host = backup.id() as i32;
    let begun = || fs::read_to_string(place.path("begun")).unwrap_or_default();
    until(|| begun().ends_with('\n'));
    assert!(!takes_writes(&mount.path(), A_WHILE), "it is frozen");
    assert!(
        !processes().any(|(_, name, parent)| name.starts_with("coffre-guard") && parent == host),
        "it has no guard below it"
    );
    let group = Command::new("kill").args(["-KILL", "--", &format!("-{host}")]).status();
    assert!(group.unwrap().success());
    backup.wait().unwrap();
    assert!(takes_writes(&mount.path(), SOON));
    let command: i32 = begun().trim().parse().unwrap();
    until(|| !processes().any(|(pid, ..)| pid == command));
    // And the guard ends, since nobody owes it anything.
    std::thread::sleep(Duration::from_millis(100));
    let doctor = place.run(&["doctor"]).expect(0);
    assert!(doctor.stdout.contains("was thawed by the guard"), "{}", doctor.stdout);
    place.run(&["doctor"]).expect(0);
}
