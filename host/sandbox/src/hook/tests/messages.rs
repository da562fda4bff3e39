//! What the operator reads.

use super::*;

async fn said(scripts: Scripts) -> String {
    let failure = match scripts.load() {
        Err(failure) => failure,
        Ok(hook) => hook.pre(&context(1000)).await.unwrap_err(),
    };
    scripts.said(&failure)
}

#[tokio::test]
async fn a_denied_command_names_the_grant() {
    let script = "fn pre(ctx) {\n    run(\"/usr/bin/psql\", [\"-c\", \"CHECKPOINT\"]);\n}";
    insta::assert_snapshot!(said(Scripts::with(script)).await, @r#"
    Denied: /scripts/hook.rhai:2:5: no grant allows the command ["/usr/bin/psql", "-c", "CHECKPOINT"]
    hint: allow it, or a pattern of it, in [hook.db.grant]: process = [["/usr/bin/psql", "-c", "CHECKPOINT"]]
    "#);
}

#[tokio::test]
async fn a_syntax_error_names_its_place() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    let x = ;\n}")).await, @"Invalid: /scripts/hook.rhai:2:13: Unexpected ';'");
}

#[tokio::test]
async fn an_unknown_variable_is_found_before_anything_runs() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    log(contxt.job)\n}")).await, @r#"
    Invalid: /scripts/hook.rhai:2:9: Undefined variable: contxt
    hint: functions see their parameters and `global::NAME` of constants, no other variables
    "#);
}

#[tokio::test]
async fn an_unknown_function_is_named_with_what_it_was_given() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    logg(ctx.job, 1)\n}")).await, @r#"
    Failed: /scripts/hook.rhai:2:5: there is no function logg (text, number)
    hint: docs/hooks.md lists what a script can call, and with what
    "#);
}

#[tokio::test]
async fn an_unknown_entry_of_the_context_is_named() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    log(ctx.jib)\n}")).await, @"Failed: /scripts/hook.rhai:2:12: ctx has no `jib` here; it has attempt, disks, hold_at_most_ms, hook, job, machine, phase, policy, settings, timeout_ms, wanted");
}

#[tokio::test]
async fn a_failure_in_an_import_is_placed_there() {
    let scripts = Scripts::with("import \"lib\" as lib;\nfn pre(ctx) { lib::stop() }");
    scripts.write("lib.rhai", "fn stop() {\n\n  fail(\"the database is not there\")\n}");
    insta::assert_snapshot!(said(scripts).await, @"Failed: /scripts/lib.rhai:3:3: the database is not there");
}

