//! `coffre hook test`: an application that is really held is let go whatever goes wrong, and the timeline shows who was held
//! from when to when.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::mount::Scratch;
use coffre_tests::{Place, VaultKind};
use serde_json::Value;

use crate::guard::{A_WHILE, SOON, processes, signal, takes_writes, until};

const MIB: u64 = 1 << 20;

/// What the hook does to its application: a file system frozen, a session held open, a file that says "paused", and a
/// command owed.
const SCRIPT: &str = r#"
fn pre(ctx) {
    freeze(ctx.settings.mount);
    let app = hold("app", "/bin/sh", ["-c", "echo $$ > " + ctx.settings.folder + "/session; echo resting; cat"]);
    app.read_until("resting\n", 10000);
    run("/usr/bin/touch", [ctx.settings.folder + "/paused"]);
    debt("/usr/bin/touch", [ctx.settings.folder + "/owed"]);
    application_consistent();
}

fn post(ctx) {
    thaw();
    run("/bin/rm", ["-f", ctx.settings.folder + "/paused"]);
    let app = held("app");
    if app != () { app.close(); }
}
"#;

struct Tried {
    place: Place,
    mount: Scratch,
}

impl Tried {
    fn new(timeout: &str) -> Self {
        let mount = Scratch::new("ext4", 64 * MIB);
        let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
        let app = place.path("app");
        fs::create_dir(&app).unwrap();
        let config = format!(
            "hooks = [\"app\"]\n[hook.app]\nkind = \"rhai\"\non = \"host\"\nfile = \"app.rhai\"\ntimeout = \"{timeout}\"\n\
             settings = {{ mount = \"{0}\", folder = \"{1}\" }}\n\
             [hook.app.grant]\nfreeze = [\"{0}\"]\n\
             process = [[\"/bin/sh\", \"-c\", \"{{text}}\"], [\"/usr/bin/touch\", \"{{path}}\"], [\"/bin/rm\", \"-f\", \"{{path}}\"]]\n",
            mount.freezable().display(),
            app.display()
        );
        let place = place.with(&config);
        fs::create_dir(place.path("scripts")).unwrap();
        fs::write(place.path("scripts/app.rhai"), SCRIPT).unwrap();
        write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
        Self {
            place: place.init(),
            mount,
        }
    }

    fn app(&self, name: &str) -> PathBuf {
        self.place.path("app").join(name)
    }

    fn session(&self) -> i32 {
        fs::read_to_string(self.app("session")).unwrap().trim().parse().unwrap()
    }

    /// Nothing of what the hook did is left.
    #[track_caller]
    fn assert_let_go(&self) {
        assert!(takes_writes(&self.mount.path(), SOON), "writes work again");
        assert!(!self.app("paused").exists(), "post has run");
        let session = self.session();
        assert!(!processes().any(|(pid, ..)| pid == session), "its session has ended");
    }

    /// Tries the hook with this fault, expects that everybody was let go, and gives the answer.
    #[track_caller]
    fn with(&self, fault: Option<&str>, snapshot: &str) -> Value {
        let mut arguments = vec!["hook", "test", "--snapshot", snapshot];
        arguments.extend(fault.map(|fault| ["--fault", fault]).into_iter().flatten());
        let document = self.place.json(&arguments);
        self.assert_let_go();
        assert_eq!(document["all_let_go"], true, "{document}");
        assert_eq!(document["snapshot"], snapshot);
        assert_eq!(document["fault"].as_str(), fault);
        assert_eq!(document["exit_code"], 0);
        self.place.run(&["doctor"]).expect(0);
        document
    }
}

/// The steps of the timeline: each began when the one before had ended, the hook was held from the first to the last, and
/// exactly these failed.
#[track_caller]
fn assert_timeline(document: &Value, steps: &[&str], failed: &[&str]) {
    let spans = document["timeline"]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["step"].as_str().unwrap()).collect();
    assert_eq!(names, steps, "{document}");
    let number = |span: &Value, key: &str| span[key].as_u64().unwrap_or_else(|| panic!("{key} of {span}"));
    for pair in spans.windows(2) {
        assert!(number(&pair[0], "from_ms") <= number(&pair[1], "from_ms"), "{document}");
    }
    for span in spans {
        let step = span["step"].as_str().unwrap();
        assert_eq!(span["error"].is_string(), failed.contains(&step), "{document}");
    }
    let (first, last) = (&spans[0], &spans[spans.len() - 1]);
    assert_eq!((number(first, "from_ms"), first["hook"].as_str()), (0, Some("app")));
    assert_eq!(last["hook"], "app");
    assert_eq!(document["timeline"]["held_ms"]["app"], last["to_ms"], "{document}");
}

