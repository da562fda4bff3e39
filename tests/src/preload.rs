//! A door before a folder: tests/preload/store.c between the program and the C library writes down what is done in the folder,
//! and kills the program or fails the act at a chosen one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::strike::{Blow, Operation, Strike, Struck};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/preload/store.c");

/// For one folder.
pub struct Preload {
    folder: PathBuf,
    own: TempDir,
}

/// What was done in the folder, and whether it succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    pub verb: String,
    /// Below the folder; `.` is the folder itself and `..` the one that holds it.
    pub path: String,
    /// The number of its error.
    pub error: Option<i32>,
}

impl Preload {
    pub fn before(folder: &Path) -> Self {
        let own = tempfile::Builder::new().prefix("coffre-preload-").tempdir().unwrap();
        let mut compile = Command::new("cc");
        compile
            .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", SOURCE, "-ldl", "-o"])
            .arg(own.path().join("store.so"));
        let compiled = compile
            .status()
            .expect("cc, which links every Rust program, compiles this one too");
        assert!(compiled.success());
        let folder = folder.canonicalize().unwrap();
        Self { folder, own }
    }

    /// Runs the program and strikes at most once.
    pub fn run(&self, command: Command, strikes: &[Strike]) -> Struck {
        assert!(strikes.len() <= 1, "one blow is all that falls on a folder");
        let (struck, acts) = self.run_and_watch(command, strikes.first());
        let operation = |act: &Act| Operation {
            verb: act.verb.clone(),
            object: act.path.clone(),
        };
        Struck {
            operations: acts.iter().map(operation).collect(),
            ..struck
        }
    }

    /// The same, with what became of each act.
    pub fn run_and_watch(&self, mut command: Command, strike: Option<&Strike>) -> (Struck, Vec<Act>) {
        let log = self.own.path().join("log");
        let _ = fs::remove_file(&log);
        command
            .env("LD_PRELOAD", self.own.path().join("store.so"))
            .env("COFFRE_TEST_FOLDER", &self.folder)
            .env("COFFRE_TEST_LOG", &log);
        if let Some(strike) = strike {
            let what = match strike.blow {
                Blow::KillBefore => "before".to_owned(),
                Blow::KillMidway => "midway".to_owned(),
                Blow::KillAfter => "after".to_owned(),
                Blow::Fail(number) => number.to_string(),
                other => panic!("a folder knows no {other:?}"),
            };
            let Strike { nth, verb, object, .. } = strike;
            command.env("COFFRE_TEST_STRIKE", format!("{what} {nth} {verb} {object}"));
        }
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let said =
            fs::read_to_string(&log).expect("the program was linked with the C library and loaded what it was told");
        let acts: Vec<Act> = said.lines().map(act).collect();
        let failed = |number| acts.iter().filter(|act| act.error == Some(number)).count() as u32;
        let fell = match strike.map(|strike| strike.blow) {
            Some(Blow::Fail(number)) => failed(number),
            _ => 0,
        };
        let mut struck = Struck::of(output, Vec::new(), fell);
        struck.struck += u32::from(struck.killed);
        (struck, acts)
    }
}

/// `VERB PATH`, and ` !NUMBER` where it failed.
fn act(line: &str) -> Act {
    let (line, error) = match line.split_once(" !") {
        Some((line, number)) => (line, number.parse().ok()),
        None => (line, None),
    };
    let (verb, path) = line.split_once(' ').unwrap_or((line, ""));
    Act {
        verb: verb.to_owned(),
        path: path.to_owned(),
        error,
    }
}
