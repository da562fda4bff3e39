//! A provider that means harm, under the whole program: one clear error, no point, and the next backup works.

use std::fs;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::place::target_folder;
use coffre_tests::{Place, VaultKind};

const MIB: u64 = 1 << 20;

/// A machine whose provider misbehaves in the given way; `extra` are more of its settings.
fn place(behaviour: &str, extra: &str) -> Place {
    let plugin = target_folder()
        .parent()
        .expect("target/debug has a parent")
        .join("plugins-test/hostile.wasm");
    assert!(
        plugin.is_file(),
        "{} is not there\nhint: `cargo xtask plugins` builds it",
        plugin.display()
    );
    let place = Place::new(VaultKind::Folder);
    let images = place.images();
    let config = format!(
        "[plugin.hostile]\nfile = \"{}\"\ndev = true\n[plugin.hostile.grant]\ndisk-read = [\"${{settings.images}}/**\"]\n\
         [machine.web01]\nprovider = \"hostile\"\nvault = \"main\"\n\
         settings = {{ images = \"{}\", behaviour = \"{behaviour}\"{extra} }}\n",
        plugin.display(),
        images.display()
    );
    write_noise(&sparse(&images.join("root.img"), 4 * MIB), 0, MIB, 1);
    place.with(&config).init()
}

/// Goes on honestly.
fn mend(place: &Place, behaviour: &str) {
    let text = fs::read_to_string(place.config_file()).expect("a config");
    fs::write(place.config_file(), text.replace(&format!("\"{behaviour}\""), "\"\"")).expect("a config");
    let point = place.backup("web01");
    assert_eq!(
        point["provider"]["pinned"], false,
        "the point says that the pin was waived"
    );
}

#[test]
fn a_provider_that_misbehaves_is_refused_and_no_point_appears() {
    for (behaviour, words) in [
        ("eat", &["needs more memory"][..]),
        ("dive", &["hostile"]),
        ("take-larger", &["4194305 bytes", "4194304"]),
        ("take-unasked", &["not asked for"]),
        ("take-nothing", &["no disk root"]),
        ("odd-id", &["no id of a disk"]),
    ] {
        let place = place(behaviour, "");
        place
            .run(&["backup", "web01"])
            .refused(1, &[&["hostile", "hint:"], words].concat());
        assert!(place.points("web01").is_empty(), "{behaviour}");
        mend(&place, behaviour);
    }
}

#[test]
fn a_provider_that_loops_is_ended() {
    let place = place("loop", "");
    place
        .run(&["backup", "web01"])
        .refused(1, &["hostile", "did not end within 30.0 s"]);
    assert!(place.points("web01").is_empty());
    mend(&place, "loop");
}

#[test]
fn a_provider_that_names_somebody_elses_file_is_refused() {
    for path in ["/etc/shadow", "/proc/self/environ"] {
        let place = place("take-elsewhere", &format!(", path = \"{path}\""));
        place.run(&["backup", "web01"]).refused(77, &["hostile", path, "hint:"]);
        assert!(place.points("web01").is_empty(), "{path}");
    }
}

#[test]
fn a_list_of_changes_that_cannot_be_is_not_believed() {
    for behaviour in ["list-overlap", "list-past-end", "list-panic", "changed-fail"] {
        let place = place(behaviour, "");
        place.backup("web01");
        let image = fs::OpenOptions::new()
            .write(true)
            .open(place.images().join("root.img"))
            .expect("an image");
        write_noise(&image, 2 * MIB, 4096, 2);
        // A lie is an outcome that nobody shall miss; a failure to say is none.
        let code = place.run(&["backup", "web01"]).code;
        let lied = matches!(behaviour, "list-overlap" | "list-past-end");
        assert_eq!(code, if lied { 4 } else { 0 }, "{behaviour}");
        let point = place.points("web01").pop().expect("a point");
        assert_ne!(point["disks"][0]["compared"], "tracked", "{behaviour}: {point}");
        let restored = place.restore("web01");
        coffre_tests::disk::assert_same(&place.images().join("root.img"), &restored.join("root.img"));
    }
}
