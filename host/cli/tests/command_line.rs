//! The binary as a shell sees it: exit codes, what goes to stdout and stderr, and what a wrong call or configuration says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use insta::assert_snapshot;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("coffre.toml");
        fs::write(&path, config).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn coffre(&self, words: &[&str]) -> Ran {
        let config = self.path().join("coffre.toml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(words);
        self.bare(&all)
    }

    /// Without `--config`.
    fn bare(&self, words: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_coffre"))
            .args(words)
            .env_clear()
            .env("HOME", self.path())
            .env("TZ", "UTC")
            .output()
            .unwrap();
        Ran::new(&output, self.path())
    }
}

/// What came of a call; the test's folder is written as DIR.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(output: &Output, folder: &Path) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(folder.to_str().unwrap(), "DIR");
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", self.stdout, self.stderr))
    }
}

/// The exit code and what stands on stderr.
impl std::fmt::Display for Ran {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "exit {}\n{}{}", self.code, self.stdout, self.stderr)
    }
}

const SMALL: &str = r#"
[coffre]
state = "state"
cache = "cache"
plugins = "plugins"

[vault.main]
url = "file://@/vault"
key = { file = "main.key" }

[machine.web01]
provider = "image"
settings = { images = "/nowhere" }
"#;

/// A small configuration whose vault is in the test's folder.
fn small() -> Bench {
    let bench = Bench::new("");
    let config = SMALL.replace('@', bench.path().to_str().unwrap());
    fs::write(bench.path().join("coffre.toml"), config).unwrap();
    bench
}

