//! Hooks of every kind around a real backup.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::place::target_folder;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

fn place(scripts: &[(&str, &str)], more: &str) -> Place {
    let mut config = String::from("hooks = [");
    config.push_str(
        &scripts
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", "),
    );
    config.push_str("]\n");
    for (name, _) in scripts {
        config.push_str(&format!(
            "[hook.{name}]\nkind = \"rhai\"\non = \"host\"\nfile = \"{name}.rhai\"\n{more}"
        ));
    }
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with(&config);
    std::fs::create_dir(place.path("scripts")).unwrap();
    for (name, text) in scripts {
        std::fs::write(place.path("scripts").join(format!("{name}.rhai")), text).unwrap();
    }
    write_noise(&sparse(&place.images().join("a.img"), 2 * MIB), 0, MIB, 1);
    place.init()
}

const GRANT: &str = "[hook.NAME.grant]\nprocess = [[\"/bin/sh\", \"-c\", \"{text}\"]]\n";

#[test]
fn hooks_run_in_order_and_back_and_make_a_point_application_consistent() {
    let script = |name: &str| {
        format!(
            "fn pre(ctx) {{ run(\"/bin/sh\", [\"-c\", `echo pre {name} >> order`]); application_consistent(); }}\n\
             fn post(ctx) {{ run(\"/bin/sh\", [\"-c\", `echo post {name} ${{ctx.outcome}} >> order`]); }}\n"
        )
    };
    let (a, b) = (script("a"), script("b"));
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    let order = place.path("order").display().to_string();
    let config: String = ["a", "b"]
        .iter()
        .map(|name| {
            format!(
                "[hook.{name}]\nkind = \"rhai\"\non = \"host\"\nfile = \"{name}.rhai\"\n{}",
                GRANT.replace("NAME", name)
            )
        })
        .collect();
    let place = place.with(&format!("hooks = [\"a\", \"b\"]\n{config}"));
    std::fs::create_dir(place.path("scripts")).unwrap();
    for (name, text) in [("a", a), ("b", b)] {
        std::fs::write(
            place.path("scripts").join(format!("{name}.rhai")),
            text.replace(">> order", &format!(">> {order}")),
        )
        .unwrap();
    }
    write_noise(&sparse(&place.images().join("a.img"), 2 * MIB), 0, MIB, 1);
    let place = place.init();
    let point = place.backup("web01");
    let said = std::fs::read_to_string(place.path("order")).unwrap();
    assert_eq!(said, "pre a\npre b\npost b taken\npost a taken\n");
    assert_eq!(point["consistency"], "application", "{point}");
    assert!(point["held_ms"].as_u64().is_some(), "{point}");
    assert_eq!(point["hooks"].as_array().unwrap().len(), 2);
}

#[test]
fn how_long_coffre_itself_held_applications_is_printed_and_stored() {
    let place = place(
        &[(
            "rests",
            "fn pre(ctx) { sleep(300); application_consistent(); }\nfn post(ctx) { sleep(200); }",
        )],
        "",
    );
    let printed = place.run(&["backup", "web01"]).expect(0).stdout;
    let point = place.points("web01").pop().unwrap();
    let (held, overhead) = (
        point["held_ms"].as_u64().unwrap(),
        point["hold_overhead_ms"].as_u64().unwrap(),
    );
    // Neither the hooks' own time nor the snapshot's is in it.
    assert!(held >= 500 && overhead + 500 <= held, "{point}");
    let said = format!("({overhead} ms of it neither in hooks nor in the snapshot)");
    assert!(printed.contains(&said), "{said}: {printed}");
    let job = point["job"].as_str().unwrap();
    let shown = place.run(&["jobs", "show", job]).expect(0).stdout;
    assert!(shown.contains(&said), "{said}: {shown}");
    let shown = place.json(&["jobs", "show", job]);
    assert_eq!(shown["hold_overhead_ms"], overhead, "{shown}");
}

#[test]
fn a_hook_that_may_run_nothing_runs_nothing_and_names_the_grant() {
    let place = place(
        &[("sneaky", "fn pre(ctx) { run(\"/usr/bin/id\", []); }")],
        "on-failure = \"fail\"\n",
    );
    let ran = place.run(&["backup", "web01"]);
    assert!(ran.code == 1 || ran.code == 77, "{ran:?}");
    assert!(
        ran.stderr.contains("/usr/bin/id") && ran.stderr.contains("grant"),
        "{}",
        ran.stderr
    );
    assert!(place.points("web01").is_empty());
}

#[test]
fn a_hook_that_hangs_is_ended_and_the_point_is_marked_down() {
    let place = place(
        &[("hangs", "fn pre(ctx) { loop {} }\nfn post(ctx) {}")],
        "timeout = \"1s\"\non-failure = \"downgrade\"\n",
    );
    // It wanted `application` by default, since it has a hook.
    place.run(&["backup", "web01"]).expect(4);
    let point = place.points("web01").pop().unwrap();
    assert_ne!(point["consistency"], "application");
    assert_eq!(point["hooks"][0]["pre"]["ok"], false);
    assert_eq!(
        point["hooks"][0]["post"]["ok"], true,
        "post runs for every pre that was started: {point}"
    );
}