const BOTH: [&str; 2] = ["pretended", "real"];
const STEPS: [&str; 3] = ["pre", "snapshot", "post"];

#[test]
fn without_a_fault_a_test_of_hooks_shows_who_was_held_and_makes_no_point() {
    let tried = Tried::new("20s");
    for snapshot in BOTH {
        let document = tried.with(None, snapshot);
        assert_timeline(&document, &STEPS, &[]);
        assert_eq!(document["consistency"], "application", "{document}");
        assert!(!tried.app("owed").exists(), "what is owed for another case is not run");
    }
    assert!(tried.place.points("web01").is_empty());
    let text = tried.place.run(&["hook", "test"]).expect(0).stdout;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "web01: app around a pretended snapshot");
    for (line, step) in lines[2..5].iter().zip(["pre      app", "snapshot    ", "post     app"]) {
        assert!(
            line.starts_with("  |") && line.contains(step) && line.contains("  took "),
            "{text}"
        );
    }
    assert!(text.contains("\napp was held for "), "{text}");
    assert!(text.contains(" of at most 1 min 00 s\n"), "{text}");
    assert!(
        text.ends_with("a point would be application-consistent: brought to rest by app\neverybody was let go\n"),
        "{text}"
    );
}

#[test]
fn a_hook_that_hangs_while_it_holds_is_let_go_at_its_timeout() {
    let tried = Tried::new("2s");
    for snapshot in BOTH {
        let document = tried.with(Some("timeout"), snapshot);
        assert_timeline(&document, &STEPS, &["pre"]);
        let took = document["timeline"]["spans"][0]["to_ms"].as_u64().unwrap();
        assert!((2000..5000).contains(&took), "{document}");
        assert_ne!(document["consistency"], "application", "{document}");
    }
}

#[test]
fn a_pre_or_a_post_that_fails_leaves_nobody_held() {
    let tried = Tried::new("20s");
    for snapshot in BOTH {
        for (fault, step) in [("fail-pre", "pre"), ("fail-post", "post")] {
            let document = tried.with(Some(fault), snapshot);
            assert_timeline(&document, &STEPS, &[step]);
            assert_ne!(document["consistency"], "application", "{document}");
            let reason = document["consistency_reason"].as_str().unwrap();
            assert!(reason.starts_with(&format!("{step} of hook app failed")), "{document}");
        }
    }
}

#[test]
fn a_snapshot_that_fails_leaves_nobody_held() {
    let tried = Tried::new("20s");
    for snapshot in BOTH {
        let document = tried.with(Some("fail-snapshot"), snapshot);
        assert_timeline(&document, &STEPS, &[]);
        assert_eq!(document["consistency"], Value::Null, "{document}");
        let said = document["error"].to_string();
        assert!(said.contains("a fault on purpose: fail-snapshot"), "{said}");
    }
}

