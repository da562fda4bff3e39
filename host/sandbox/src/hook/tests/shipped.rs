//! The scripts that ship, against stand-ins of the programs that they run: the real ones are not on every machine.

use coffre_engine::{FindingLevel, HookFailureKind};

use super::*;

pub(super) fn shipped(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A shipped script whose `program` is a shell script of ours, with the grants that its header asks for.
pub(super) fn with_stand_in(name: &str, program: &str, stand_in: &str, grants: &[&[&str]]) -> Scripts {
    let mut scripts = Scripts::with("");
    let tool = scripts.write("tool", &format!("#!/bin/sh\n{stand_in}\n"));
    fs::set_permissions(&tool, Permissions::from_mode(0o755)).unwrap();
    let tool = tool.display().to_string();
    scripts.write(
        "hook.rhai",
        &shipped(name)
            .replace(&format!("(\"{program}\""), &format!("(\"{tool}\""))
            .replace(&format!(", \"{program}\","), &format!(", \"{tool}\",")),
    );
    for grant in grants {
        let quoted: Vec<_> = grant.iter().map(|word| format!("{word:?}")).collect();
        let header = shipped(name)
            .replace("PSQL", &PSQL.map(|word| format!("{word:?}")).join(", "))
            .replace("MONGOSH", &MONGOSH.map(|word| format!("{word:?}")).join(", "));
        assert!(
            header.contains(&format!("[{}]", quoted.join(", "))),
            "{name} asks for no {quoted:?}"
        );
        let word = |word: &&str| {
            if *word == program {
                tool.clone()
            } else {
                (*word).to_owned()
            }
        };
        scripts.spec.commands.push(grant.iter().map(word).collect());
    }
    scripts
}

/// What the header of mongodb.rhai calls MONGOSH.
const MONGOSH: [&str; 6] = ["/usr/bin/mongosh", "--quiet", "--norc", "--port", "{number}", "--eval"];

/// What the header of postgres.rhai calls PSQL.
const PSQL: [&str; 10] = [
    "/usr/sbin/runuser",
    "-u",
    "postgres",
    "--",
    "/usr/bin/psql",
    "--no-psqlrc",
    "--no-password",
    "--tuples-only",
    "--no-align",
    "--dbname=postgres",
];

fn sqlite(answer: &str) -> Scripts {
    let ask = |question| {
        [
            "/usr/bin/sqlite3",
            "-batch",
            "-bail",
            "-cmd",
            ".timeout 5000",
            "file:{path}?mode=rw",
            question,
        ]
    };
    let grants = [ask("PRAGMA journal_mode;"), ask("PRAGMA wal_checkpoint(TRUNCATE);")];
    let mut scripts = with_stand_in("sqlite.rhai", "/usr/bin/sqlite3", answer, &[&grants[0], &grants[1]]);
    scripts.spec.settings = json!({ "database": "/srv/app.db" });
    scripts
}

fn postgres(answers: &str) -> Scripts {
    let ask = |question| [PSQL.as_slice(), &["--port={number}", question]].concat();
    let checkpoint = ask("--command=CHECKPOINT");
    let data = ask("--command=SHOW data_directory");
    let tablespaces = ask("--command=SELECT pg_tablespace_location(oid) FROM pg_tablespace");
    let real = ["/usr/bin/realpath", "--canonicalize-existing", "{path}"];
    with_stand_in(
        "postgres.rhai",
        "/usr/sbin/runuser",
        answers,
        &[&checkpoint, &data, &tablespaces, &real],
    )
}

#[test]
fn every_script_says_what_it_needs_does_leaves_and_how_to_restore() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.ends_with(".d.rhai") {
            continue;
        }
        let text = shipped(&name);
        assert!(text.starts_with(&format!("// {name}: ")), "{name}");
        for word in ["// Needs: ", "// Does: ", "// Leaves: ", "// Restore: "] {
            assert!(text.contains(&format!("\n{word}")), "{name} lacks {word}");
        }
        Scripts::with(&text).load().map(|_| ()).unwrap();
        seen += 1;
    }
    assert!(seen >= 9);
}

