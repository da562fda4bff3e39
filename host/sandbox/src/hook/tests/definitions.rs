//! `scripts/api.d.rhai` and docs/hooks.md name what a script can call: all of it, and nothing else.

use std::collections::BTreeSet;

use super::*;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// `fn NAME(TYPE, …)` of the definition file, and whether it is a property.
fn declared() -> Vec<(String, Vec<String>, bool)> {
    let text = read("../../scripts/api.d.rhai");
    let lines = text.lines().filter_map(|line| line.strip_prefix("fn "));
    lines
        .map(|line| {
            let (line, is_property) = line.strip_prefix("get ").map_or((line, false), |line| (line, true));
            let (name, rest) = line.split_once('(').unwrap();
            let parameters = rest.split_once(')').unwrap().0;
            let types = parameters
                .split(", ")
                .filter_map(|parameter| parameter.split_once(": "));
            (
                name.to_owned(),
                types.map(|(_, kind)| kind.to_owned()).collect(),
                is_property,
            )
        })
        .collect()
}

fn example(kind: &str) -> &'static str {
    match kind {
        "String" => "\"x\"",
        "Array" => "[]",
        "Map" => "#{}",
        "int" => "1",
        "FnPtr" => "|| true",
        "session" => "hold(\"s\", \"/bin/sh\", [\"-c\", \"echo x\"])",
        other => panic!("what is a {other}?"),
    }
}

#[tokio::test]
async fn everything_that_is_declared_is_there() {
    for (name, types, is_property) in declared() {
        let arguments: Vec<_> = types.iter().map(|kind| example(kind)).collect();
        let call = if is_property {
            format!("{}.{name}", arguments[0])
        } else {
            format!("{name}({})", arguments.join(", "))
        };
        let scripts = Scripts::with(&format!("fn pre(ctx) {{ {call}; }}")).granted(&[SHELL]);
        if let Err(failure) = scripts.pre().await {
            for missing in ["there is no function", "Unknown property", "not found"] {
                assert!(!failure.text.contains(missing), "{call}: {failure}");
            }
        }
    }
}

#[test]
fn everything_that_is_there_is_declared_and_has_an_example() {
    let documented = read("../../docs/hooks.md");
    let examples: String = documented
        .split("```rhai\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .collect();
    let declared: BTreeSet<_> = declared().into_iter().map(|(name, ..)| name).collect();
    let mut registered = BTreeSet::new();
    for source in [
        include_str!("../api.rs"),
        include_str!("../held.rs"),
        include_str!("../undo.rs"),
    ] {
        let text: String = source.split_whitespace().collect();
        for before in ["register_fn(\"", "register_get(\""] {
            let names = text
                .split(before)
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().to_owned());
            registered.extend(names);
        }
    }
    // Those three are registered in a loop; `replace` is Rhai's own with our limit.
    registered.extend(["note", "warning", "blocking"].map(str::to_owned));
    registered.remove("replace");
    assert_eq!(declared, registered);
    for name in &registered {
        let used = examples.contains(&format!("{name}(")) || examples.contains(&format!(".{name}"));
        assert!(used, "docs/hooks.md has no example of {name}");
    }
}
