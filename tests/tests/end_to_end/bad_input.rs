//! What people get wrong: one clear error, a hint, its own exit code, and nothing lost.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::place::target_folder;
use coffre_tests::servers::s3_that_overwrites;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;
const CONFIG: i32 = 65;

/// A key file as it should be, of a vault that there is not.
fn write_key(place: &Place) {
    fs::write(place.path("main.key"), (0..32).collect::<Vec<u8>>()).unwrap();
    fs::set_permissions(place.path("main.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn place() -> Place {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image").init();
    write_noise(&sparse(&place.images().join("a.img"), 2 * MIB), 0, MIB, 1);
    place
}

#[test]
fn an_unknown_key_is_shown_at_its_line_with_the_right_one() {
    let place = place().with("polcy = \"daily\"\n");
    place
        .run(&["backup", "web01"])
        .refused(CONFIG, &["coffre.toml:", "polcy", "policy"]);
}

#[test]
fn a_name_that_is_nowhere_is_shown_at_its_line() {
    let place = place().with("policy = \"dayly\"\n[policy.daily]\nschedule = \"never\"\n");
    place.run(&["backup", "web01"]).refused(CONFIG, &["dayly", "daily"]);
}

#[test]
fn a_config_that_others_can_write_is_refused() {
    let place = place();
    fs::set_permissions(place.config_file(), fs::Permissions::from_mode(0o666)).unwrap();
    place.run(&["backup", "web01"]).refused(CONFIG, &["written by others"]);
}

#[test]
fn a_config_that_is_not_there_and_wrong_words_have_their_own_codes() {
    let place = place();
    fs::remove_file(place.config_file()).unwrap();
    place.run(&["points"]).refused(CONFIG, &["coffre.toml"]);
    assert_eq!(place.run(&["bakup"]).code, 64);
    assert_eq!(place.run(&["restore", "web01"]).code, 64);
}

#[test]
fn an_unknown_machine_names_the_nearest() {
    place().run(&["backup", "web02"]).refused(64, &["web02", "web01"]);
}

#[test]
fn a_missing_plugin_is_named_with_where_it_was_looked_for() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "vmware").init();
    place.run(&["backup", "web01"]).refused(CONFIG, &["vmware"]);
}

/// The place with a plugin of its own: a file and what is pinned of it.
fn with_plugin(name: &str, bytes: &[u8], pin: Option<&str>) -> Place {
    let place = Place::new(VaultKind::Folder).with_machine("web01", name);
    let file = place.path(&format!("{name}.wasm"));
    fs::write(&file, bytes).unwrap();
    let pin = pin.map_or("dev = true".to_owned(), |pin| format!("sha256 = \"{pin}\""));
    let grant = format!(
        "[plugin.{name}.grant]\ndisk-read = [\"{}/**\"]\n",
        place.images().display()
    );
    let place = place.with(&format!(
        "[plugin.{name}]\nfile = \"{}\"\n{pin}\n{grant}",
        file.display()
    ));
    write_noise(&sparse(&place.images().join("a.img"), 2 * MIB), 0, MIB, 1);
    place.init()
}