#[test]
fn wrong_usage_ends_with_64_and_says_what_is_right() {
    let bench = small();
    assert_snapshot!(bench.coffre(&["restore", "web01"]), @r"
    exit 64
    error: the following required arguments were not provided:
      --to <PATH>

    Usage: coffre restore --to <PATH> <MACHINE[@POINT]>

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.coffre(&["bakcup"]), @r"
    exit 64
    error: unrecognized subcommand 'bakcup'

    hint: a similar subcommand exists: 'backup'

    Usage: coffre [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.coffre(&["restore", "web01@x", "--to", "/tmp/y"]), @r"
    exit 64
    error: invalid value 'web01@x' for '<MACHINE[@POINT]>': `x` is not a point's number, as `coffre points web01` shows them

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.coffre(&["backup", "--all", "web01"]), @r"
    exit 64
    error: the argument '--all' cannot be used with '[MACHINE]...'

    Usage: coffre backup --all [MACHINE]...

    For more information, try '--help'.
    ");
    assert_eq!(bench.bare(&[]).code, 64);
}

#[test]
fn forgetting_wants_to_be_told_exactly_what() {
    let bench = small();
    assert_snapshot!(bench.coffre(&["forget"]), @r"
    exit 64
    error: which machine?
    hint: name machines or points, as in `coffre forget web01 --dry-run`, or say --all or --policy POLICY
    ");
    assert_snapshot!(bench.coffre(&["forget", "web01@latest"]), @r"
    exit 64
    error: invalid value 'web01@latest' for '[MACHINE[@POINT]]...': a point is named by its number here, as `coffre points web01` shows them

    For more information, try '--help'.
    ");
    assert_snapshot!(bench.coffre(&["undelete", "web01"]), @r"
    exit 64
    error: invalid value 'web01' for '<MACHINE@POINT>': which point? As in `web01@3`; `coffre points web01` shows their numbers

    For more information, try '--help'.
    ");
    assert_eq!(bench.coffre(&["init", "main"]).code, 0);
    assert_snapshot!(bench.coffre(&["pin", "web01@3"]), @r"
    exit 64
    error: vault `main` has no machine `web01`
    hint: `coffre points --vault main` lists the machines and points it has
    ");
    // Never backed up: nothing goes, and that is no failure.
    assert_snapshot!(bench.coffre(&["forget", "web01"]), @r"
    exit 0
    web01, which has no policy:
    there are no recovery points
    ");
}

#[test]
fn a_name_that_the_configuration_does_not_have_gets_the_nearest_one() {
    let bench = small();
    assert_snapshot!(bench.coffre(&["backup", "web1"]), @r"
    exit 64
    error: the config has no machine `web1`
    hint: did you mean `web01`?
    ");
    assert_snapshot!(bench.coffre(&["verify", "mian"]), @r"
    exit 64
    error: the config has no vault `mian`
    hint: did you mean `main`?
    ");
    assert_snapshot!(bench.coffre(&["backup", "--policy", "daily"]), @r"
    exit 64
    error: the config has no policy `daily`
    ");
}

#[test]
fn a_wrong_configuration_ends_with_65_and_points_at_the_line() {
    let bench = Bench::new("[machine.web01]\nprovidr = \"image\"\n");
    assert_snapshot!(bench.coffre(&["config", "check"]), @r#"
    exit 65
    error: DIR/coffre.toml:2:1: unknown key `providr`
      |
    2 | providr = "image"
      | ^^^^^^^
    hint: did you mean `provider`?
    "#);
}

#[test]
fn no_configuration_says_where_it_was_looked_for() {
    let bench = small();
    assert_snapshot!(bench.bare(&["points"]), @r"
    exit 65
    error: no configuration file was found
    hint: looked for /etc/coffre/coffre.toml, DIR/.config/coffre/coffre.toml; `coffre config example` prints one to start from, --config FILE names another place
    ");
    assert_snapshot!(bench.bare(&["--config", "/nowhere/coffre.toml", "points"]), @r"
    exit 65
    error: read the configuration /nowhere/coffre.toml
      cause: No such file or directory (os error 2)
    hint: `coffre config example` prints a configuration to start from
    ");
}

#[test]
fn with_json_an_error_is_a_document_too() {
    let bench = small();
    let ran = bench.coffre(&["verify", "mian", "--json"]);
    assert_eq!(ran.code, 64);
    assert_snapshot!(ran.stdout, @r#"
    {
      "error": {
        "message": "the config has no vault `mian`",
        "causes": [],
        "hints": [
          "did you mean `main`?"
        ],
        "exit_code": 64
      }
    }
    "#);
}

#[test]
fn a_vault_that_is_not_there_says_how_to_make_one() {
    let bench = small();
    fs::write(bench.path().join("main.key"), [7; 32]).unwrap();
    fs::set_permissions(bench.path().join("main.key"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_snapshot!(bench.coffre(&["points"]), @r"
    exit 65
    error: cannot open vault `main` at file://DIR/vault
      cause: nothing is there
    hint: `coffre init VAULT` makes a vault; if there should be one, check its url
    ");
}

#[test]
fn the_example_is_a_configuration() {
    let bench = small();
    let example = bench.bare(&["config", "example"]);
    assert_eq!(example.code, 0);
    let bench = Bench::new(&example.stdout);
    let shown = bench.coffre(&["config", "show", "--json"]);
    assert_eq!(shown.code, 0, "{shown}");
    assert_eq!(shown.json()["machine"]["web01"]["provider"], "reflink");
}

#[test]
fn init_makes_key_vault_and_recovery_key() {
    let bench = small();
    let ran = bench.coffre(&["init", "main", "--json"]);
    assert_eq!(ran.code, 0, "{ran}");
    let key = fs::metadata(bench.path().join("main.key")).unwrap();
    assert_eq!((key.len(), key.permissions().mode() & 0o777), (32, 0o600));
    let recovery = ran.json()["recovery_key"].as_str().unwrap().to_owned();
    assert!(!ran.stderr.contains(&recovery));

    // Without the key file, by the recovery key.
    let config = fs::read_to_string(bench.path().join("coffre.toml")).unwrap();
    let config = config.replace("{ file = \"main.key\" }", "{ recovery-key-file = \"recovery\" }");
    fs::remove_file(bench.path().join("main.key")).unwrap();
    fs::write(bench.path().join("coffre.toml"), config).unwrap();
    fs::write(bench.path().join("recovery"), format!("{recovery}\n")).unwrap();
    fs::set_permissions(bench.path().join("recovery"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(bench.coffre(&["points"]).code, 0);
}

#[test]
fn a_recovery_key_goes_into_a_file_of_its_own() {
    let bench = small();
    let file = bench.path().join("recovery");
    let ran = bench.coffre(&["init", "main", "--recovery-key-file", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran}");
    let key = fs::read_to_string(&file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!ran.stdout.contains(key.trim()) && !ran.stderr.contains(key.trim()));
    // A second vault in the same place, and a second key in the same file.
    let again = bench.coffre(&["init", "main", "--recovery-key-file", file.to_str().unwrap()]);
    assert_eq!(again.code, 64, "{again}");
    assert_snapshot!(bench.coffre(&["init", "main"]), @r"
    exit 1
    error: cannot make vault `main` at file://DIR/vault
      cause: a vault is already there
    hint: use it as it is, or give the new vault a prefix of its own
    ");
    assert_eq!(fs::read_to_string(&file).unwrap(), key);
}

#[test]
fn a_vault_under_a_pinned_name_cannot_be_swapped() {
    let bench = small();
    assert_eq!(bench.coffre(&["init", "main"]).code, 0);
    let vault = bench.path().join("vault");
    fs::rename(&vault, bench.path().join("old")).unwrap();
    fs::rename(bench.path().join("state"), bench.path().join("state-old")).unwrap();
    assert_eq!(bench.coffre(&["init", "main"]).code, 0);
    fs::remove_dir_all(bench.path().join("state")).unwrap();
    fs::rename(bench.path().join("state-old"), bench.path().join("state")).unwrap();
    let ran = bench.coffre(&["points"]);
    assert_eq!(ran.code, 77, "{ran}");
    assert!(ran.stderr.contains("pinned"), "{ran}");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let bench = small();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = bench.bare(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("coffre"), "{shell}");
    }
}