#[tokio::test]
async fn quickstart_shows_the_order_and_attaches_the_times() {
    let mut scripts = Scripts::with(&shipped("quickstart.rhai")).granted(&[&["/bin/date", "+%H:%M:%S.%N"]]);
    scripts.spec.settings = json!({ "at_rest": true });
    let hook = scripts.load().unwrap();
    let report = hook.pre(&context(5000)).await.unwrap();
    assert!(report.application_consistent);
    assert!(
        report.output.contains("pre of web01, disks [\"vda\", \"vdb\"]"),
        "{}",
        report.output
    );
    let report = post(&hook, report.memory.as_deref()).await;
    assert!(
        report.output.contains("post of web01: the snapshot is taken"),
        "{}",
        report.output
    );
    assert_eq!(report.attachments[0].name, "hook-times.txt");
    scripts.spec.settings = json!({});
    assert!(!scripts.pre().await.unwrap().application_consistent);
    assert!(post(&scripts.load().unwrap(), None).await.output.contains("taken"));
}

#[tokio::test]
async fn sync_declares_nothing() {
    let grants: &[&[&str]] = &[&["/usr/bin/sync"], &["/usr/bin/sync", "--file-system", "/srv"]];
    let mut scripts = with_stand_in("sync.rhai", "/usr/bin/sync", "echo synced \"$@\"", grants);
    let report = scripts.pre().await.unwrap();
    assert!(!report.application_consistent);
    assert!(report.output.ends_with("synced\n"), "{}", report.output);
    scripts.spec.settings = json!({ "folders": ["/srv"] });
    let output = scripts.pre().await.unwrap().output;
    assert!(output.contains("synced --file-system /srv\n"), "{output}");
}

#[tokio::test]
async fn sqlite_declares_only_after_a_whole_checkpoint() {
    for (answer, expected) in [
        ("echo '0|0|0'", Ok(true)),
        ("echo '0|-1|-1'", Ok(true)),
        ("echo '1|7|3'", Err(HookFailureKind::TryAgain)),
        ("echo no; exit 1", Err(HookFailureKind::Failed)),
        ("true", Err(HookFailureKind::Failed)),
    ] {
        let outcome = sqlite(answer)
            .pre()
            .await
            .map(|report| report.application_consistent)
            .map_err(|failure| failure.kind);
        assert_eq!(outcome, expected, "{answer}");
    }
    let findings = sqlite("echo off").load().unwrap().check(&context(5000)).await.unwrap();
    assert_eq!(findings[0].level, FindingLevel::Blocking);
}

#[tokio::test]
async fn postgres_refuses_a_cluster_that_lies_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let inside = root.path().join("cluster");
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(outside.path().join("wal")).unwrap();
    let answers = format!(
        "case \"$*\" in *data_directory*) echo {};; *tablespace*) echo;; *) exit 3;; esac",
        inside.display()
    );
    let scripts_with = |pg_wal: &Path| {
        let mut scripts = postgres(&answers);
        scripts.spec.settings = json!({ "folders": [inside] });
        let link = inside.join("pg_wal");
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(pg_wal, link).unwrap();
        scripts
    };
    fs::create_dir(inside.join("wal")).unwrap();
    let fine = scripts_with(&inside.join("wal"))
        .load()
        .unwrap()
        .check(&context(5000))
        .await
        .unwrap();
    assert_eq!(fine, []);
    let moved = scripts_with(&outside.path().join("wal"));
    let findings = moved.load().unwrap().check(&context(5000)).await.unwrap();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    assert_eq!(
        moved.pre().await.unwrap_err().kind,
        HookFailureKind::Failed,
        "the checkpoint failed"
    );
}

#[test]
fn the_examples_of_the_documentation_parse() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/hooks.md");
    let text = fs::read_to_string(path).unwrap();
    let mut seen = 0;
    for block in text.split("```rhai\n").skip(1) {
        let example = block.split("```").next().unwrap();
        let script = if example.contains("fn pre") {
            example.to_owned()
        } else {
            format!("fn pre(ctx) {{ let done = run(\"/bin/true\");\n{example} }}")
        };
        Scripts::with(&script)
            .load()
            .map(|_| ())
            .unwrap_or_else(|failure| panic!("{script}\n{failure}"));
        seen += 1;
    }
    assert!(seen >= 10);
}
