//! Sessions that stay open from `pre` to `post`.

use coffre_engine::HookFailureKind;

use super::*;

const TALKS: &str =
    "echo $$; while read -r word; do case $word in end) echo ended >&2; exit 5;; *) echo \"got $word\";; esac; done";

fn holds(rest_of_pre: &str, post: &str) -> Scripts {
    let command = TALKS.replace('"', "\\\"");
    Scripts::with(&format!(
        "fn pre(ctx) {{ let s = hold(\"lock\", \"/bin/sh\", [\"-c\", \"{command}\"]); let pid = s.read_until(\"\\n\", 5000); pid.trim(); \
         {rest_of_pre} }}\nfn post(ctx) {{ {post} }}\n"
    ))
    .granted(&[SHELL])
}

fn is_running(pid: &str) -> bool {
    let pid = pid.trim().trim_matches('"').trim_end_matches("\\n");
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test]
async fn a_session_is_open_from_pre_to_post_and_gone_after_it() {
    let scripts = holds(
        "s.send(\"one\\n\"); s.read_until(\"got one\", 5000); application_consistent(); pid",
        "let s = held(\"lock\"); if !s.alive { fail(\"gone\"); } s.send(\"two\\nend\\n\"); s.read_until(\"got two\\n\", 5000); \
         let ended = s.close(); attach(\"end\", `${s.name} ${ended.status} ${ended.stderr}`);",
    );
    let hook = scripts.load().unwrap();
    let report = hook.pre(&context(20_000)).await.unwrap();
    let pid = report.memory.clone().unwrap();
    assert!(is_running(&pid));
    assert!(report.output.contains("lock> one\n"), "{}", report.output);
    assert!(hook.still_held("job-7").is_ok());
    let report = post(&hook, report.memory.as_deref()).await;
    assert_eq!(report.attachments[0].content, b"lock 5 ended\n");
    assert!(!is_running(&pid));
}

#[tokio::test]
async fn one_that_post_leaves_open_or_does_not_ask_for_is_ended() {
    for after in ["", "held(\"lock\").send(\"more\\n\");", "fail(\"no\");", "loop {}"] {
        let hook = holds("pid", after).load().unwrap();
        let pid = hook.pre(&context(20_000)).await.unwrap().memory.unwrap();
        assert!(is_running(&pid));
        let _ = hook.post(&context(1000), Some(&pid), SnapshotOutcome::Taken).await;
        assert!(!is_running(&pid), "{after}");
    }
    let without = holds("pid", "");
    let text = fs::read_to_string(without.path("hook.rhai")).unwrap();
    without.write("hook.rhai", text.split("fn post").next().unwrap());
    let hook = without.load().unwrap();
    let pid = hook.pre(&context(20_000)).await.unwrap().memory.unwrap();
    post(&hook, Some(&pid)).await;
    assert!(!is_running(&pid), "a script without post");
}

#[tokio::test]
async fn a_pre_that_fails_leaves_nothing_open_and_can_be_tried_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().display();
    for wrong in [
        "fail(\"no\");",
        "loop { sleep(10); }",
        "run(\"/bin/nothing\");",
        "let a = []; loop { a.push(a); }",
        "Fn(\"pre\")",
        "throw \"x\";",
    ] {
        let note = format!("run(\"/bin/sh\", [\"-c\", `echo ${{pid}} > {path}`]);");
        let scripts = holds(
            &format!("{note} {wrong}"),
            "if held(\"lock\") != () { fail(\"it is still there\"); }",
        );
        let hook = scripts.load().unwrap();
        for _ in 0..2 {
            hook.pre(&context(1500)).await.expect_err(wrong);
            assert!(!is_running(&fs::read_to_string(file.path()).unwrap()), "{wrong}");
        }
        post(&hook, None).await;
    }
}

#[tokio::test]
async fn one_that_is_lost_is_noticed_and_said() {
    for (loss, why) in [
        ("s.send(\"end\\n\");", "status 5 (ended)"),
        ("run(\"/bin/sh\", [\"-c\", `kill -9 ${pid}`]);", "status 137"),
    ] {
        let scripts = holds(&format!("{loss} sleep(300); application_consistent(); pid"), "");
        let hook = scripts.load().unwrap();
        hook.pre(&context(20_000)).await.unwrap();
        let failure = hook.still_held("job-7").unwrap_err();
        let expected = format!("/scripts/hook.rhai: the session `lock` ended before the snapshot was there: {why}");
        assert!(scripts.said(&failure).contains(&expected), "{}", scripts.said(&failure));
        post(&hook, None).await;
    }
    // One that the script closed itself is not lost.
    let hook = holds("s.close(); pid", "").load().unwrap();
    hook.pre(&context(20_000)).await.unwrap();
    assert!(hook.still_held("job-7").is_ok());
}