/// A place whose machine has one hook, `app`, with this table and files in its scripts folder.
fn with_hook(table: &str, files: &[(&str, &str, u32)]) -> Place {
    let place = Place::new(VaultKind::Folder)
        .with_machine("web01", "image")
        .with(&format!("hooks = [\"app\"]\n[hook.app]\non = \"host\"\n{table}"));
    let scripts = place.path("scripts");
    fs::create_dir(&scripts).unwrap();
    let folder = place.path("").display().to_string();
    for (name, text, mode) in files {
        fs::write(scripts.join(name), text.replace("FOLDER/", &folder)).unwrap();
        fs::set_permissions(scripts.join(name), Permissions::from_mode(*mode)).unwrap();
    }
    write_noise(&sparse(&place.images().join("a.img"), 2 * MIB), 0, MIB, 1);
    place.init()
}

#[test]
fn a_program_holds_the_application_and_its_attachment_comes_back_with_a_restore() {
    let program = "#!/bin/sh\necho \"$@\" \"$COFFRE_OUTCOME\" >> FOLDER/order\n\
                   case $1 in\n\
                   pre) echo generation 7 > \"$COFFRE_MEMORY\" ;;\n\
                   post) cp \"$COFFRE_MEMORY\" \"$COFFRE_ATTACHMENTS/generation\"; echo \"worth $COFFRE_CONSISTENCY\" ;;\n\
                   esac\n";
    let table = "kind = \"exec\"\nfile = \"app\"\nargs = [\"--queue\", \"orders\"]\napplication = true\n";
    let place = with_hook(table, &[("app", program, 0o755)]);
    place.run(&["config", "check"]).expect(0);
    assert!(!place.path("order").exists(), "a check runs no program");
    let point = place.backup("web01");
    let order = fs::read_to_string(place.path("order")).unwrap();
    assert_eq!(order, "pre --queue orders \npost --queue orders taken\n");
    assert_eq!(point["consistency"], "application", "{point}");
    assert_eq!(point["hooks"][0]["kind"], "exec");
    assert_eq!(point["hooks"][0]["post"]["output"], "worth application\n");
    let restored = place.restore("web01@latest");
    let attached = fs::read_to_string(restored.join("attachments/generation")).unwrap();
    assert_eq!(attached, "generation 7\n");
}

#[test]
fn a_file_of_azures_framework_works_as_it_is_and_its_failures_keep_their_names() {
    let file = r#"{
        "pluginName": "ScriptRunner",
        "preScriptLocation": "FOLDER/scripts/pre.sh", "postScriptLocation": "FOLDER/scripts/post.sh",
        "preScriptParams": ["orders", ""], "postScriptParams": [],
        "preScriptNoOfRetries": 1, "postScriptNoOfRetries": 0, "timeoutInSeconds": 20,
        "continueBackupOnFailure": true, "fsFreezeEnabled": true
    }"#;
    let pre = "#!/bin/sh\necho \"pre $# $1\" >> FOLDER/order; [ ! -e FOLDER/broken ]\n";
    let post = "echo post >> FOLDER/order\n";
    let place = with_hook(
        "kind = \"azure\"\nfile = \"config.json\"\n",
        &[
            ("config.json", file, 0o600),
            ("pre.sh", pre, 0o700),
            ("post.sh", post, 0o700),
        ],
    );
    let point = place.backup("web01");
    assert_eq!(fs::read_to_string(place.path("order")).unwrap(), "pre 2 orders\npost\n");
    assert_eq!(point["consistency"], "application", "{point}");

    fs::write(place.path("broken"), "").unwrap();
    place.run(&["backup", "web01"]).expect(4);
    let point = place.points("web01").pop().unwrap();
    assert_ne!(point["consistency"], "application", "{point}");
    assert_eq!(
        point["hooks"][0]["pre"]["code"], "FailedPrepostPreScriptFailed",
        "{point}"
    );
    assert_eq!(point["hooks"][0]["pre"]["attempts"], 2, "{point}");

    fs::remove_file(place.path("scripts/post.sh")).unwrap();
    fs::remove_file(place.path("order")).unwrap();
    place.run(&["backup", "web01"]).expect(4);
    let point = place.points("web01").pop().unwrap();
    assert_eq!(
        point["hooks"][0]["pre"]["code"], "FailedPrepostPostScriptNotFound",
        "{point}"
    );
    assert!(
        !place.path("order").exists(),
        "nothing is held that could not be let go"
    );
}

#[test]
fn a_component_is_a_hook() {
    let place = with_hook(
        "kind = \"wasm\"\nfile = \"app.wasm\"\nsettings = { pre = \"echo resting >&2\", post = \"echo going on\" }\n\
         [hook.app.grant]\nprocess = [[\"/bin/sh\", \"-c\", \"{text}\"]]\n",
        &[],
    );
    let built = target_folder().parent().unwrap().join("plugins-test/shell-hook.wasm");
    let file = place.path("scripts/app.wasm");
    fs::copy(&built, &file)
        .unwrap_or_else(|error| panic!("{}: {error}\nhint: `cargo xtask plugins` builds it", built.display()));
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    let point = place.backup("web01");
    assert_eq!(point["consistency"], "application", "{point}");
    assert_eq!(point["hooks"][0]["kind"], "wasm");
    assert_eq!(point["hooks"][0]["pre"]["output"], "resting\n", "{point}");
    assert_eq!(point["hooks"][0]["post"]["output"], "going on\n", "{point}");
}
