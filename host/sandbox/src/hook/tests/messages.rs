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
    insta::assert_snapshot!(said(Scripts::with(script)).await, @"");
}

#[tokio::test]
async fn a_syntax_error_names_its_place() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    let x = ;\n}")).await, @"");
}

#[tokio::test]
async fn an_unknown_variable_is_found_before_anything_runs() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    log(contxt.job)\n}")).await, @"");
}

#[tokio::test]
async fn an_unknown_function_is_named_with_what_it_was_given() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    logg(ctx.job, 1)\n}")).await, @"");
}

#[tokio::test]
async fn an_unknown_entry_of_the_context_is_named() {
    insta::assert_snapshot!(said(Scripts::with("fn pre(ctx) {\n    log(ctx.jib)\n}")).await, @"");
}

#[tokio::test]
async fn a_failure_in_an_import_is_placed_there() {
    let scripts = Scripts::with("import \"lib\" as lib;\nfn pre(ctx) { lib::go() }");
    scripts.write("lib.rhai", "fn go() {\n\n  fail(\"the database is not there\")\n}");
    insta::assert_snapshot!(said(scripts).await, @"");
}

#[tokio::test]
async fn a_timeout_says_for_what_it_waited() {
    let scripts = Scripts::with("fn pre(ctx) { run(\"/bin/sleep\", [60]) }").granted(&[&["/bin/sleep", "{number}"]]);
    insta::assert_snapshot!(said(scripts).await, @"");
}

#[tokio::test]
async fn an_endless_loop_says_so() {
    insta::assert_snapshot!(said(Scripts::with("fn f() { f() } fn pre(ctx) { f() }")).await, @"");
}

#[tokio::test]
async fn a_script_without_functions_or_with_other_parameters_says_what_is_missing() {
    insta::assert_snapshot!(said(Scripts::with("fn before(ctx) {}")).await, @"");
    insta::assert_snapshot!(said(Scripts::with("fn pre() {}")).await, @"");
}

#[tokio::test]
async fn a_missing_script_says_where_it_was_looked_for() {
    let mut scripts = Scripts::with("");
    scripts.spec.file = scripts.path("missing.rhai");
    insta::assert_snapshot!(said(scripts).await, @"");
}