#[tokio::test]
async fn at_the_end_of_the_hold_it_is_gone_though_nobody_calls_post() {
    let hook = holds("pid", "").load().unwrap();
    let context = HookContext {
        hold_left: Duration::from_millis(1500),
        ..context(20_000)
    };
    let pid = hook.pre(&context).await.unwrap().memory.unwrap();
    assert!(is_running(&pid));
    tokio::time::sleep(Duration::from_millis(1900)).await;
    assert!(!is_running(&pid));
    let said = hook.still_held("job-7").unwrap_err().text;
    assert!(said.ends_with("applications may not be held any longer"), "{said}");
}

#[tokio::test]
async fn a_job_that_nobody_waits_for_leaves_nothing_open() {
    let scripts = holds("run(\"/bin/sh\", [\"-c\", `echo ${pid} > PID`]); sleep(60000);", "");
    let file = scripts.path("pid");
    let text = fs::read_to_string(scripts.path("hook.rhai")).unwrap();
    scripts.write("hook.rhai", &text.replace("PID", &file.display().to_string()));
    let hook = scripts.load().unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(1500), hook.pre(&context(60_000)))
            .await
            .is_err()
    );
    let pid = fs::read_to_string(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!is_running(&pid));
}

#[tokio::test]
async fn what_cannot_be_held_is_refused() {
    for (script, kind) in [
        (
            "fn pre(ctx) { hold(\"a\", \"/bin/cat\", []); }",
            HookFailureKind::Denied,
        ),
        (
            "fn pre(ctx) { hold(\"a\", \"/bin/sh\", [\"-c\", \"cat\"], #{ timeout_ms: 1 }); }",
            HookFailureKind::Failed,
        ),
        (
            "fn pre(ctx) { for i in 0..2 { hold(\"a\", \"/bin/sh\", [\"-c\", \"cat\"]); } }",
            HookFailureKind::Failed,
        ),
        (
            "fn pre(ctx) { for i in 0..100 { hold(`a${i}`, \"/bin/sh\", [\"-c\", \"cat\"]); } }",
            HookFailureKind::Limit,
        ),
        (
            "fn pre(ctx) { hold(\"a\", \"/bin/sh\", [\"-c\", \"cat\"]).read_until(\"x\", 100); }",
            HookFailureKind::Failed,
        ),
        (
            "fn pre(ctx) { try { hold(\"a\", \"/bin/sh\", [\"-c\", \"cat\"]).read_until(\"x\", 60000); } catch {} }",
            HookFailureKind::TimedOut,
        ),
    ] {
        let hook = Scripts::with(script).granted(&[SHELL]).load().unwrap();
        let failure = hook.pre(&context(1500)).await.expect_err(script);
        assert_eq!(failure.kind, kind, "{script}: {failure}");
    }
    let hook = Scripts::with("fn post(ctx) { hold(\"a\", \"/bin/sh\", [\"-c\", \"cat\"]); }")
        .granted(&[SHELL])
        .load()
        .unwrap();
    let failure = hook
        .post(&context(1500), None, SnapshotOutcome::Taken)
        .await
        .unwrap_err();
    assert!(
        failure.text.ends_with("hold belongs in `fn pre`, not in `post`"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_secret_that_a_session_is_told_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    fs::write(&file, "hunter2").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let mut scripts = holds(
        "s.send(secret(\"db\") + \"\\n\"); s.read_until(\"hunter2\\n\", 5000); ()",
        "",
    );
    scripts.spec.secrets = [("db".to_owned(), coffre_engine::secret::SecretSource::File(file))].into();
    let hook = scripts.load().unwrap();
    let output = hook.pre(&context(20_000)).await.unwrap().output;
    assert!(output.contains("lock> [secret db]\ngot [secret db]\n"), "{output}");
    post(&hook, None).await;
}
