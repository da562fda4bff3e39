//! `coffre hook list|check|new`, and the mistakes that people make with hooks: what they are told, and how the program ends.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

/// A machine with these hooks (`tables` is what stands behind its own table), and files below the scripts folder.
fn place(hooks: &str, tables: &str, files: &[(&str, &str, u32)]) -> Place {
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with(&format!("hooks = [{hooks}]\n{tables}"));
    fs::create_dir(place.path("scripts")).unwrap();
    for (name, content, mode) in files {
        let file = place.path("scripts").join(name);
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(*mode)).unwrap();
    }
    write_noise(&sparse(&place.images().join("a.img"), MIB), 0, MIB, 1);
    place
}

fn rhai(name: &str) -> String {
    format!("[hook.{name}]\nkind = \"rhai\"\non = \"host\"\nfile = \"{name}.rhai\"\n")
}

#[test]
fn a_hook_that_was_begun_by_new_is_fine_and_can_be_tried_at_once() {
    for (kind, file) in [("rhai", "orders-db.rhai"), ("exec", "orders-db.sh")] {
        let place = place("", "", &[]);
        let made = place.run(&["hook", "new", "orders-db", "--kind", kind]).expect(0);
        assert!(made.stdout.contains("For the configuration:"), "{}", made.stdout);
        // The lines that it shows are the lines that are needed.
        let lines = made.stdout.split("\n\n").skip_while(|part| !part.starts_with('['));
        let lines: Vec<&str> = lines.take_while(|part| part.starts_with('[')).collect();
        assert!(lines[0].contains(&format!("file = \"{file}\"")), "{lines:?}");
        let mut place = place.with(&format!("{}\n", lines.join("\n")));
        place.config = place.config.replace("hooks = []", "hooks = [\"orders-db\"]");
        place.write_config();

        let listed = place.run(&["hook", "list"]).expect(0);
        let rows: Vec<&str> = listed.stdout.lines().collect();
        assert!(rows[0].starts_with("HOOK") && rows.len() == 2, "{rows:?}");
        for word in ["orders-db", kind, "web01", "fine", file] {
            assert!(rows[1].contains(word), "`{word}` is not in {rows:?}");
        }
        let checked = place.run(&["hook", "check"]).expect(0);
        assert!(
            checked.stdout.contains("orders-db for web01: fine"),
            "{}",
            checked.stdout
        );
        // As it stands it declares nothing, and says how that is done.
        let tried = place.run(&["hook", "test"]).expect(4);
        assert!(tried.stdout.contains("everybody was let go"), "{}", tried.stdout);
        assert!(
            tried
                .stdout
                .contains("hint: no hook declares that its application is at rest"),
            "{}",
            tried.stdout
        );

        let again = place.run(&["hook", "new", "orders-db", "--kind", kind]);
        again.refused(64, &["already", "take another name"]);
        let folder = place.path("scripts").display().to_string();
        let again = place.run(&["hook", "new", "orders-db", "--kind", kind, "--folder", &folder]);
        again.refused(64, &["exists", "--folder"]);
    }
}

#[test]
fn what_cannot_be_begun_says_why() {
    let place = place("", "", &[]);
    place
        .run(&["hook", "new", "a b"])
        .refused(64, &["cannot be the name of a hook"]);
    place
        .run(&["hook", "new", "../up"])
        .refused(64, &["cannot be the name of a hook"]);
    let nowhere = place.path("nowhere").display().to_string();
    place
        .run(&["hook", "new", "db", "--folder", &nowhere])
        .refused(64, &["there is no folder", &nowhere]);
    // The folder of the scripts itself.
    fs::remove_dir(place.path("scripts")).unwrap();
    place
        .run(&["hook", "new", "db"])
        .refused(64, &["there is no folder", "--folder"]);
    let unknown = place.run(&["hook", "new", "db", "--kind", "perl"]).expect(64);
    assert!(unknown.stderr.contains("rhai"), "{}", unknown.stderr);
    let document = place.run(&["hook", "new", "a b", "--json"]).expect(64).json();
    assert_eq!(document["error"]["exit_code"], 64, "{document}");
}

#[test]
fn without_hooks_or_with_names_that_are_not_known_it_says_what_to_do() {
    let empty = place("", "", &[]);
    let listed = empty.run(&["hook", "list"]).expect(0);
    assert!(
        listed.stdout.contains("`coffre hook new NAME` begins one"),
        "{}",
        listed.stdout
    );
    empty
        .run(&["hook", "check"])
        .refused(65, &["has no hooks", "coffre hook new NAME"]);
    empty
        .run(&["hook", "test"])
        .refused(64, &["web01 has no hooks", "hooks = ["]);

    let place = place(
        "\"orders-db\"",
        &rhai("orders-db"),
        &[("orders-db.rhai", "fn pre(ctx) {}", 0o644)],
    );
    for command in ["check", "test"] {
        place
            .run(&["hook", command, "order-db"])
            .refused(64, &["no hook `order-db`", "`orders-db`"]);
        place
            .run(&["hook", command, "orders-db", "--machine", "web1"])
            .refused(64, &["no machine `web1`", "`web01`"]);
    }
    let unknown = place.run(&["hook", "test", "--fault", "fail-por"]).expect(64);
    assert!(unknown.stderr.contains("fail-post"), "{}", unknown.stderr);

    let mut command = place.command(&["hook", "list"]);
    command.env("COFFRE_CONFIG", "/nonexistent/coffre.toml");
    let missing = place.path("missing.toml").display().to_string();
    let program = command.get_program().to_owned();
    let ran = coffre_tests::Ran::from(
        std::process::Command::new(program)
            .args(["--config", &missing, "hook", "list"])
            .output()
            .unwrap(),
    );
    ran.refused(65, &["missing.toml"]);
}

