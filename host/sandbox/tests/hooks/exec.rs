//! What is an executable's own: how it is called, what it leaves and attaches, and which file may be run.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use coffre_engine::{
    Consistency, DiskId, FindingLevel, HookContext, HookFailure, HookFailureKind, HookRunner, Machine, OsFamily,
    PostReport, PreReport, SnapshotOutcome, SoFar,
};
use serde_json::{Value, json};

use super::kinds::{Hook, Kind};
use super::world::World;

/// A call outside a job.
pub fn context() -> HookContext {
    HookContext {
        machine: Machine {
            name: "m".to_owned(),
            os: OsFamily::Linux,
            settings: json!({ "images": "/srv/m" }),
        },
        disks: vec![DiskId("vda".to_owned()), DiskId("vdb".to_owned())],
        job: "job-7".to_owned(),
        policy: None,
        wanted: Consistency::Application,
        attempt: 1,
        timeout: Duration::from_secs(60),
        hold_at_most: Duration::from_secs(60),
        hold_left: Duration::from_secs(60),
        guard: None,
        freezer: None,
        so_far: SoFar::default(),
    }
}

/// A world with one executable hook, and its table in the configuration.
struct Program {
    kind: Kind,
    world: World,
    table: String,
}

impl Program {
    fn new(text: &str) -> Self {
        Self::of(Kind::Exec, text)
    }

    /// On this host or in the machine.
    fn of(kind: Kind, text: &str) -> Self {
        let world = World::new();
        let file = world.write("scripts/db", text, 0o755);
        Self {
            table: format!("[hook.db]\nkind = \"exec\"\nfile = {file:?}\n{}", kind.on()),
            kind,
            world,
        }
    }

    fn with(mut self, more: &str) -> Self {
        self.table.push_str(more);
        self
    }

    fn load(&self) -> Result<Arc<dyn HookRunner>, HookFailure> {
        let file = self.world.path("coffre.toml");
        let more = match self.kind {
            Kind::Ssh => self.world.sshd().table("m"),
            Kind::Agent => format!(
                "[vault.v]\nurl = \"v\"\nencryption = \"none\"\n[machine.m]\nprovider = \"p\"\nhooks = [\"db\"]\nagent = {:?}\n",
                self.world.agent().socket
            ),
            _ => String::new(),
        };
        let text = format!("{}{more}", self.table);
        let config = coffre_engine::config::Config::parse(&file, &text).unwrap_or_else(|error| panic!("{error}"));
        coffre_sandbox::hook::load_from_config(&config, config.hook("db").unwrap())
    }

    async fn pre(&self) -> Result<PreReport, HookFailure> {
        self.load()?.pre(&context()).await
    }

