//! `docs/promises.md` names a test beside every promise. A promise whose test has gone is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Where tests are.
const PLACES: [&str; 3] = ["host", "plugins", "tests"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("this crate lies in the repository")
        .to_owned()
}

/// The names of all functions that `#[test]` or `#[tokio::test…]` stands above, those that run only on demand left out.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository") {
        let path = entry.expect("an entry of it").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                tests_below(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file");
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[") {
                    is_test = (is_test || line == "#[test]" || line.starts_with("#[tokio::test"))
                        && !line.starts_with("#[ignore");
                } else if is_test && let Some(name) = line.split("fn ").nth(1).and_then(|rest| rest.split('(').next()) {
                    found.insert(name.to_owned());
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_promise_names_a_test_that_runs() {
    let repository = repository();
    let mut tests = BTreeSet::new();
    for place in PLACES {
        tests_below(&repository.join(place), &mut tests);
    }
    let text = fs::read_to_string(repository.join("docs/promises.md")).expect("the promises");
    let rows = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| promise"));
    let mut promises = 0;
    for row in rows {
        let shown = row.rsplit('|').nth(1).expect("the row's last cell");
        let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test is named in: {row}");
        for name in names {
            let name = name.rsplit("::").next().expect("there is a last part");
            assert!(
                tests.contains(name),
                "there is no test `{name}`, which is named in: {row}"
            );
        }
        promises += 1;
    }
    assert!(
        promises > 20,
        "only {promises} promises were found: has the page's shape changed?"
    );
}
