//! Rhai hooks around a real backup.

use coffre_tests::disk::{sparse, write_noise};
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
