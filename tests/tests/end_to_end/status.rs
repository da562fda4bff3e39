//! `coffre status` and `coffre jobs` before, while and after things happen, in whichever process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coffre_tests::browser::{Browser, Look};
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

#[test]
fn a_report_is_one_page_that_a_browser_shows_whole() {
    let place = place();
    let image = place.images().join("vda.img");
    fs::write(&image, vec![7; 8 << 20]).unwrap();
    place.backup("web01");
    let mut bytes = fs::read(&image).unwrap();
    bytes[5 << 20..][..4096].fill(1);
    fs::write(&image, bytes).unwrap();
    let point = place.backup("web01");
    let file = place.path("report.html");
    let said = place.json(&["report", "--html", &file.display().to_string()]);
    assert_eq!(said["size_bytes"], fs::metadata(&file).unwrap().len());

    let mut browser = Browser::start();
    for width in [360, 1280] {
        let look = Look {
            width,
            height: 800,
            dark: width == 360,
        };
        browser.open(&file, look);
        let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(browser.ask(overflow), 0, "{width}");
        assert_eq!(browser.complaints(), [] as [Value; 0]);
        assert_eq!(browser.requests().len(), 1, "{:?}", browser.requests());
    }
    assert_eq!(browser.ask("document.querySelectorAll('.card.bad').length"), 0);
    let points = browser.ask("document.querySelector('td[data-label=Points]').textContent");
    assert_eq!(points, "2");
    // The second changed one region of the eight that the disk has, the first all of them.
    let rows = "[...document.querySelectorAll('svg.regions path')].map(path => path.getAttribute('d')).join('').match(/M\\d+ \\d+/g).join()";
    assert_eq!(browser.ask(rows).as_str().unwrap().matches(" 0").count(), 1, "{point}");
}

/// `coffre run`, which is asked to end when the test does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_service_tells_those_who_do_not_look() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut place = place();
    let pager = place.path("pager");
    let heard = place.path("heard");
    fs::write(&pager, format!("#!/bin/sh\ncat >> {0}\necho >> {0}\n", heard.display())).unwrap();
    fs::set_permissions(&pager, fs::Permissions::from_mode(0o700)).unwrap();
    let tables = format!(
        "[policy.yearly]\nschedule = \"cron 0 3 1 1 *\"\n[metrics]\nlisten = \"{address}\"\n\
         [notify.pager]\nkind = \"command\"\ncommand = [\"{}\"]\n",
        pager.display()
    );
    place.config = place
        .config
        .replace("hooks = [\"wait\"]\n", "hooks = [\"wait\"]\npolicy = \"yearly\"\n");
    let place = place.with(&tables);

    let log = place.path("log");
    let mut command = place.command(&["run", "--log-format", "json"]);
    command.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::null());
    let service = Running(command.spawn().unwrap());
    let topics = || -> Vec<String> {
        let text = fs::read_to_string(&heard).unwrap_or_default();
        let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let news = messages.flat_map(|message| message["news"].as_array().cloned().unwrap_or_default());
        news.map(|one| one["topic"].as_str().unwrap_or_default().to_owned())
            .collect()
    };
    let wait_for = |wanted: &[&str]| {
        let started = Instant::now();
        while topics() != wanted {
            assert!(
                started.elapsed() < PATIENCE,
                "{:?}\n{}",
                topics(),
                fs::read_to_string(&log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    wait_for(&["not-safe"]);
    // Somebody backs it up by hand, in another process: the service hears of it.
    place.run(&["backup", "web01"]).expect(0);
    wait_for(&["not-safe", "recovered"]);

    let mut stream = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(
        &mut stream,
        b"GET /metrics HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n",
    )
    .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    for line in [
        "HTTP/1.1 200 OK",
        "coffre_machine_level{machine=\"web01\"} 0.0",
        "coffre_jobs_total{machine=\"web01\",outcome=\"done\"} 1",
    ] {
        assert!(answer.contains(line), "{line} is not in {answer}");
    }
    drop(service);
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("with a schedule"), "{log}");
    for line in log.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}
