//! What a script can do.

use coffre_engine::secret::SecretSource;
use coffre_engine::{FindingLevel, HookFailureKind};

use super::*;

#[tokio::test]
async fn pre_is_told_about_its_call() {
    let script = r#"fn pre(ctx) {
        [ctx.hook, ctx.phase, ctx.machine.name, ctx.machine.os, ctx.machine.settings.images, ctx.settings.cluster,
         ctx.disks, ctx.job, ctx.policy, ctx.wanted, ctx.attempt, ctx.timeout_ms, ctx.hold_at_most_ms]
    }"#;
    let mut scripts = Scripts::with(script);
    scripts.spec.settings = json!({ "cluster": "15-main" });
    let memory = scripts.pre().await.unwrap().memory.unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&memory).unwrap(),
        json!([
            "db",
            "pre",
            "web01",
            "linux",
            "/var/lib/vm/web01",
            "15-main",
            ["vda", "vdb"],
            "job-7",
            "daily",
            "application",
            1,
            20000,
            60000
        ])
    );
}

#[tokio::test]
async fn the_context_is_read_only() {
    for change in [
        "ctx.job = \"x\"",
        "ctx[\"job\"] = \"x\"",
        "ctx.clear()",
        "ctx.remove(\"job\")",
    ] {
        let scripts = Scripts::with(&format!("fn pre(ctx) {{ {change}; }}"));
        assert_eq!(
            scripts.pre().await.unwrap_err().kind,
            HookFailureKind::Failed,
            "{change}"
        );
    }
    // What it holds is handed out as copies.
    let script = "fn pre(ctx) { ctx.machine.name = \"x\"; ctx.disks.push(1); [ctx.machine.name, ctx.disks.len()] }";
    assert_eq!(
        Scripts::with(script).pre().await.unwrap().memory.as_deref(),
        Some("[\"web01\",2]")
    );
}