#[tokio::test]
async fn a_timeout_says_for_what_it_waited() {
    let scripts = Scripts::with("fn pre(ctx) { run(\"/bin/sleep\", [60]) }").granted(&[&["/bin/sleep", "{number}"]]);
    insta::assert_snapshot!(said(scripts).await, @r#"
    TimedOut: /scripts/hook.rhai:1:15: /bin/sleep had not ended in time and was killed with all that it had started
    hint: give it more than 1.0 s by `timeout` in [hook.db], or find out what it waits for
    "#);
}

#[tokio::test]
async fn an_endless_loop_says_so() {
    insta::assert_snapshot!(said(Scripts::with("fn f() { f() } fn pre(ctx) { f() }")).await, @r#"
    Limit: /scripts/hook.rhai: functions call each other without end
    hint: the limit is 32 calls within each other
    "#);
}

#[tokio::test]
async fn a_script_without_functions_or_with_other_parameters_says_what_is_missing() {
    insta::assert_snapshot!(said(Scripts::with("fn before(ctx) {}")).await, @"Invalid: /scripts/hook.rhai has neither `fn pre(ctx)` nor `fn post(ctx)`");
    insta::assert_snapshot!(said(Scripts::with("fn pre() {}")).await, @r#"
    Invalid: /scripts/hook.rhai: `pre` must take one parameter
    hint: fn pre(ctx) { … }
    "#);
}

#[tokio::test]
async fn a_grant_that_means_nothing_is_found_when_the_hook_is_loaded() {
    let script = "fn pre(ctx) {}";
    insta::assert_snapshot!(said(Scripts::with(script).granted(&[&["psql", "{text}"]])).await, @r#"
    Invalid: [hook.db.grant] process: "psql" must be the absolute path of a program
    hint: process = [["/usr/bin/psql", "--command=CHECKPOINT"]]: a program and a pattern for each argument
    "#);
    insta::assert_snapshot!(said(Scripts::with(script).granted(&[&["/bin/echo", "{txt}"]])).await, @r#"
    Invalid: [hook.db.grant] process: "{txt}": there is no hole {txt}
    hint: process = [["/usr/bin/psql", "--command=CHECKPOINT"]]: a program and a pattern for each argument
    "#);
}

#[tokio::test]
async fn a_missing_script_says_where_it_was_looked_for() {
    let mut scripts = Scripts::with("");
    scripts.spec.file = scripts.path("missing.rhai");
    insta::assert_snapshot!(said(scripts).await, @r#"
    Invalid: the hook `db`: cannot read /scripts/missing.rhai: No such file or directory (os error 2)
    hint: a relative `file` is looked for below `[coffre] scripts`
    "#);
}

/// An executable that is this script.
fn program(content: &str, mode: u32) -> Scripts {
    let mut scripts = Scripts::with("");
    scripts.spec.kind = coffre_engine::config::HookKind::Exec;
    scripts.spec.file = scripts.write("hook.sh", content);
    fs::set_permissions(&scripts.spec.file, Permissions::from_mode(mode)).unwrap();
    scripts
}

#[tokio::test]
async fn a_program_that_fails_is_quoted() {
    let fails = "#!/bin/sh\necho connecting\necho 'the database is not there' >&2\necho >&2\nexit 3\n";
    insta::assert_snapshot!(said(program(fails, 0o755)).await, @"Failed: /scripts/hook.sh: ended with status 3: the database is not there");
    let busy = "#!/bin/sh\necho 'it is starting'\nexit 75\n";
    insta::assert_snapshot!(said(program(busy, 0o755)).await, @"TryAgain: /scripts/hook.sh: asks to be tried again (status 75): it is starting");
    insta::assert_snapshot!(said(program("#!/bin/sh\nexit 7\n", 0o755)).await, @"Failed: /scripts/hook.sh: ended with status 7");
    insta::assert_snapshot!(said(program("#!/bin/sh\nsleep 60\n", 0o755)).await, @r#"
    TimedOut: /scripts/hook.sh: `pre` had not ended after 1.0 s
    hint: give it more than 1.0 s by `timeout` in [hook.db], or find out what it waits for
    "#);
    insta::assert_snapshot!(said(program("#!/bin/sh\nexit 127\n", 0o755)).await, @r#"
    Failed: /scripts/hook.sh: ended with status 127
    hint: a shell says 126 or 127 of what it could not run: look at its first line, and at the programs that it calls
    "#);
}

#[tokio::test]
async fn a_program_that_may_not_be_run_says_why() {
    insta::assert_snapshot!(said(program("", 0o644)).await, @r#"
    Invalid: the hook `db`: /scripts/hook.sh cannot be executed (mode 0644)
    hint: chmod u+x /scripts/hook.sh
    "#);
    insta::assert_snapshot!(said(program("", 0o775)).await, @r#"
    Invalid: the hook `db`: /scripts/hook.sh can be written by others than its owner (mode 0775)
    hint: chmod go-w /scripts/hook.sh
    "#);
    let mut scripts = program("#!/bin/sh\necho token > \"$COFFRE_MEMORY\"\n", 0o755);
    let secret = coffre_engine::secret::SecretSource::Command(vec!["/bin/echo".to_owned(), "token".to_owned()]);
    scripts.spec.secrets.insert("api".to_owned(), secret);
    insta::assert_snapshot!(said(scripts).await, @r#"
    Denied: `pre` left the secret `api` in $COFFRE_MEMORY, which would be written to disk
    hint: `post` is given it again
    "#);
}

#[tokio::test]
async fn a_file_of_azures_framework_is_named_with_the_frameworks_word() {
    let azure = |content: &str, mode: u32| {
        let mut scripts = program(content, mode);
        scripts.spec.kind = coffre_engine::config::HookKind::Azure;
        scripts
    };
    insta::assert_snapshot!(said(azure("{}", 0o600)).await, @"Invalid: /scripts/hook.sh: preScriptLocation is missing, or not a text (FailedPrepostPluginConfigParsing)");
    insta::assert_snapshot!(said(azure("{}", 0o640)).await, @r#"
    Invalid: /scripts/hook.sh can be read by others than its owner (mode 0640) (FailedPrepostPluginConfigPermissionError)
    hint: chmod go-rwx /scripts/hook.sh
    "#);
    let missing = "{\"preScriptLocation\": \"/no/such/pre.sh\", \"postScriptLocation\": \"/no/such/post.sh\"}";
    insta::assert_snapshot!(said(azure(missing, 0o600)).await, @"Invalid: the pre script /no/such/pre.sh is not there (FailedPrepostPreScriptNotFound)");
}
