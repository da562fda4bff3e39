//! What a script must not be able to do.

use std::time::Instant;

use coffre_engine::HookFailureKind;

use super::*;

async fn fails_with(script: &str, timeout_ms: u64) -> (HookFailureKind, String) {
    let scripts = Scripts::with(script).granted(&[SHELL]);
    let hook = match scripts.load() {
        Ok(hook) => hook,
        Err(failure) => return (failure.kind, failure.text),
    };
    let failure = hook.pre(&context(timeout_ms)).await.expect_err(script);
    (failure.kind, failure.text)
}

#[tokio::test]
async fn loops_recursion_and_large_values_hit_a_limit() {
    for script in [
        "fn pre(ctx) { loop {} }",
        "fn pre(ctx) { loop { try { loop {} } catch {} } }",
        "fn f(n) { f(n + 1) } fn pre(ctx) { f(0) }",
        "fn pre(ctx) { let f = |g| g.call(g); f.call(f) }",
        "fn pre(ctx) { let s = \"x\"; loop { s += s; } }",
        "fn pre(ctx) { let s = \"\"; s.pad(1000000000, 'x'); }",
        "fn pre(ctx) { let s = \"\"; s.pad(500000, 'x'); s.replace(\"x\", s + \"\"); }",
        "fn pre(ctx) { let s = \"\"; s.pad(500000, 'x'); s.replace('x', \"xxxxxxxx\"); }",
        "fn pre(ctx) { let a = []; loop { a.push(a); } }",
        "fn pre(ctx) { let a = []; a.pad(100000000, 1); }",
        "fn pre(ctx) { let b = blob(1000000000, 1); }",
        "fn pre(ctx) { let a = []; let s = \"\"; s.pad(500000, 'x'); for i in 0..10000 { a.push(s + i); } }",
        "fn pre(ctx) { let m = #{}; let s = \"\"; s.pad(500000, 'x'); for i in 0..10000 { m[`k${i}`] = s + i; } }",
    ] {
        let before = Instant::now();
        let (kind, text) = fails_with(script, 60_000).await;
        assert_eq!(kind, HookFailureKind::Limit, "{script}: {text}");
        assert!(before.elapsed() < Duration::from_secs(30), "{script}");
    }
}

#[tokio::test]
async fn deep_nesting_does_not_parse() {
    let deep = format!("fn pre(ctx) {{ let x = {}1{}; }}", "(".repeat(500), ")".repeat(500));
    assert_eq!(fails_with(&deep, 1000).await.0, HookFailureKind::Invalid);
    let many: String = (0..500).map(|n| format!("fn f{n}() {{}}\n")).collect();
    assert_eq!(
        fails_with(&(many + "fn pre(ctx) {}"), 1000).await.0,
        HookFailureKind::Invalid
    );
}

#[tokio::test]
async fn code_cannot_be_made_and_files_elsewhere_cannot_be_imported() {
    assert_eq!(
        fails_with("fn pre(ctx) { eval(\"1\") }", 1000).await.0,
        HookFailureKind::Invalid
    );
    for place in ["/etc/x", "../x", "a/../../x", "./x", ""] {
        let script = format!("fn pre(ctx) {{ import \"{place}\" as x; }}");
        let (kind, text) = fails_with(&script, 1000).await;
        assert_eq!(kind, HookFailureKind::Denied, "{place}: {text}");
    }
    let scripts = Scripts::with("fn pre(ctx) { import \"out\" as out; out::f() }");
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("x.rhai");
    fs::write(&file, "fn f() {}").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::symlink(&file, scripts.path("out.rhai")).unwrap();
    assert_eq!(
        scripts.pre().await.unwrap_err().kind,
        HookFailureKind::Denied,
        "a link that leads out"
    );
}