#[test]
fn a_session_that_is_lost_is_noticed_and_leaves_nobody_held() {
    let tried = Tried::new("20s");
    // A hook of the same name that another program holds meanwhile.
    let mut of_others = Command::new("/bin/sh");
    of_others.args(["-c", "cat; exit 0"]).env("COFFRE_HOOK", "app");
    let mut of_others = of_others.stdin(Stdio::piped()).spawn().unwrap();
    for snapshot in BOTH {
        let document = tried.with(Some("lose-session"), snapshot);
        assert_timeline(&document, &STEPS, &[]);
        assert_ne!(document["consistency"], "application", "{document}");
        let reason = document["consistency_reason"].as_str().unwrap();
        assert!(reason.starts_with("hook app lost what it held"), "{document}");
    }
    assert!(
        of_others.try_wait().unwrap().is_none(),
        "what others hold is left alone"
    );
    // A fault that could not happen has shown nothing.
    fs::write(
        tried.place.path("scripts/app.rhai"),
        "fn pre(ctx) {}\nfn post(ctx) {}\n",
    )
    .unwrap();
    let ran = tried.place.run(&["hook", "test", "--fault", "lose-session"]).expect(1);
    assert!(
        ran.stdout.contains("app holds nothing open from pre to post"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.contains("hint: "), "{}", ran.stdout);
    drop(of_others.stdin.take());
    assert!(of_others.wait().unwrap().success());
}

#[test]
fn a_program_that_is_killed_while_it_holds_leaves_nobody_held() {
    let tried = Tried::new("20s");
    for snapshot in BOTH {
        // One of the same second, whose id may come later.
        tried.with(None, snapshot);
        let _ = fs::remove_file(tried.app("owed"));
        let document = tried.with(Some("kill-host"), snapshot);
        // The guard let go before the program was started again and ran the post.
        assert_timeline(&document, &["pre", "snapshot", "guard", "post"], &[]);
        assert_eq!(document["timeline"]["spans"][1]["to_ms"], Value::Null, "{document}");
        assert!(tried.app("owed").exists(), "what was owed was run");
        let notes = document["notes"].to_string();
        for part in [
            "was thawed by the guard, since its process was gone",
            "it takes writes",
            "was run by the guard",
        ] {
            assert!(notes.contains(part), "`{part}` is not in {notes}");
        }
    }
    let text = tried
        .place
        .run(&["hook", "test", "--fault", "kill-host"])
        .expect(0)
        .stdout;
    assert!(text.contains("never ended: its process went away"), "{text}");
    assert!(
        text.contains("left behind: ") && text.contains("was thawed by the guard"),
        "{text}"
    );
    assert!(text.ends_with("everybody was let go\n"), "{text}");
}

/// A test of hooks in the middle of a snapshot that takes so long.
fn held(tried: &Tried, takes: &str) -> Child {
    let mut command = tried.place.command(&["hook", "test", "--takes", takes]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until(|| tried.app("paused").exists());
    until(|| !takes_writes(&tried.mount.path(), A_WHILE));
    child
}

#[test]
fn a_test_of_hooks_that_somebody_kills_is_made_good_by_doctor_and_by_a_backup() {
    let tried = Tried::new("20s");
    for start in [&["doctor"][..], &["backup", "web01"]] {
        let mut child = held(&tried, "50s");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(takes_writes(&tried.mount.path(), SOON), "the guard thaws at once");
        assert!(tried.app("paused").exists(), "the post is owed");
        tried.place.run(start).expect(0);
        tried.assert_let_go();
    }
}

#[test]
fn when_a_test_of_hooks_and_its_guard_are_both_killed_the_next_start_lets_everybody_go() {
    let tried = Tried::new("20s");
    for start in [&["doctor"][..], &["backup", "web01"], &["hook", "test"]] {
        let _ = fs::remove_file(tried.app("owed"));
        let mut child = held(&tried, "50s");
        let host = child.id() as i32;
        let guard = processes().find(|(_, name, parent)| name.starts_with("coffre-guard") && *parent == host);
        // Stopped first, so that neither can act for the other.
        signal("STOP", host);
        signal("KILL", guard.expect("it has a guard").0);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !takes_writes(&tried.mount.path(), A_WHILE),
            "nobody was there to thaw it"
        );
        let ran = tried.place.run(start).expect(0);
        let said = ran.stdout + &ran.stderr;
        assert!(
            said.contains("was thawed at a later start") && said.contains("it takes writes"),
            "{said}"
        );
        tried.assert_let_go();
        assert!(tried.app("owed").exists(), "what was owed was run: {said}");
    }
}

#[test]
fn a_test_of_hooks_that_is_interrupted_lets_go_first_and_ends_with_130() {
    let tried = Tried::new("20s");
    let mut child = held(&tried, "8s");
    // A snapshot is not broken off.
    signal("INT", child.id() as i32);
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    tried.assert_let_go();
}