#[tokio::test]
async fn what_pre_returns_is_memory_for_post() {
    let script = "fn pre(ctx) { #{ lsn: \"0/16\", list: [1, true, ()] } }
                  fn post(ctx) { attach(\"label\", `${ctx.memory.lsn} ${ctx.memory.list} ${ctx.outcome}`) }";
    let scripts = Scripts::with(script);
    let hook = scripts.load().unwrap();
    let memory = hook.pre(&context(1000)).await.unwrap().memory.unwrap();
    let report = hook
        .post(&context(1000), Some(&memory), SnapshotOutcome::Failed)
        .await
        .unwrap();
    assert_eq!(report.attachments.len(), 1);
    assert_eq!(report.attachments[0].name, "label");
    assert_eq!(
        String::from_utf8_lossy(&report.attachments[0].content),
        "0/16 [1, true, ()] failed"
    );
}

#[tokio::test]
async fn post_runs_without_memory_after_a_failed_pre_and_twice() {
    let script =
        "fn pre(ctx) { fail(\"no\") } fn post(ctx) { if ctx.memory == () { log(`no memory, ${ctx.outcome}`) } }";
    let scripts = Scripts::with(script);
    let hook = scripts.load().unwrap();
    assert_eq!(
        hook.pre(&context(1000)).await.unwrap_err().kind,
        HookFailureKind::Failed
    );
    for _ in 0..2 {
        let report = hook
            .post(&context(1000), None, SnapshotOutcome::NotTried)
            .await
            .unwrap();
        assert_eq!(report.output, "no memory, not-tried\n");
    }
}

#[tokio::test]
async fn either_function_may_be_absent_but_not_both() {
    let only_post = Scripts::with("fn post(ctx) { log(\"post\") }");
    let hook = only_post.load().unwrap();
    assert_eq!(hook.pre(&context(1000)).await.unwrap(), PreReport::default());
    assert_eq!(post(&hook, None).await.output, "post\n");
    let only_pre = Scripts::with("fn pre(ctx) { application_consistent() }");
    let hook = only_pre.load().unwrap();
    assert!(hook.pre(&context(1000)).await.unwrap().application_consistent);
    assert_eq!(post(&hook, None).await, Default::default());
    assert!(hook.check(&context(1000)).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_later_attempt_is_told_its_number() {
    let script = "fn pre(ctx) { if ctx.attempt < 3 { try_again(`attempt ${ctx.attempt}`) } application_consistent(); }";
    let scripts = Scripts::with(script);
    let hook = scripts.load().unwrap();
    for attempt in 1..=2 {
        let failure = hook
            .pre(&HookContext {
                attempt,
                ..context(1000)
            })
            .await
            .unwrap_err();
        assert_eq!(failure.kind, HookFailureKind::TryAgain);
    }
    assert!(
        hook.pre(&HookContext {
            attempt: 3,
            ..context(1000)
        })
        .await
        .unwrap()
        .application_consistent
    );
}

#[tokio::test]
async fn a_pre_that_fails_after_its_declaration_declares_nothing() {
    let scripts = Scripts::with("fn pre(ctx) { application_consistent(); throw \"after all not\" }");
    let failure = scripts.pre().await.unwrap_err();
    assert!(failure.text.ends_with("after all not"), "{}", failure.text);
}

#[tokio::test]
async fn a_granted_command_gives_status_and_outputs() {
    let script = r#"fn pre(ctx) {
        let done = run("/bin/sh", ["-c", "echo $COFFRE_MACHINE $COFFRE_PHASE; cat; echo bad >&2; exit 3"], #{ input: "in\n" });
        [done.status, done.stdout, done.stderr, done.cut]
    }"#;
    let report = Scripts::with(script).granted(&[SHELL]).pre().await.unwrap();
    assert_eq!(report.memory.unwrap(), r#"[3,"web01 pre\nin\n","bad\n",false]"#);
    insta::assert_snapshot!(report.output, @r#"
    $ /bin/sh -c "echo $COFFRE_MACHINE $COFFRE_PHASE; cat; echo bad >&2; exit 3"
    web01 pre
    in
    bad
    [status 3]
    "#);
}

#[tokio::test]
async fn grants_name_the_machines_settings() {
    let script = "fn pre(ctx) { run(\"/bin/ls\", [\"-d\", ctx.settings.folder]).status }";
    let mut scripts = Scripts::with(script).granted(&[&["/bin/ls", "-d", "${settings.images}"]]);
    scripts.spec.settings = json!({ "folder": "/var/lib/vm/web01" });
    assert!(scripts.pre().await.is_ok());
    scripts.spec.settings = json!({ "folder": "/var/lib/vm/web02" });
    assert_eq!(scripts.pre().await.unwrap_err().kind, HookFailureKind::Denied);
}

#[tokio::test]
async fn a_command_with_its_own_timeout_can_be_survived() {
    let script = r#"fn pre(ctx) {
        try { run("/bin/sleep", ["60"], #{ timeout_ms: 100 }) } catch (e) { return "survived" }
    }"#;
    let report = Scripts::with(script)
        .granted(&[&["/bin/sleep", "{number}"]])
        .pre()
        .await
        .unwrap();
    assert_eq!(report.memory.as_deref(), Some("\"survived\""));
}

#[tokio::test]
async fn a_secret_is_given_by_grant_and_shown_nowhere() {
    let script = r#"fn pre(ctx) {
        run("/bin/echo", ["hunter2 came early"]);
        let password = secret("db");
        log(`it is ${password}`);
        let told = run("/bin/cat", [], #{ input: password }).stdout;
        fail(`${told} is wrong`)
    }"#;
    let mut scripts = Scripts::with(script).granted(&[&["/bin/echo", "{text}"], &["/bin/cat"]]);
    let file = scripts.write("password", "hunter2\n");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    for source in [
        SecretSource::File(file),
        SecretSource::Command(vec!["/bin/echo".to_owned(), "hunter2".to_owned()]),
    ] {
        scripts.spec.secrets.insert("db".to_owned(), source);
        let failure = scripts.pre().await.unwrap_err();
        assert!(failure.text.ends_with("[secret db] is wrong"), "{}", failure.text);
        assert!(!failure.output.contains("hunter2"));
        assert!(failure.output.contains("it is [secret db]"), "{}", failure.output);
    }
}

#[tokio::test]
async fn a_secret_may_not_lie_where_others_read_it() {
    for (script, phase) in [
        ("fn pre(ctx) { run(\"/bin/echo\", [secret(\"db\")]) }", "argument"),
        ("fn pre(ctx) { #{ kept: secret(\"db\") } }", "memory"),
        ("fn post(ctx) { attach(\"x\", secret(\"db\")) }", "attachment"),
        ("fn pre(ctx) { secret(\"other\") }", "not granted"),
    ] {
        let mut scripts = Scripts::with(script).granted(&[&["/bin/echo", "{text}"]]);
        let file = scripts.write("password", "hunter2\n");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        scripts.spec.secrets.insert("db".to_owned(), SecretSource::File(file));
        let hook = scripts.load().unwrap();
        let failure = match hook.pre(&context(1000)).await {
            Err(failure) => failure,
            Ok(_) => hook
                .post(&context(1000), None, SnapshotOutcome::Taken)
                .await
                .unwrap_err(),
        };
        assert_eq!(failure.kind, HookFailureKind::Denied, "{phase}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{phase}");
    }
}

#[tokio::test]
async fn wait_until_looks_again_until_it_is_so() {
    let script = "fn pre(ctx) {
        let looks = 0;
        let found = wait_until(|| { looks += 1; looks >= 3 }, 5000);
        let never = wait_until(|| false, 50);
        [found, never, looks]
    }";
    assert_eq!(
        Scripts::with(script).pre().await.unwrap().memory.as_deref(),
        Some("[true,false,3]")
    );
}

#[tokio::test]
async fn a_check_reports_what_it_finds() {
    let script = "fn check(ctx) { note(\"a\"); warning(\"b\"); blocking(\"c\"); } fn pre(ctx) {}";
    let scripts = Scripts::with(script).granted(&[&["/no/such/program"]]);
    let findings = scripts.load().unwrap().check(&context(1000)).await.unwrap();
    let said: Vec<_> = findings
        .iter()
        .map(|finding| (finding.level, finding.text.as_str()))
        .collect();
    assert_eq!(
        said,
        [
            (
                FindingLevel::Warning,
                "the hook `db` is granted /no/such/program, which is not there"
            ),
            (FindingLevel::Note, "a"),
            (FindingLevel::Warning, "b"),
            (FindingLevel::Blocking, "c"),
        ]
    );
}

#[tokio::test]
async fn print_and_debug_go_to_the_output() {
    let report = Scripts::with("fn pre(ctx) { print(1 + 1); debug(\"x\"); log(\"y\") }")
        .pre()
        .await
        .unwrap();
    assert_eq!(report.output, "2\n1:29: \"x\"\ny\n");
}

#[tokio::test]
async fn constants_and_functions_of_the_script_can_be_used() {
    let script = "const WAIT = 5; fn twice(n) { n * 2 } fn pre(ctx) { twice(global::WAIT) }";
    assert_eq!(Scripts::with(script).pre().await.unwrap().memory.as_deref(), Some("10"));
}

#[tokio::test]
async fn memory_is_bounded_and_plain() {
    let failure = Scripts::with("fn pre(ctx) { let s = \"\"; s.pad(70000, 'x'); s }")
        .pre()
        .await
        .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Limit);
    let failure = Scripts::with("fn pre(ctx) { #{ a: [timestamp()] } }")
        .pre()
        .await
        .unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Failed);
}
