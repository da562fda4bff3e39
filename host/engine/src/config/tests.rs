//! What people read when a configuration is wrong, and that the example is right.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::machine::{Consistency, OsFamily};
use crate::secret::SecretSource;

fn parse(content: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/coffre/coffre.toml"), content)
}

/// What a terminal shows.
fn said(content: &str) -> String {
    let error = parse(content).expect_err("a wrong config");
    match error.hint() {
        Some(hint) => format!("{error}\nhint: {hint}"),
        None => error.to_string(),
    }
}

const RIGHT: &str = r#"
[vault.main]
url = "vault"
encryption = "none"

[machine.web01]
provider = "image"
"#;

#[test]
fn the_example_loads_and_says_what_it_shows() {
    let config = parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.coffre.state, Path::new("/var/lib/coffre/state"));
    let machine = config.machine("web01").unwrap();
    assert_eq!(machine.os, OsFamily::Linux);
    assert_eq!(machine.settings["images"], "/var/lib/vm/web01");
    assert_eq!(config.wanted(machine), Consistency::Application);
    assert_eq!(config.policy_of(machine).accept, Consistency::FileSystem);
    let hook = config.hook("orders-db").unwrap();
    assert_eq!(hook.file, Path::new("/etc/coffre/scripts/postgres.rhai"));
    assert_eq!(
        (hook.timeout, hook.retries, hook.on_failure),
        (Duration::from_secs(20), 1, OnFailure::Downgrade)
    );
    assert!(
        config.plugins["lvm"]
            .grant
            .as_ref()
            .unwrap()
            .0
            .contains_key("disk-read")
    );
    let key = config.vault("main").unwrap().key.as_ref().unwrap();
    assert_eq!(
        (key.kind, &key.source),
        (KeyKind::Secret, &SecretSource::File("/etc/coffre/main.key".into()))
    );
}

#[test]
fn every_key_stands_in_the_example() {
    // Each is taken out of serde's own list: a table with a key that cannot be.
    for (table, header) in [
        ("coffre", "[coffre]"),
        ("vault", "[vault.x]"),
        ("policy", "[policy.x]"),
        ("machine", "[machine.x]"),
        ("hook", "[hook.x]"),
        ("plugin", "[plugin.x]"),
    ] {
        let error = toml::from_str::<raw::File>(&format!("{header}\nqqq = 1\n"))
            .err()
            .expect("unknown");
        for key in error.message().split('`').skip(3).step_by(2) {
            let shown = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.starts_with(&format!("{key} =")) || line.ends_with(&format!(".{key}]"))
            });
            assert!(shown || key == "on_failure", "{table}: {key}");
        }
    }
}

#[test]
fn paths_are_relative_to_the_files_folder() {
    let config = parse(&format!("[coffre]\nstate = \"state\"\nscripts = \"s\"\n{RIGHT}")).unwrap();
    assert_eq!(config.coffre.state, Path::new("/etc/coffre/state"));
    assert_eq!(config.coffre.scripts, PathBuf::from("/etc/coffre/s"));
    assert_eq!(config.vault("main").unwrap().url.as_str(), "file:///etc/coffre/vault");
}

#[test]
fn the_only_vault_need_not_be_named_and_defaults_ask_for_nothing() {
    let config = parse(RIGHT).unwrap();
    let machine = config.machine("web01").unwrap();
    assert_eq!(machine.vault, "main");
    assert_eq!(config.wanted(machine), Consistency::Crash);
    assert_eq!(config.policy_of(machine).hold_at_most, Duration::from_secs(60));
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest() {
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"crash\"\nshedule = \"daily 02:00\"\n"), @"");
    insta::assert_snapshot!(said("[vaults.main]\n"), @"");
    insta::assert_snapshot!(said("[coffre]\nzzz = 1\n"), @"");
    insta::assert_snapshot!(said("[vault.main]\nurl = \"x\"\nkey = { fil = \"k\" }\n"), @"");
}

#[test]
fn a_wrong_value_is_shown_with_what_is_right() {
    insta::assert_snapshot!(said("[policy.daily]\nschedule = \"dayly 02:00\"\n"), @"");
    insta::assert_snapshot!(said("[policy.daily]\n\thold-at-most = \"20\"\n"), @"");
    insta::assert_snapshot!(said("[policy.daily]\ndeadline = \"30d\"\n"), @"");
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"aplication\"\n"), @"");
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"crash\"\naccept = \"application\"\n"), @"");
    insta::assert_snapshot!(said("[coffre]\njobs = \"many\"\n"), @"");
    insta::assert_snapshot!(said("[vault.main]\nurl = \"ftp://host/x\"\nencryption = \"none\"\n"), @"");
    insta::assert_snapshot!(said("[plugin.x]\nsha256 = \"abc\"\n"), @"");
    insta::assert_snapshot!(said("[hook.\"a b\"]\nkind = \"rhai\"\nfile = \"x\"\n"), @"");
}

#[test]
fn names_that_lead_nowhere_are_shown() {
    insta::assert_snapshot!(said(&format!("{RIGHT}policy = \"daily\"\n")), @"");
    insta::assert_snapshot!(said(&format!("[hook.orders-db]\nkind = \"rhai\"\nfile = \"x\"\n{RIGHT}hooks = [\"order-db\"]\n")), @"");
    insta::assert_snapshot!(said(&format!("{RIGHT}vault = \"mian\"\n")), @"");
    insta::assert_snapshot!(said("[machine.web01]\nprovider = \"image\"\n"), @"");
}

#[test]
fn what_is_missing_is_shown_with_a_line_to_add() {
    insta::assert_snapshot!(said("[vault.main]\nurl = \"s3://b/c\"\n"), @"");
    insta::assert_snapshot!(said("[vault.main]\nurl = \"s3://b/c\"\nkey = { file = \"a\", env = \"B\" }\n"), @"");
    insta::assert_snapshot!(said("[machine.web01]\nos = \"linux\"\n"), @"");
}

#[test]
fn grants_are_checked_where_they_stand() {
    insta::assert_snapshot!(said("[plugin.x.grant]\ndisk-reed = [\"/x\"]\n"), @"");
    insta::assert_snapshot!(said("[plugin.x.grant]\ndisk-read = [\"/x/${setings.images}\"]\n"), @"");
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    insta::assert_snapshot!(said("[coffre]\njobs = \n"), @"");
    insta::assert_snapshot!(said("[coffre]\njobs = 1\njobs = 2\n"), @"");
}

#[test]
fn a_config_never_shows_a_secret() {
    let config = parse(EXAMPLE).unwrap();
    let shown = serde_json::to_string(&config).unwrap();
    assert!(shown.contains("/etc/coffre/main.key"));
}

#[test]
fn an_unknown_machine_is_told_the_nearest() {
    let error = parse(RIGHT).unwrap().machine("web1").unwrap_err();
    assert_eq!(error.to_string(), "the config has no machine `web1`");
    assert_eq!(error.hint.as_deref(), Some("did you mean `web01`?"));
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_the_reader(content in "[\\[\\]a-z=\"{}.\n\té ]{0,80}") {
        if let Err(error) = parse(&content) {
            let _ = (error.to_string(), error.hint());
        }
    }
}
