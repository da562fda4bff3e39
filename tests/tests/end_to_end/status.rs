//! `coffre status` and `coffre jobs` before, while and after things happen, in whichever process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffre_tests::{Place, VaultKind};
use serde_json::Value;

/// Far longer than anything here takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a disk, whose hook waits until the file `go` is there.
fn place() -> Place {
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with("hooks = [\"wait\"]\n[hook.wait]\nkind = \"exec\"\nfile = \"wait.sh\"\non = \"host\"\ntimeout = \"50s\"\napplication = true\n")
        .init();
    fs::write(place.images().join("vda.img"), vec![7; 1 << 20]).unwrap();
    fs::create_dir(place.path("scripts")).unwrap();
    let go = place.path("go");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = post ] || until [ -e {} ]; do sleep 0.1; done\n",
        go.display()
    );
    let hook = place.path("scripts/wait.sh");
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(go, "").unwrap();
    place
}

fn status(place: &Place, code: i32) -> Value {
    let machines = place.run(&["status", "--json"]).expect(code).json()["machines"].clone();
    machines[0].clone()
}

/// A backup in another process that stands still in its hook.
fn standing(place: &Place) -> Child {
    fs::remove_file(place.path("go")).unwrap();
    let mut command = place.command(&["backup", "web01"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    // What came before it decides upon the exit code.
    while place.run(&["status", "--json"]).json()["machines"][0]["running"]["progress"]["step"] != "wait" {
        assert!(started.elapsed() < PATIENCE, "the backup does not get to its hook");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

#[test]
fn status_says_what_is_safe_what_runs_and_what_failed() {
    let place = place();
    let unknown = status(&place, 3);
    assert_eq!(unknown["reasons"][0]["code"], "not-known");
    let read = place.run(&["status", "--refresh", "--json"]).expect(2).json();
    assert_eq!(read["machines"][0]["reasons"][0]["code"], "no-point");

    let point = place.backup("web01");
    let safe = status(&place, 0);
    assert_eq!(
        (&safe["level"], &safe["last_good"]["point"]),
        (&Value::from("safe"), &point["point"])
    );
    assert_eq!(safe["stored_bytes"], point["stored_bytes"]);

    let mut running = standing(&place);
    let seen = status(&place, 0);
    assert_eq!(seen["running"]["progress"]["phase"], "pre");
    assert_eq!(seen["running"]["process"], running.id());
    let text = place.run(&["status"]).expect(0).stdout;
    assert!(text.contains("running pre hooks (wait)"), "{text}");
    let listed = place.json(&["jobs", "list"])["jobs"][0].clone();
    assert_eq!(
        (&listed["running"], &listed["outcome"]),
        (&Value::from(true), &Value::Null)
    );

    // As it dies, nothing runs any more, and the next backup says what became of it.
    running.kill().unwrap();
    running.wait().unwrap();
    assert_eq!(status(&place, 0)["running"], Value::Null);
    fs::write(place.path("go"), "").unwrap();
    place.backup("web01");
    let outcomes: Vec<Value> = place.json(&["jobs"])["jobs"].as_array().unwrap().clone();
    let outcomes: Vec<&str> = outcomes.iter().map(|job| job["outcome"].as_str().unwrap()).collect();
    assert_eq!(outcomes, ["done", "died", "done"]);

    // A backup that cannot even begin is known, and shown by its id.
    fs::rename(place.path("vault"), place.path("elsewhere")).unwrap();
    let failed = place.run(&["backup", "web01"]);
    assert_ne!(failed.code, 0);
    let warned = status(&place, 1);
    assert_eq!(warned["reasons"][0]["code"], "failed");
    let id = warned["last_job"]["id"].as_str().unwrap().to_owned();
    assert_eq!(place.json(&["jobs", "show", &id])["outcome"], "failed");
    fs::rename(place.path("elsewhere"), place.path("vault")).unwrap();

    // Without its book the host has forgotten; a look into the vault is enough.
    for name in ["book.sqlite", "book.sqlite-wal", "book.sqlite-shm"] {
        let _ = fs::remove_file(place.path("state").join(name));
    }
    fs::remove_dir_all(place.path("state/machines")).unwrap();
    status(&place, 3);
    let read = place.run(&["status", "--refresh", "--json"]).expect(0).json();
    assert_eq!(read["machines"][0]["points"], 2);
}

#[test]
fn forget_undelete_and_clean_are_known_at_once() {
    let place = place();
    let first = place.backup("web01")["point"].to_string();
    place.backup("web01");
    let points = || status(&place, 0)["points"].clone();
    place.run(&["forget", &format!("web01@{first}")]).expect(0);
    assert_eq!(points(), 2);
    place.run(&["undelete", &format!("web01@{first}")]).expect(0);
    place.run(&["forget", &format!("web01@{first}")]).expect(0);
    place
        .run(&["clean", "main", "--force", "--undelete-for", "0s"])
        .expect(0);
    assert_eq!(points(), 1);
}

#[test]
fn a_configuration_that_is_wrong_is_no_good_news() {
    let place = place().with("nonsense = 1\n");
    place
        .run(&["status"])
        .refused(3, &["the state of the machines is not known"]);
}

#[test]
fn watch_wants_a_terminal_and_leaves_it_as_it_was() {
    let place = place();
    place.run(&["status", "--watch"]).refused(64, &["terminal"]);

    place.backup("web01");
    let mut running = standing(&place);
    let typescript = place.path("typescript");
    let words = format!(
        "stty rows 30 cols 120; exec {} --config {} status --watch",
        coffre_tests::place::target_folder().join("coffre").display(),
        place.config_file().display()
    );
    let mut watching = Command::new("script")
        .args(["-qefc", &words, &typescript.display().to_string()])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("script is there\nhint: apt-get install bsdutils");
    let shown = || fs::read_to_string(&typescript).unwrap_or_default();
    let wait_for = |text: &str| {
        let started = Instant::now();
        while !shown().contains(text) {
            assert!(started.elapsed() < PATIENCE, "`{text}` is not in {:?}", shown());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for("web01: running pre hooks (wait)");
    fs::write(place.path("go"), "").unwrap();
    assert!(running.wait().unwrap().success());
    // The line of what ran is gone from the last frame.
    let started = Instant::now();
    while shown()
        .rsplit("\x1b[H")
        .next()
        .is_some_and(|frame| frame.contains("running pre hooks"))
    {
        assert!(started.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(50));
    }
    // Ctrl-C, typed.
    std::io::Write::write_all(watching.stdin.as_mut().unwrap(), b"\x03").unwrap();
    let status = watching.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{}", shown());
    assert!(shown().contains("\x1b[?1049l"), "the screen was left");
}
