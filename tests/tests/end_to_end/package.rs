//! The Debian package: it installs below a root of its own, works from there, and leaves nothing when it is purged.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coffre_tests::disk::{sparse, write_noise};
use coffre_tests::place::target_folder;

const MIB: u64 = 1 << 20;

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}\n{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A root with an empty database of packages; this machine's own is never looked at.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("coffre-root-").tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(folder.path().join("var/lib/dpkg/info")).unwrap();
        fs::write(folder.path().join("var/lib/dpkg/status"), "").unwrap();
        fs::create_dir_all(folder.path().join("var/log")).unwrap();
        Self { folder }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Its scripts run on this machine, told by DPKG_ROOT where their root is. What they depend on is not in there.
    fn dpkg(&self, arguments: &[&str]) -> String {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", self.folder.path().display()))
            .args([
                "--force-script-chrootless",
                "--force-depends",
                "--force-not-root",
                "--no-triggers",
            ])
            .args(arguments);
        output(&mut dpkg)
    }

    /// Every file and folder, but dpkg's own.
    fn all(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        list(self.folder.path(), self.folder.path(), &mut found);
        found.retain(|path| !path.starts_with("var/lib/dpkg") && !path.starts_with("var/log"));
        found
    }
}

fn list(root: &Path, folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        found.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
        if entry.file_type().unwrap().is_dir() {
            list(root, &entry.path(), found);
        }
    }
}

/// The package of the programs that the tests use.
fn package(folder: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut xtask = Command::new(target_folder().join("xtask"));
    xtask
        .env("CARGO_MANIFEST_DIR", repository.join("host/xtask"))
        .args(["deb", "--debug", "--folder"])
        .arg(folder);
    output(&mut xtask);
    let made = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    made.into_iter()
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .expect("a package")
}

#[test]
fn the_package_installs_works_and_is_purged_without_a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let package = package(folder.path());
    let about = output(Command::new("dpkg-deb").arg("--info").arg(&package));
    for word in ["Package: coffre", "Depends: libc6 (>= 2.", "Architecture: "] {
        assert!(about.contains(word), "{about}");
    }
    let content = output(Command::new("dpkg-deb").arg("--contents").arg(&package));
    assert!(content.lines().all(|line| line.contains(" root/root ")), "{content}");
    assert!(
        content
            .lines()
            .any(|line| line.starts_with("drwx------") && line.ends_with(" ./etc/coffre/")),
        "{content}"
    );

    let root = Root::new();
    let before = root.all();
    root.dpkg(&["--install", package.to_str().unwrap()]);
    let installed = root.all();
    for path in [
        "usr/bin/coffre",
        "usr/bin/coffre-guard",
        "usr/share/coffre/plugins/image.wasm",
        "usr/share/coffre/scripts/postgres.rhai",
        "usr/lib/systemd/system/coffre.service",
        "usr/lib/systemd/system/coffre-guard.socket",
        "usr/lib/systemd/system/coffre-guard@.service",
        "usr/share/bash-completion/completions/coffre",
        "usr/share/zsh/vendor-completions/_coffre",
        "usr/share/fish/vendor_completions.d/coffre.fish",
        "usr/share/man/man1/coffre.1.gz",
        "usr/share/man/man1/coffre-backup.1.gz",
        "usr/share/man/man1/coffre-key-rotate.1.gz",
        "usr/share/doc/coffre/examples/coffre.toml",
        "usr/share/doc/coffre/cli.md",
        "usr/share/doc/coffre/copyright",
        "etc/coffre",
    ] {
        assert!(installed.contains(path), "{path} is not in {installed:?}");
    }
    pages_are_sound(&root);
    it_backs_up_and_restores(&root);

    // What the administrator made stays, even after a purge: keys.
    fs::write(root.path("etc/coffre/main.key"), "key").unwrap();
    root.dpkg(&["--remove", "coffre"]);
    assert!(!root.path("usr").exists() || root.all().iter().all(|path| !path.contains("coffre/plugins")));
    root.dpkg(&["--purge", "coffre"]);
    let left: Vec<String> = root.all().difference(&before).cloned().collect();
    assert_eq!(
        left,
        ["etc", "etc/coffre", "etc/coffre/main.key"],
        "but the key, nothing is left"
    );

    // Without one there is nothing left at all.
    fs::remove_dir_all(root.path("etc")).unwrap();
    root.dpkg(&["--install", package.to_str().unwrap()]);
    root.dpkg(&["--purge", "coffre"]);
    assert_eq!(root.all().difference(&before).collect::<Vec<_>>(), [] as [&String; 0]);
}

/// Pages that groff reads without a word, with what each is about.
fn pages_are_sound(root: &Root) {
    let mut pages = 0;
    for entry in fs::read_dir(root.path("usr/share/man/man1")).unwrap() {
        let page = entry.unwrap().path();
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "gzip -dc \"$0\" | groff -man -ww -z -Kutf8 2>&1"])
            .arg(&page);
        assert_eq!(output(&mut shell), "", "{}", page.display());
        pages += 1;
    }
    assert!(pages > 30, "{pages}");
}

/// From there alone: the plugin that is in the package, and the guard beside the program.
fn it_backs_up_and_restores(root: &Root) {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).display().to_string();
    fs::create_dir(home.path().join("images")).unwrap();
    let image = sparse(&home.path().join("images/vda.img"), MIB);
    write_noise(&image, 0, MIB, 1);
    let config = home.path().join("coffre.toml");
    let text = format!(
        "[coffre]\nstate = \"{0}/state\"\nrun = \"{0}/run\"\ncache = \"{0}/cache\"\nplugins = \"{0}/plugins.d\"\n\
         [vault.main]\nurl = \"{0}/vault\"\nencryption = \"none\"\n\
         [machine.web01]\nprovider = \"image\"\nsettings = {{ images = \"{0}/images\" }}\n",
        home.path().display()
    );
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let run = |words: &[&str]| {
        let mut coffre = Command::new(root.path("usr/bin/coffre"));
        output(coffre.arg("--config").arg(&config).args(words).current_dir("/"))
    };
    run(&["init", "main"]);
    run(&["backup", "web01"]);
    run(&["restore", "web01", "--to", &at("restored")]);
    let bytes = |name: &str| fs::read(home.path().join(name)).unwrap();
    assert!(bytes("restored/vda.img") == bytes("images/vda.img"));
    assert!(run(&["status"]).contains("1 safe"));
}