#[tokio::test]
async fn an_import_is_read_with_the_care_of_the_script() {
    let scripts = Scripts::with("import \"lib/calc\" as calc; fn pre(ctx) { calc::twice(21) }");
    let lib = scripts.write("lib/calc.rhai", "fn twice(n) { n * 2 }");
    fs::set_permissions(lib.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(scripts.pre().await.unwrap().memory.as_deref(), Some("42"));
    fs::set_permissions(&lib, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(scripts.pre().await.unwrap_err().kind, HookFailureKind::Invalid);
    fs::set_permissions(&lib, Permissions::from_mode(0o644)).unwrap();
    scripts.write("lib/calc.rhai", "import \"lib/calc\" as again; fn twice(n) { n }");
    assert_eq!(
        scripts.pre().await.unwrap_err().kind,
        HookFailureKind::Invalid,
        "a circle"
    );
}

#[tokio::test]
async fn a_script_that_others_can_write_is_not_loaded() {
    let scripts = Scripts::with("fn pre(ctx) {}");
    assert!(scripts.load().is_ok());
    fs::set_permissions(&scripts.spec.file, Permissions::from_mode(0o666)).unwrap();
    assert_eq!(scripts.load().err().unwrap().kind, HookFailureKind::Invalid);
    fs::set_permissions(&scripts.spec.file, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(scripts.folder.path(), Permissions::from_mode(0o777)).unwrap();
    assert_eq!(scripts.load().err().unwrap().kind, HookFailureKind::Invalid);
}

#[tokio::test]
async fn what_waits_too_long_times_out() {
    for script in [
        "fn pre(ctx) { sleep(60000) }",
        "fn pre(ctx) { wait_until(|| false, 60000) }",
        "fn pre(ctx) { loop { sleep(1) } }",
        "fn pre(ctx) { try { sleep(60000) } catch { } }",
        "fn pre(ctx) { run(\"/bin/sh\", [\"-c\", \"trap '' TERM; sleep 60; sleep 60\"]) }",
    ] {
        let before = Instant::now();
        let (kind, text) = fails_with(script, 300).await;
        assert_eq!(kind, HookFailureKind::TimedOut, "{script}: {text}");
        assert!(before.elapsed() < Duration::from_secs(5), "{script}");
    }
}

#[tokio::test]
async fn a_timed_out_hook_leaves_no_process() {
    let scripts = Scripts::with("").granted(&[SHELL]);
    let file = scripts.path("pid");
    let command = format!(
        "setsid sh -c 'echo $$ > {}; exec sleep 300' & sleep 300",
        file.display()
    );
    scripts.write(
        "hook.rhai",
        &format!("fn pre(ctx) {{ run(\"/bin/sh\", [\"-c\", `{command}`]) }}"),
    );
    let failure = scripts.load().unwrap().pre(&context(500)).await.unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::TimedOut);
    assert!(!is_alive(&file));
}

#[tokio::test]
async fn a_hook_that_nobody_waits_for_ends() {
    let scripts = Scripts::with("").granted(&[SHELL]);
    let file = scripts.path("pid");
    let command = format!("echo $$ > {}; exec sleep 300", file.display());
    scripts.write(
        "hook.rhai",
        &format!("fn pre(ctx) {{ run(\"/bin/sh\", [\"-c\", `{command}`]) }}"),
    );
    let hook = scripts.load().unwrap();
    assert!(
        tokio::time::timeout(Duration::from_millis(300), hook.pre(&context(60_000)))
            .await
            .is_err()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!is_alive(&file));
}

#[tokio::test]
async fn a_denied_command_ends_the_script() {
    let script = "fn pre(ctx) { try { run(\"/bin/rm\", [\"-rf\", \"/srv\"]) } catch { } log(\"went on\") }";
    let failure = Scripts::with(script).pre().await.unwrap_err();
    assert_eq!(failure.kind, HookFailureKind::Denied);
    assert!(!failure.output.contains("went on"));
    for wrong in ["[\"-n\", \"x\"]", "[]", "[\"a\", \"b\"]"] {
        let script = format!("fn pre(ctx) {{ run(\"/bin/echo\", {wrong}) }}");
        let scripts = Scripts::with(&script).granted(&[&["/bin/echo", "{text}"]]);
        assert_eq!(
            scripts.pre().await.unwrap_err().kind,
            HookFailureKind::Denied,
            "{wrong}"
        );
    }
}

#[tokio::test]
async fn output_without_end_is_bounded() {
    let script =
        "fn pre(ctx) { for i in 0..20 { run(\"/bin/sh\", [\"-c\", \"head -c 100000 /dev/zero | tr '\\\\0' x\"]) } }";
    let report = Scripts::with(script).granted(&[SHELL]).pre().await.unwrap();
    assert!(report.output.len() <= super::super::limits::OUTPUT_BYTES);
    assert!(
        report.output.ends_with("more bytes not kept]\n"),
        "{}",
        &report.output[report.output.len() - 100..]
    );
}