#[test]
fn a_hook_that_cannot_be_loaded_is_named_with_its_place_and_what_to_do() {
    let tables: String = ["syntax", "missing", "writable"].map(rhai).concat()
        + "[hook.noexec]\nkind = \"exec\"\non = \"host\"\nfile = \"noexec.sh\"\n\
           [hook.grants]\nkind = \"exec\"\non = \"host\"\nfile = \"fine.sh\"\n[hook.grants.grant]\nfreeze = [\"/srv\"]\n\
           [hook.fine]\nkind = \"exec\"\non = \"host\"\nfile = \"fine.sh\"\n";
    let place = place(
        "",
        &tables,
        &[
            ("syntax.rhai", "fn pre(ctx) {\n    let x = ;\n}\n", 0o644),
            ("writable.rhai", "fn pre(ctx) {}\n", 0o666),
            ("noexec.sh", "#!/bin/sh\n", 0o644),
            ("fine.sh", "#!/bin/sh\n", 0o755),
        ],
    );
    let wrong: [(&str, &[&str]); 5] = [
        ("syntax", &["syntax.rhai:2:13: "]),
        ("missing", &["missing.rhai", "hint: a relative `file`"]),
        ("writable", &["can be written by others", "hint: chmod go-w "]),
        ("noexec", &["cannot be executed", "hint: chmod u+x "]),
        ("grants", &["means nothing to an executable", "hint: "]),
    ];
    let listed = place.run(&["hook", "list"]).expect(65);
    let document = place.run(&["hook", "list", "--json"]).expect(65).json();
    for (name, parts) in wrong {
        let row = listed.stdout.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row.contains("NOT FINE"), "{row}");
        let checked = place.run(&["hook", "check", name]).expect(65);
        assert!(
            checked.stdout.contains(&format!("{name} for web01: NOT FINE")),
            "{}",
            checked.stdout
        );
        let tried = place.run(&["hook", "test", name]).expect(65);
        for part in parts {
            for said in [&listed.stderr, &checked.stderr, &tried.stderr] {
                assert!(said.contains(part), "`{part}` of {name} is not in:\n{said}");
            }
        }
        let entries = document["hooks"].as_array().unwrap();
        let entry = entries.iter().find(|entry| entry["name"] == name).unwrap();
        assert_eq!(entry["error"]["exit_code"], 65, "{entry}");
    }
    let fine = listed.stdout.lines().find(|line| line.starts_with("fine")).unwrap();
    assert!(!fine.contains("NOT"), "{fine}");
}

#[test]
fn a_hook_that_fails_when_it_is_tried_says_where_and_what_it_lacks() {
    let scripts = [
        (
            "denied.rhai",
            "fn pre(ctx) {\n    run(\"/usr/bin/psql\", [\"-c\", \"CHECKPOINT\"]);\n}\n",
            0o644,
        ),
        (
            "typo.rhai",
            "fn pre(ctx) {\n    let map = #{};\n    log(map.port);\n}\n",
            0o644,
        ),
        (
            "says.sh",
            "#!/bin/sh\nfor i in $(seq 30); do echo line $i; done; [ $1 = post ]\n",
            0o755,
        ),
    ];
    let tables = rhai("denied") + &rhai("typo") + "[hook.says]\nkind = \"exec\"\non = \"host\"\nfile = \"says.sh\"\n";
    let place = place("\"denied\"", &tables, &scripts);
    let tried = place.run(&["hook", "test"]).expect(1);
    for part in [
        "pre      denied",
        ", failed\n",
        "denied.rhai:2:5: no grant allows the command",
        "hint: allow it, or a pattern of it, in [hook.denied.grant]: process = ",
        "everybody was let go",
    ] {
        assert!(tried.stdout.contains(part), "`{part}` is not in:\n{}", tried.stdout);
    }
    let tried = place.run(&["hook", "test", "typo"]).expect(1);
    assert!(tried.stdout.contains("typo.rhai:3:13: "), "{}", tried.stdout);

    // What it said stands there, the end of it without `-v`.
    let tried = place.run(&["hook", "test", "says"]).expect(1);
    assert!(
        tried
            .stdout
            .contains("pre of says said:\n  … (20 lines more: -v)\n  line 21\n"),
        "{}",
        tried.stdout
    );
    let tried = place.run(&["-v", "hook", "test", "says"]).expect(1);
    assert!(
        tried.stdout.contains("pre of says said:\n  line 1\n"),
        "{}",
        tried.stdout
    );
    let document = place.run(&["hook", "test", "says", "--json"]).expect(1).json();
    assert_eq!(document["exit_code"], 1, "{document}");
    assert_eq!(document["notes"][0]["code"], "hook-failed", "{document}");
    let said = document["timeline"]["spans"][0]["output"].as_str().unwrap();
    assert!(said.starts_with("line 1\n"), "{said}");
}

#[test]
fn check_says_what_a_script_finds_and_blocks() {
    let script = "fn check(ctx) { note(`looked at ${ctx.machine.name}`); if ctx.settings.get(\"port\") == () { blocking(\"no port\"); } }\n\
                  fn pre(ctx) { fail(\"a check runs no pre\"); }\n";
    let place = place("\"db\"", &rhai("db"), &[("db.rhai", script, 0o644)]);
    let checked = place.run(&["hook", "check"]).expect(1);
    assert_eq!(
        checked.stdout,
        "db for web01: NOT FINE\n  note: looked at web01\n  blocking: no port\n"
    );
    let document = place.run(&["hook", "check", "--json"]).expect(1).json();
    assert_eq!(document["ok"], false);
    assert_eq!(document["hooks"][0]["findings"][1]["level"], "blocking", "{document}");
}