#[test]
fn a_wrong_pin_is_refused() {
    let image = fs::read(target_folder().parent().unwrap().join("plugins/image.wasm"))
        .expect("hint: `cargo xtask plugins` builds the plugins");
    let place = with_plugin("mine", &image, Some(&"0".repeat(64)));
    let ran = place.run(&["backup", "web01"]);
    assert!(ran.code == 77 || ran.code == CONFIG, "{ran:?}");
    assert!(
        ran.stderr.contains("sha256") || ran.stderr.contains("digest"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("hint"), "{}", ran.stderr);
    assert!(place.points("web01").is_empty());
}

#[test]
fn garbage_and_core_modules_are_no_plugins() {
    for bytes in [
        &b"not wasm at all"[..],
        &[0, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
        &[0, 0x61, 0x73, 0x6d, 0x0d, 0, 1, 0],
    ] {
        let place = with_plugin("mine", bytes, None);
        place.run(&["backup", "web01"]).refused(CONFIG, &["mine"]);
        assert!(place.points("web01").is_empty());
    }
}

#[test]
fn a_vault_that_is_not_there_or_not_empty_is_refused() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    sparse(&place.images().join("a.img"), MIB);
    write_key(&place);
    place
        .run(&["backup", "web01"])
        .refused(CONFIG, &["vault", "coffre init"]);
    fs::remove_file(place.path("main.key")).unwrap();
    place
        .run(&["backup", "web01"])
        .refused(CONFIG, &["main.key", "coffre init"]);
    let place = place.init();
    place.run(&["init", "main"]).refused(1, &["vault"]);
    let other = Place::new(VaultKind::Folder);
    fs::create_dir(other.path("vault")).unwrap();
    fs::write(other.path("vault/letter.txt"), "dear").unwrap();
    other.run(&["init", "main"]).refused(1, &["empty"]);
    assert_eq!(fs::read_to_string(other.path("vault/letter.txt")).unwrap(), "dear");
}

#[test]
fn a_wrong_key_is_refused_before_any_work() {
    let place = place();
    fs::write(place.path("main.key"), [7; 32]).unwrap();
    let ran = place.run(&["backup", "web01"]);
    assert!(ran.code == 77 || ran.code == 1, "{ran:?}");
    assert!(
        ran.stderr.contains("key") && ran.stderr.contains("hint"),
        "{}",
        ran.stderr
    );
}

#[test]
fn the_recovery_key_opens_the_vault() {
    let place = place();
    place.backup("web01");
    fs::remove_file(place.path("main.key")).unwrap();
    let text = fs::read_to_string(place.config_file()).unwrap();
    let text = text.replace("{ file = \"main.key\" }", "{ recovery-key-file = \"recovery.key\" }");
    fs::write(place.config_file(), text).unwrap();
    assert_eq!(place.points("web01").len(), 1);
    place.restore("web01");
}

#[test]
fn an_unreachable_vault_fails_soon_and_says_so() {
    let place = Place::new(VaultKind::Folder).with_machine("web01", "image");
    sparse(&place.images().join("a.img"), MIB);
    let place = place.with(
        "[vault.far]\nurl = \"s3://bucket/x\"\nendpoint = \"http://127.0.0.1:9\"\nallow-http = true\nregion = \"r\"\n\
         key = { file = \"main.key\" }\naccess-key-id = { env = \"TEST_KEY_ID\" }\n\
         secret-access-key = { env = \"TEST_SECRET\" }\n",
    );
    write_key(&place);
    let started = std::time::Instant::now();
    place
        .run(&["points", "--vault", "far"])
        .refused(75, &["cannot be reached", "endpoint"]);
    assert!(
        started.elapsed() < std::time::Duration::from_secs(40),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn a_vault_of_a_newer_format_is_refused() {
    let place = place();
    let file = place.path("vault/format");
    let text = String::from_utf8(fs::read(&file).unwrap()).expect("the format object is text");
    assert!(text.starts_with("COFFRE-VAULT 1\n"), "{text}");
    fs::write(&file, text.replacen("VAULT 1", "VAULT 9", 1)).unwrap();
    place.run(&["points", "web01"]).refused(1, &["newer", "9"]);
}

#[test]
fn a_server_that_takes_put_if_absent_and_overwrites_is_refused_when_a_vault_is_made() {
    let place = Place::with_vault(&s3_that_overwrites());
    let init = ["init", "main", "--recovery-key-file", "recovery.key"];
    let refused = place.run(&init).refused(1, &["ignores put-if-absent", "If-None-Match"]);
    assert!(
        refused.stderr.contains("it took a second create of one object"),
        "{}",
        refused.stderr
    );
    // Nothing that could be taken for a vault is left.
    place.run(&["points"]).refused(CONFIG, &["nothing is there"]);
}