    async fn post(&self) -> Result<PostReport, HookFailure> {
        self.load()?.post(&context(), None, SnapshotOutcome::Taken).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_phase_is_the_first_argument_and_the_configured_ones_follow_as_they_are() {
    for place in Kind::PROGRAMS {
        let program = Program::of(place, "#!/bin/sh\nprintf '[%s]' \"$0\" \"$@\"\n")
            .with("args = [\"--cluster\", \"\", \"a b\", \"$(reboot)\"]\napplication = true\n");
        let hook = program.load().unwrap();
        let report = hook.pre(&context()).await.unwrap();
        let path = program.world.path("scripts/db");
        let path = path.display();
        assert_eq!(report.output, format!("[{path}][pre][--cluster][][a b][$(reboot)]\n"));
        assert!(report.application_consistent);
        let report = hook.post(&context(), None, SnapshotOutcome::Taken).await.unwrap();
        assert_eq!(report.output, format!("[{path}][post][--cluster][][a b][$(reboot)]\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_executable_declares_nothing_unless_the_configuration_says_so() {
    let program = Program::new("#!/bin/sh\n");
    let hook = program.load().unwrap();
    assert!(!hook.pre(&context()).await.unwrap().application_consistent);
    assert!(hook.check(&context()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_says_who_runs_it_and_without_one_it_is_the_shell() {
    for place in Kind::PROGRAMS {
        let python = "#!/usr/bin/env python3\nimport sys\nprint('python', sys.argv[1:])\n";
        let report = Program::of(place, python).pre().await.unwrap();
        assert_eq!(report.output, "python ['pre']\n");
        let report = Program::of(place, "echo shell $1 $0\n").pre().await.unwrap();
        assert!(report.output.starts_with("shell pre /"), "{}", report.output);
        let failure = Program::of(place, "#!/no/such/interpreter\n").pre().await.unwrap_err();
        assert_eq!(failure.kind, HookFailureKind::Failed);
        assert!(failure.hint.unwrap().contains("first line"), "{}", failure.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_pre_leaves_in_its_memory_post_finds_there() {
    for place in Kind::PROGRAMS {
        let program = Program::of(
            place,
            "#!/bin/sh\ncase $1 in\npre) [ ! -s \"$COFFRE_MEMORY\" ] || exit 3; printf 'generation 7\\n' > \"$COFFRE_MEMORY\";;\n\
             post) cat \"$COFFRE_MEMORY\"; echo \"${COFFRE_ATTACHMENTS:+attachments}\";;\nesac\n",
        );
        let hook = program.load().unwrap();
        for _ in 0..2 {
            let report = hook.pre(&context()).await.unwrap();
            assert_eq!(
                report.memory.as_deref(),
                Some("generation 7\n"),
                "each attempt begins with nothing"
            );
        }
        // As after a crash: another process, which did not run `pre`.
        let hook = program.load().unwrap();
        let post = |memory| hook.post(&CONTEXT, memory, SnapshotOutcome::Taken);
        assert_eq!(
            post(Some("generation 7\n")).await.unwrap().output,
            "generation 7\nattachments\n"
        );
        assert_eq!(post(None).await.unwrap().output, "attachments\n");
    }
}

static CONTEXT: std::sync::LazyLock<HookContext> = std::sync::LazyLock::new(context);

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_text_and_bounded_and_a_file() {
    for place in Kind::PROGRAMS {
        for (script, kind) in [
            ("head -c 65536 /dev/zero | tr '\\0' x > \"$COFFRE_MEMORY\"", None),
            (
                "head -c 65537 /dev/zero | tr '\\0' x > \"$COFFRE_MEMORY\"",
                Some(HookFailureKind::Limit),
            ),
            ("printf '\\377' > \"$COFFRE_MEMORY\"", Some(HookFailureKind::Failed)),
            ("rm \"$COFFRE_MEMORY\"", None),
            (
                "rm \"$COFFRE_MEMORY\"; mkfifo \"$COFFRE_MEMORY\"",
                Some(HookFailureKind::Failed),
            ),
            ("ln -sf /etc/passwd \"$COFFRE_MEMORY\"", Some(HookFailureKind::Failed)),
        ] {
            let ended = Program::of(place, &format!("#!/bin/sh\n{script}\n")).pre().await;
            assert_eq!(
                ended.as_ref().err().map(|failure| failure.kind),
                kind,
                "{script}: {ended:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_post_lays_into_its_folder_is_attached() {
    for place in Kind::PROGRAMS {
        let script = "#!/bin/sh\n[ $1 = pre ] && exit\ncd \"$COFFRE_ATTACHMENTS\"\nprintf 'label\\n' > backup_label\nprintf '\\377' > raw\n";
        let world = World::new();
        let hook = Hook::new(&world, place, "db").post("printf 'label\\n' > \"$COFFRE_ATTACHMENTS/backup_label\"");
        let point = world.point(&[hook]).await;
        assert_eq!(point.attachments.len(), 1);
        assert_eq!(
            (point.attachments[0].name.as_str(), point.attachments[0].size_bytes),
            ("backup_label", 6)
        );

        let report = Program::of(place, script).post().await.unwrap();
        let attached: Vec<_> = report
            .attachments
            .iter()
            .map(|attached| {
                (
                    attached.name.as_str(),
                    attached.media_type.as_str(),
                    attached.content.as_slice(),
                )
            })
            .collect();
        assert_eq!(
            attached,
            [
                ("backup_label", "text/plain; charset=utf-8", b"label\n".as_slice()),
                ("raw", "application/octet-stream", b"\xff".as_slice())
            ]
        );
        for (script, kind) in [
            ("ln -s /etc/shadow \"$COFFRE_ATTACHMENTS/x\"", HookFailureKind::Failed),
            ("mkdir \"$COFFRE_ATTACHMENTS/x\"", HookFailureKind::Failed),
            (": > \"$COFFRE_ATTACHMENTS/.x\"", HookFailureKind::Failed),
            (
                "head -c 1048577 /dev/zero > \"$COFFRE_ATTACHMENTS/x\"",
                HookFailureKind::Limit,
            ),
            (
                "cd \"$COFFRE_ATTACHMENTS\"; for n in $(seq 17); do : > $n; done",
                HookFailureKind::Limit,
            ),
        ] {
            let failure = Program::of(place, &format!("#!/bin/sh\n{script}\n"))
                .post()
                .await
                .unwrap_err();
            assert_eq!(failure.kind, kind, "{script}: {failure:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_a_script_is_told_stands_in_a_document_too() {
    for place in Kind::PROGRAMS {
        let program = Program::of(
            place,
            "#!/bin/sh\ncat \"$COFFRE_CONTEXT\"; echo; ls -ld \"$COFFRE_CONTEXT\" >&2\n",
        )
        .with("settings = { cluster = \"15-main\" }\n");
        let hook = program.load().unwrap();
        let told = HookContext {
            so_far: SoFar {
                consistency: Some(Consistency::FileSystem),
                held: Some(Duration::from_millis(310)),
                frozen: None,
            },
            ..context()
        };
        let report = hook.post(&told, None, SnapshotOutcome::Taken).await.unwrap();
        let (document, listing) = report.output.rsplit_once("}\n").unwrap();
        let document: Value = serde_json::from_str(&format!("{document}}}")).unwrap();
        assert_eq!(
            document,
            json!({
                "hook": "db", "phase": "post", "machine": { "name": "m", "os": "linux", "settings": { "images": "/srv/m" } },
                "settings": { "cluster": "15-main" }, "disks": ["vda", "vdb"], "job": "job-7", "policy": null,
                "wanted": "application", "attempt": 1, "timeout_ms": 60000, "hold_at_most_ms": 60000,
                "outcome": "taken", "consistency": "file-system", "held_ms": 310, "frozen_ms": null,
            })
        );
        assert!(listing.starts_with("-rw------- "), "{listing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_lies_in_a_file_for_the_call_alone_and_is_shown_nowhere() {
    for place in Kind::PROGRAMS {
        let secret = "[hook.db.grant]\nsecret = { password = { command = [\"/bin/echo\", \"hunter2\"] } }\n";
        let run = async |script: &str| {
            let program = Program::of(place, &format!("#!/bin/sh\n{script}\n")).with(secret);
            let hook = program.load().unwrap();
            let pre = hook.pre(&context()).await;
            let post = hook.post(&context(), None, SnapshotOutcome::Taken).await;
            (pre, post)
        };
        let (pre, _) = run(
            "cat \"$COFFRE_SECRETS/password\"; stat -c ' %a %F' -f -c ' %T' \"$COFFRE_SECRETS\"; echo \"$COFFRE_SECRETS\"",
        )
        .await;
        let output = pre.unwrap().output;
        assert!(output.starts_with("[secret password] tmpfs\n"), "{output}");
        let folder = output.lines().last().unwrap();
        assert!(!std::path::Path::new(folder).exists(), "{folder} is gone with the call");

        let (pre, _) = run("cat \"$COFFRE_SECRETS/password\" >&2; exit 1").await;
        let failure = pre.unwrap_err();
        assert!(
            failure.text.ends_with("ended with status 1: [secret password]"),
            "{}",
            failure.text
        );
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");

        let (pre, _) = run("cp \"$COFFRE_SECRETS/password\" \"$COFFRE_MEMORY\"").await;
        assert_eq!(
            pre.unwrap_err().kind,
            HookFailureKind::Denied,
            "memory is written to disk"
        );
        let (_, post) = run("[ $1 = pre ] || cp \"$COFFRE_SECRETS/password\" \"$COFFRE_ATTACHMENTS/x\"").await;
        assert_eq!(
            post.unwrap_err().kind,
            HookFailureKind::Denied,
            "whoever restores would read it"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_that_mean_nothing_to_an_executable_are_refused() {
    let failure = Program::new("")
        .with("[hook.db.grant]\nprocess = [[\"/bin/true\"]]\n")
        .load()
        .err()
        .unwrap();
    assert_eq!(failure.kind, HookFailureKind::Invalid);
    assert!(failure.text.contains("process"), "{}", failure.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_missing_or_cannot_be_executed_is_found_when_it_is_loaded() {
    let program = Program::new("#!/bin/sh\n");
    program.world.write("scripts/db", "#!/bin/sh\n", 0o644);
    let failure = program.load().err().unwrap();
    assert!(failure.hint.unwrap().contains("chmod u+x"), "{}", failure.text);
    fs::remove_file(program.world.path("scripts/db")).unwrap();
    assert_eq!(program.load().err().unwrap().kind, HookFailureKind::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_looked_at_again_before_each_call() {
    let program = Program::new("#!/bin/sh\necho ran\n");
    let hook = program.load().unwrap();
    assert!(hook.pre(&context()).await.is_ok());
    // Others could have put anything there by now.
    program.world.write("scripts/db", "#!/bin/sh\necho ran\n", 0o757);
    let failure = hook.post(&context(), None, SnapshotOutcome::Taken).await.unwrap_err();
    assert_eq!((failure.kind, failure.output.as_str()), (HookFailureKind::Invalid, ""));
    let findings = hook.check(&context()).await.unwrap();
    assert_eq!(findings[0].level, FindingLevel::Blocking);
    // A pre that was not started has no post.
    let hook = {
        program.world.write("scripts/db", "#!/bin/sh\necho ran\n", 0o755);
        program.load().unwrap()
    };
    program.world.write("scripts/db", "#!/bin/sh\necho ran\n", 0o757);
    assert_eq!(hook.pre(&context()).await.unwrap_err().kind, HookFailureKind::Invalid);
    program.world.write("scripts/db", "#!/bin/sh\necho ran\n", 0o755);
    let report = hook.post(&context(), None, SnapshotOutcome::NotTried).await.unwrap();
    assert_eq!(report.output, "not run: its `pre` was not started\n");
}
