//! A folder of its own with a configuration, in which the program runs as a user would run it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::servers::VaultKind;

/// One test's folder: configuration, state, cache, images, and the vault if it is a local one.
pub struct Place {
    folder: TempDir,
    /// What stands in the configuration beside `[coffre]` and `[vault.main]`.
    pub config: String,
    vault: String,
}

/// What a run of the program said.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// A place with an empty vault's configuration; [`Place::init`] makes the vault.
    pub fn new(kind: VaultKind) -> Self {
        Self::within(&std::env::temp_dir(), kind)
    }

    /// The same below a given folder.
    pub fn within(parent: &Path, kind: VaultKind) -> Self {
        Self::make(parent, |folder| {
            format!("{}key = {{ file = \"main.key\" }}\n", kind.config(folder))
        })
    }

    /// A place whose vault's table has just these lines.
    pub fn with_vault(lines: &str) -> Self {
        Self::make(&std::env::temp_dir(), |_| lines.to_owned())
    }

    fn make(parent: &Path, vault: impl FnOnce(&Path) -> String) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("coffre-test-")
            .tempdir_in(parent)
            .unwrap();
        let vault = vault(folder.path());
        fs::create_dir(folder.path().join("images")).unwrap();
        let place = Self {
            folder,
            config: String::new(),
            vault,
        };
        place.write_config();
        place
    }

    /// A machine `name` whose disks are the files in `images`.
    pub fn with_machine(mut self, name: &str, provider: &str) -> Self {
        self.config.push_str(&format!(
            "[machine.{name}]\nprovider = \"{provider}\"\nvault = \"main\"\nsettings = {{ images = \"{}\" }}\n",
            self.images().display()
        ));
        self.write_config();
        self
    }

    /// Adds lines to the configuration.
    pub fn with(mut self, lines: &str) -> Self {
        self.config.push_str(lines);
        self.write_config();
        self
    }

    /// Exchanges words in the vault's table.
    pub fn change_vault(&mut self, from: &str, to: &str) {
        assert!(self.vault.contains(from), "`{from}` is not in:\n{}", self.vault);
        self.vault = self.vault.replace(from, to);
        self.write_config();
    }

    /// A file that only its owner may read, as secrets are.
    pub fn write_secret(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Makes the vault.
    pub fn init(self) -> Self {
        self.run(&[
            "init",
            "main",
            "--recovery-key-file",
            &self.path("recovery.key").display().to_string(),
        ])
        .expect(0);
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    pub fn config_file(&self) -> PathBuf {
        self.path("coffre.toml")
    }

    pub fn write_config(&self) {
        let plugins = target_folder()
            .parent()
            .expect("target/debug has a parent")
            .join("plugins");
        let folder = self.folder.path().display();
        let text = format!(
            "[coffre]\nstate = \"{folder}/state\"\nrun = \"{folder}/run\"\ncache = \"{folder}/cache\"\nplugins = \"{folder}/plugins.d\"\n\
             plugin-path = [\"{}\"]\nscripts = \"{folder}/scripts\"\n[vault.main]\n{}{}",
            plugins.display(),
            self.vault,
            self.config
        );
        fs::write(self.config_file(), text).unwrap();
        fs::set_permissions(self.config_file(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// The program with this place's configuration, ready to run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let program = target_folder().join("coffre");
        assert!(
            program.exists(),
            "{} is not there\nhint: `cargo xtask test` builds it, or `cargo build -p coffre`",
            program.display()
        );
        let mut command = Command::new(program);
        command
            .arg("--config")
            .arg(self.config_file())
            .args(arguments)
            .current_dir(self.folder.path())
            .env("TEST_KEY_ID", "test")
            .env("TEST_SECRET", "test-secret")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Runs with `--json`, expects success, and reads the answer.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        self.run(&arguments).expect(0).json()
    }

    /// Backs the machine up and returns the new point.
    #[track_caller]
    pub fn backup(&self, machine: &str) -> Value {
        self.run(&["backup", machine]).expect(0);
        self.points(machine).pop().expect("a backup makes a point")
    }

    /// The machine's points, oldest first.
    #[track_caller]
    pub fn points(&self, machine: &str) -> Vec<Value> {
        let answer = self.json(&["points", machine]);
        answer["points"].as_array().expect("points is a list").clone()
    }

    /// Restores all disks of a point into a new folder and returns it.
    #[track_caller]
    pub fn restore(&self, target: &str) -> PathBuf {
        let folder = self.path(&format!("restored-{}", target.replace('@', "-")));
        let _ = fs::remove_dir_all(&folder);
        self.run(&["restore", target, "--to", &folder.display().to_string()])
            .expect(0);
        folder
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            // A signal ends it without a code.
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ran {
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Expects that it failed with this code, said every one of `parts`, and gave a hint.
    #[track_caller]
    pub fn refused(self, code: i32, parts: &[&str]) -> Self {
        let ran = self.expect(code);
        for part in parts.iter().chain(&["error", "hint"]) {
            assert!(ran.stderr.contains(part), "`{part}` is not in:\n{}", ran.stderr);
        }
        assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
        ran
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in:\n{}", self.stdout))
    }
}

/// `target/debug` or `target/release`: where the program lies beside the tests.
pub fn target_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    // target/debug/deps/end_to_end-…
    test.parent()
        .and_then(Path::parent)
        .expect("tests run from target/PROFILE/deps")
        .to_owned()
}
