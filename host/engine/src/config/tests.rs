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
fn the_configs_to_start_from_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut loaded = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let content = std::fs::read_to_string(&path).unwrap();
            let config = Config::parse(&path, &content).unwrap_or_else(|error| panic!("{error}"));
            assert!(!config.machines.is_empty() && !config.vaults.is_empty());
            loaded += 1;
        }
    }
    assert!(loaded >= 4, "{loaded}");
}

#[test]
fn every_key_stands_in_the_example() {
    // Each is taken out of serde's own list: a table with a key that cannot be.
    for (table, header) in [
        ("coffre", "[coffre]"),
        ("transfer", "[transfer]"),
        ("busy", "[[transfer.busy]]"),
        ("vault", "[vault.x]"),
        ("policy", "[policy.x]"),
        ("machine", "[machine.x]"),
        ("hook", "[hook.x]"),
        ("ssh", "[ssh.x]"),
        ("plugin", "[plugin.x]"),
    ] {
        let error = toml::from_str::<raw::File>(&format!("{header}\nqqq = 1\n"))
            .err()
            .expect("unknown");
        for key in error.message().split('`').skip(3).step_by(2) {
            let shown = EXAMPLE.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                line.contains(&format!("{key} =")) || line.ends_with(&format!(".{key}]"))
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
fn what_stays_and_how_long_undelete_works_is_read() {
    let config = parse(&format!(
        "{RIGHT}vault = \"main\"\n[policy.p]\nkeep = {{ last = 2, within = \"36h\" }}\n[vault.other]\nurl = \"x\"\nencryption = \"none\"\nundelete-for = \"30d\"\n"
    ))
    .unwrap();
    let days = |days: u64| Duration::from_secs(days * 24 * 3600);
    assert_eq!(config.vault("main").unwrap().undelete_for, days(14));
    assert_eq!(config.vault("other").unwrap().undelete_for, days(30));
    let keep = config.policy("p").unwrap().keep.unwrap();
    assert_eq!(
        (keep.last, keep.within, keep.daily),
        (2, Duration::from_secs(36 * 3600), 0)
    );
    insta::assert_snapshot!(said("[vault.main]\nurl = \"x\"\nencryption = \"none\"\nundelete-for = \"2h\"\n"), @r#"
    /etc/coffre/coffre.toml:4:16: `undelete-for` is at least 1d and at most 3650d, not 2h
      |
    4 | undelete-for = "2h"
      |                ^^^^
    "#);
    insta::assert_snapshot!(said("[policy.p]\nkeep = { daily = 0 }\n"), @r#"
    /etc/coffre/coffre.toml:2:8: `keep` that keeps nothing
      |
    2 | keep = { daily = 0 }
      |        ^^^^^^^^^^^^^
    hint: leave `keep` out to keep every point
    "#);
}

#[test]
fn parity_is_a_percentage_and_for_folders_alone() {
    let vault =
        |url: &str, parity: &str| format!("[vault.v]\nurl = \"{url}\"\nencryption = \"none\"\nparity = \"{parity}\"\n");
    let config = parse(&vault("/backups", "10%")).unwrap();
    assert_eq!(
        config.vault("v").unwrap().store.parity,
        coffre_vault::Parity::of_percent(10)
    );
    insta::assert_snapshot!(said(&vault("/backups", "0.5%")), @r#"
    /etc/coffre/coffre.toml:4:10: `0.5%` is no percentage from 1% to 100%, as in 10%
      |
    4 | parity = "0.5%"
      |          ^^^^^^
    "#);
    insta::assert_snapshot!(said(&vault("s3://bucket/prefix", "10%")), @r#"
    /etc/coffre/coffre.toml:4:10: `parity` is for vaults in a local folder
      |
    4 | parity = "10%"
      |          ^^^^^
    hint: a bucket or container lies on many disks already, which mend each other
    "#);
}

#[test]
fn what_is_wrong_with_times_and_caps_of_transfers_is_said() {
    insta::assert_snapshot!(said("[transfer]\nbandwidth = \"fast\"\n"), @r#"
    /etc/coffre/coffre.toml:2:13: `fast` is not a bandwidth
      |
    2 | bandwidth = "fast"
      |             ^^^^^^
    hint: as in "20MiB/s", "100Mbit/s", or "0" for nothing at all
    "#);
    insta::assert_snapshot!(said("[transfer]\nrequests = 0\n"), @r#"
    /etc/coffre/coffre.toml:2:12: `requests` per second are at least 1 and at most 100000
      |
    2 | requests = 0
      |            ^
    "#);
    insta::assert_snapshot!(said("[transfer]\nbusy = [{ at = \"mon-fri 8-18\", requests = 5 }]\n"), @r#"
    /etc/coffre/coffre.toml:2:16: `8-18` is not a window of time
      |
    2 | busy = [{ at = "mon-fri 8-18", requests = 5 }]
      |                ^^^^^^^^^^^^^^
    hint: as in "22:00-06:00", "mon-fri 08:00-18:00 Europe/Paris" or "sat,sun 00:00-24:00"
    "#);
    insta::assert_snapshot!(said("[transfer]\nbusy = [{ at = \"08:00-18:00\" }]\n"), @r#"
    /etc/coffre/coffre.toml:2:9: a busy time without a cap
      |
    2 | busy = [{ at = "08:00-18:00" }]
      |         ^^^^^^^^^^^^^^^^^^^^^^
    hint: add bandwidth = "5MiB/s" or requests = 10; bandwidth = "0" lets nothing go
    "#);
    insta::assert_snapshot!(said("[policy.p]\ntransfer = [\"monday 20:00-06:00\"]\n"), @r#"
    /etc/coffre/coffre.toml:2:13: `monday` is not a day of the week
      |
    2 | transfer = ["monday 20:00-06:00"]
      |             ^^^^^^^^^^^^^^^^^^^^
    hint: did you mean `mon`?
    "#);
    insta::assert_snapshot!(said("[policy.p]\ntransfer = []\n"), @r#"
    /etc/coffre/coffre.toml:2:12: `transfer` without a window: nothing would ever be transferred
      |
    2 | transfer = []
      |            ^^
    hint: leave `transfer` out to transfer at any time
    "#);
    insta::assert_snapshot!(said("[policy.p]\njitter = \"2d\"\n"), @r#"
    /etc/coffre/coffre.toml:2:10: `jitter` is at least 0s and at most 12h, not 2d
      |
    2 | jitter = "2d"
      |          ^^^^
    "#);
}

#[test]
fn an_unknown_key_is_shown_with_the_nearest() {
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"crash\"\nshedule = \"daily 02:00\"\n"), @r#"
    /etc/coffre/coffre.toml:3:1: unknown key `shedule`
      |
    3 | shedule = "daily 02:00"
      | ^^^^^^^
    hint: did you mean `schedule`?
    "#);
    insta::assert_snapshot!(said("[vaults.main]\n"), @r"
    /etc/coffre/coffre.toml:1:2: unknown key `vaults`
      |
    1 | [vaults.main]
      |  ^^^^^^
    hint: did you mean `vault`?
    ");
    insta::assert_snapshot!(said("[coffre]\nzzz = 1\n"), @r"
    /etc/coffre/coffre.toml:2:1: unknown key `zzz`
      |
    2 | zzz = 1
      | ^^^
    hint: known here: `state`, `run`, `cache`, `plugins`, `plugin-path`, `scripts`, `jobs`, `disks`
    ");
    insta::assert_snapshot!(said("[vault.main]\nurl = \"x\"\nkey = { fil = \"k\" }\n"), @r#"
    /etc/coffre/coffre.toml:3:9: unknown key `fil`
      |
    3 | key = { fil = "k" }
      |         ^^^
    hint: did you mean `file`?
    "#);
}

#[test]
fn a_wrong_value_is_shown_with_what_is_right() {
    insta::assert_snapshot!(said("[policy.daily]\nschedule = \"dayly 02:00\"\n"), @r#"
    /etc/coffre/coffre.toml:2:12: `dayly` is not a kind of schedule
      |
    2 | schedule = "dayly 02:00"
      |            ^^^^^^^^^^^^^
    hint: did you mean `daily`?
    "#);
    insta::assert_snapshot!(said("[policy.daily]\n\thold-at-most = \"20\"\n"), @r#"
    /etc/coffre/coffre.toml:2:17: `20` is not a duration
      |
    2 | 	hold-at-most = "20"
      | 	               ^^^^
    hint: a number with a unit, as in "500ms", "20s", "5m", "24h" or "7d"
    "#);
    insta::assert_snapshot!(said("[policy.daily]\ndeadline = \"30d\"\n"), @r#"
    /etc/coffre/coffre.toml:2:12: `deadline` is at least 1s and at most 7d, not 30d
      |
    2 | deadline = "30d"
      |            ^^^^^
    "#);
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"aplication\"\n"), @r#"
    /etc/coffre/coffre.toml:2:15: `aplication` is not a consistency
      |
    2 | consistency = "aplication"
      |               ^^^^^^^^^^^^
    hint: did you mean `application`?
    "#);
    insta::assert_snapshot!(said("[policy.daily]\nconsistency = \"crash\"\naccept = \"application\"\n"), @r#"
    /etc/coffre/coffre.toml:3:10: `accept` asks for more than `consistency` wants
      |
    3 | accept = "application"
      |          ^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(said("[coffre]\njobs = \"many\"\n"), @r#"
    /etc/coffre/coffre.toml:2:8: a whole number belongs here, not string "many"
      |
    2 | jobs = "many"
      |        ^^^^^^
    "#);
    insta::assert_snapshot!(said("[vault.main]\nurl = \"ftp://host/x\"\nencryption = \"none\"\n"), @r#"
    /etc/coffre/coffre.toml:2:7: `ftp` is not a kind of store
      |
    2 | url = "ftp://host/x"
      |       ^^^^^^^^^^^^^^
    hint: as in "s3://bucket/prefix", "az://container/prefix", "file:///folder", or a folder's path
    "#);
    insta::assert_snapshot!(said("[plugin.x]\nsha256 = \"abc\"\n"), @r#"
    /etc/coffre/coffre.toml:2:10: not a sha256
      |
    2 | sha256 = "abc"
      |          ^^^^^
    hint: 64 hex digits, as `coffre plugin inspect FILE` shows them
    "#);
    insta::assert_snapshot!(said("[hook.\"a b\"]\nkind = \"rhai\"\nfile = \"x\"\n"), @r#"
    /etc/coffre/coffre.toml:1:7: `a b` cannot be the name of a hook
      |
    1 | [hook."a b"]
      |       ^^^^^
    hint: letters, digits, `-`, `_` and `.`, at most 64, a letter or digit first
    "#);
}

#[test]
fn keys_that_mean_nothing_to_a_kind_of_hook_are_refused() {
    insta::assert_snapshot!(said("[hook.a]\nkind = \"rhai\"\nfile = \"x\"\nargs = [\"--fast\"]\n"), @r#"
    /etc/coffre/coffre.toml:4:8: `args` is for hooks of the kind exec, and this one is rhai
      |
    4 | args = ["--fast"]
      |        ^^^^^^^^^^
    hint: hooks of this kind are told by `settings`, and declare application consistency themselves
    "#);
    insta::assert_snapshot!(said("[hook.a]\nkind = \"azure\"\nfile = \"x\"\ntimeout = \"5s\"\n"), @r#"
    /etc/coffre/coffre.toml:4:11: `timeout` is not for hooks of the kind azure
      |
    4 | timeout = "5s"
      |           ^^^^
    hint: its file has timeoutInSeconds
    "#);
    for key in [
        "retries = 1",
        "on-failure = \"fail\"",
        "settings = {}",
        "args = []",
        "application = true",
        "[hook.a.grant]",
    ] {
        let table = format!("[hook.a]\nkind = \"azure\"\nfile = \"x\"\n{key}\n");
        assert!(said(&table).contains("azure"), "{key}");
    }
    let exec = parse("[hook.a]\nkind = \"exec\"\nfile = \"x\"\nargs = [\"\"]\napplication = true\n").unwrap();
    assert_eq!(
        (exec.hooks["a"].args.as_slice(), exec.hooks["a"].application),
        (&[String::new()][..], true)
    );
}

#[test]
fn names_that_lead_nowhere_are_shown() {
    insta::assert_snapshot!(said(&format!("{RIGHT}policy = \"daily\"\n")), @r#"
    /etc/coffre/coffre.toml:8:10: there is no policy `daily`
      |
    8 | policy = "daily"
      |          ^^^^^^^
    hint: the config has no policy at all: add a [policy.daily] table
    "#);
    insta::assert_snapshot!(said(&format!("[hook.orders-db]\nkind = \"rhai\"\nfile = \"x\"\n{RIGHT}hooks = [\"order-db\"]\n")), @r#"
    /etc/coffre/coffre.toml:11:10: there is no hook `order-db`
       |
    11 | hooks = ["order-db"]
       |          ^^^^^^^^^^
    hint: did you mean `orders-db`?
    "#);
    insta::assert_snapshot!(said(&format!("{RIGHT}vault = \"mian\"\n")), @r#"
    /etc/coffre/coffre.toml:8:9: there is no vault `mian`
      |
    8 | vault = "mian"
      |         ^^^^^^
    hint: did you mean `main`?
    "#);
    insta::assert_snapshot!(said("[machine.web01]\nprovider = \"image\"\n"), @r"
    /etc/coffre/coffre.toml:1:10: machine `web01` does not say which `vault`
      |
    1 | [machine.web01]
      |          ^^^^^
    hint: the config has no vault yet: add a [vault.main] table
    ");
}

#[test]
fn what_is_missing_is_shown_with_a_line_to_add() {
    insta::assert_snapshot!(said("[vault.main]\nurl = \"s3://b/c\"\n"), @r#"
    /etc/coffre/coffre.toml:1:8: vault `main` has no `key`
      |
    1 | [vault.main]
      |        ^^^^
    hint: add a line like: key = { file = "/etc/coffre/main.key" }; `encryption = "none"` does without, and then everybody who can read the store can read the disks
    "#);
    insta::assert_snapshot!(said("[vault.main]\nurl = \"s3://b/c\"\nkey = { file = \"a\", env = \"B\" }\n"), @r#"
    /etc/coffre/coffre.toml:3:7: a key has one source, here are several
      |
    3 | key = { file = "a", env = "B" }
      |       ^^^^^^^^^^^^^^^^^^^^^^^^^
    hint: exactly one of file, env, command, passphrase-file, passphrase-env, passphrase-command, recovery-key-file
    "#);
    insta::assert_snapshot!(said("[machine.web01]\nos = \"linux\"\n"), @r#"
    /etc/coffre/coffre.toml:1:10: `provider` is missing here
      |
    1 | [machine.web01]
      |          ^^^^^
    hint: add a line like: provider = "reflink"
    "#);
}

#[test]
fn grants_are_checked_where_they_stand() {
    insta::assert_snapshot!(said("[plugin.x.grant]\ndisk-reed = [\"/x\"]\n"), @r#"
    /etc/coffre/coffre.toml:2:1: `disk-reed` is nothing that a plugin can be granted
      |
    2 | disk-reed = ["/x"]
      | ^^^^^^^^^
    hint: did you mean `disk-read`?
    "#);
    insta::assert_snapshot!(said("[plugin.x.grant]\ndisk-read = [\"/x/${setings.images}\"]\n"), @r#"
    /etc/coffre/coffre.toml:2:13: `${setings.images}` cannot be filled in
      |
    2 | disk-read = ["/x/${setings.images}"]
      |             ^^^^^^^^^^^^^^^^^^^^^^^^
    hint: only `${settings.NAME}`, a setting of the machine, can stand in a grant
    "#);
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    insta::assert_snapshot!(said("[coffre]\njobs = \n"), @r"
    /etc/coffre/coffre.toml:2:8: string values must be quoted, expected literal string
      |
    2 | jobs = 
      |        ^
    ");
    insta::assert_snapshot!(said("[coffre]\njobs = 1\njobs = 2\n"), @r"
    /etc/coffre/coffre.toml:3:1: duplicate key
      |
    3 | jobs = 2
      | ^^^^
    ");
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

/// What an error shows is what the terminal gets: it must be made without a panic, also for positions within a letter.
fn reads_or_explains(content: &str) {
    if let Err(error) = parse(content) {
        assert!(!error.to_string().is_empty());
        let _ = error.hint();
    }
}

proptest::proptest! {
    /// Words of the example in other places, cut short, or replaced by something else.
    #[test]
    fn no_change_to_a_right_config_breaks_the_reader(
        changes in proptest::collection::vec(
            (proptest::prelude::any::<proptest::sample::Index>(), 0usize..40, "[\\[\\]a-z0-9=\"{},.\\\\\n\té€ -]{0,12}"),
            1..5,
        ),
    ) {
        let mut content: Vec<char> = EXAMPLE.chars().collect();
        for (at, length, text) in changes {
            let at = at.index(content.len());
            let end = content.len().min(at + length);
            content.splice(at..end, text.chars());
        }
        reads_or_explains(&content.into_iter().collect::<String>());
    }

    #[test]
    fn a_number_of_any_size_is_taken_or_refused(number in "-?[0-9]{1,40}[smhd%]{0,2}", key in 0usize..6) {
        let line = [
            format!("[coffre]\njobs = {number}"),
            format!("[policy.a]\nhold-at-most = \"{number}\""),
            format!("[policy.a]\ndeadline = \"{number}\""),
            format!("[policy.a]\nschedule = \"{number}\""),
            format!("[policy.a]\nkeep = {{ last = {number} }}"),
            format!("[hook.a]\nkind = \"rhai\"\ntimeout = \"{number}\""),
        ];
        reads_or_explains(&format!("{}\n{RIGHT}", line[key]));
    }

    #[test]
    fn no_text_breaks_the_reader(content in "[\\[\\]a-z=\"{}.\n\té ]{0,80}") {
        reads_or_explains(&content);
    }
}

#[test]
fn a_hook_runs_in_the_machine_only_where_it_is_said_how_that_is_reached() {
    const VAULT: &str = "[vault.v]\nurl = \"/v\"\nencryption = \"none\"\n";
    const HOOK: &str = "[hook.a]\nkind = \"exec\"\nfile = \"/opt/a\"\n";
    const SSH: &str = "[ssh.web]\naddress = \"web.example.org\"\nuser = \"root\"\nkey = \"key\"\n";
    insta::assert_snapshot!(said(&format!("{HOOK}on = \"ssh:web\"\n")), @r#"
    /etc/coffre/coffre.toml:4:6: there is no [ssh.web] table
      |
    4 | on = "ssh:web"
      |      ^^^^^^^^^
    hint: the config says of no host how it is reached: add a [ssh.web] table
    "#);
    insta::assert_snapshot!(
        said(&format!("{HOOK}on = \"ssh:wep\"\n{SSH}host-key = \"ssh-ed25519 AAAAC3\"\n")),
        @r#"
    /etc/coffre/coffre.toml:4:6: there is no [ssh.wep] table
      |
    4 | on = "ssh:wep"
      |      ^^^^^^^^^
    hint: did you mean `web`?
    "#
    );
    insta::assert_snapshot!(said(&format!("{SSH}host-key = \"AAAAC3\"\n")), @r#"
    /etc/coffre/coffre.toml:5:12: not the public key of a host
      |
    5 | host-key = "AAAAC3"
      |            ^^^^^^^^
    hint: the machine's /etc/ssh/ssh_host_ed25519_key.pub has it, as in "ssh-ed25519 AAAA…"
    "#);
    insta::assert_snapshot!(said(&format!("{SSH}host-key = \"ssh-ed25519 AAAAC3\"\nport = 0\n")), @r#"
    /etc/coffre/coffre.toml:6:8: a port is at least 1 and at most 65535
      |
    6 | port = 0
      |        ^
    "#);
    let option = SSH.replace("web.example.org", "-oProxyCommand=x");
    insta::assert_snapshot!(said(&format!("{option}host-key = \"ssh-ed25519 AAAAC3\"\n")), @r#"
    /etc/coffre/coffre.toml:2:11: `-oProxyCommand=x` is not an address
      |
    2 | address = "-oProxyCommand=x"
      |           ^^^^^^^^^^^^^^^^^^
    "#);
    insta::assert_snapshot!(said("[hook.a]\nkind = \"rhai\"\nfile = \"a.rhai\"\non = \"agent\"\n"), @r#"
    /etc/coffre/coffre.toml:4:6: a hook of the kind rhai runs on this host; in the machine programs can run
      |
    4 | on = "agent"
      |      ^^^^^^^
    hint: use kind = "exec", whose file is a program in the machine
    "#);
    insta::assert_snapshot!(said("[hook.a]\nkind = \"exec\"\nfile = \"a\"\non = \"agent\"\n"), @r#"
    /etc/coffre/coffre.toml:3:8: a program in the machine is named by its absolute path there
      |
    3 | file = "a"
      |        ^^^
    "#);
    insta::assert_snapshot!(
        said(&format!("{VAULT}{HOOK}on = \"agent\"\n[machine.m]\nprovider = \"p\"\nhooks = [\"a\"]\n")),
        @r#"
    /etc/coffre/coffre.toml:10:10: hook `a` runs by the guest agent, and `m` names none
       |
    10 | hooks = ["a"]
       |          ^^^
    hint: add a line like: agent = "/run/qemu/web01.qga", the agent's socket on this host
    "#
    );
    let config = parse(&format!(
        "{VAULT}{HOOK}on = \"ssh:web\"\n{SSH}host-key = \"ssh-ed25519 AAAAC3 root@web\"\n[machine.m]\nprovider = \"p\"\nagent = \"a.sock\"\n"
    ))
    .unwrap_or_else(|error| panic!("{error}"));
    let web = &config.ssh["web"];
    assert_eq!((web.port, web.host_key.as_str()), (22, "ssh-ed25519 AAAAC3"));
    assert_eq!(web.key, Path::new("/etc/coffre/key"));
    assert_eq!(
        config.machines["m"].agent.as_deref(),
        Some(Path::new("/etc/coffre/a.sock"))
    );
}

#[test]
fn mistakes_about_who_is_told_are_shown_where_they_are() {
    let wrong = [
        "[metrics]\nlisten = \"0.0.0.0:9646\"",
        "[metrics]\nlisten = \"localhost\"",
        "[notify.a]\nkind = \"pigeon\"",
        "[notify.a]\nkind = \"webhook\"",
        "[notify.a]\nkind = \"webhook\"\nurl = \"ftp://example.org\"",
        "[notify.a]\nkind = \"webhook\"\nurl = \"https://example.org\"\non = [\"failure\"]",
        "[notify.a]\nkind = \"ping\"\nurl = \"https://example.org\"\non = [\"failed\"]",
        "[notify.a]\nkind = \"command\"\ncommand = [\"page\"]",
        "[notify.a]\nkind = \"email\"\nserver = \"mail.example.org\"\nfrom = \"a@b\"\nto = [\"a@b\"]",
        "[notify.a]\nkind = \"email\"\nserver = \"smtps://u:p@mail.example.org\"\nfrom = \"a@b\"\nto = [\"a@b\"]",
        "[notify.a]\nkind = \"email\"\nserver = \"smtp://mail.example.org\"\nfrom = \"a@b\"\nto = [\"a@b\"]\nuser = \"u\"\npassword = { env = \"P\" }",
        "[notify.a]\nkind = \"email\"\nserver = \"smtps://mail.example.org\"\nfrom = \"nobody\"\nto = [\"a@b\"]",
    ];
    let all: Vec<String> = wrong.iter().map(|lines| said(&format!("{RIGHT}\n{lines}\n"))).collect();
    insta::assert_snapshot!(all.join("\n\n"));
}
