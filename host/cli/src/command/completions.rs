//! `coffre completions SHELL`.

use std::io;

use anyhow::Context;
use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::exit::Exit;
use crate::output::Output;

pub fn run(args: &CompletionsArgs, output: &Output) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut Cli::command(),
        "coffre",
        &mut script as &mut dyn io::Write,
    );
    let script = String::from_utf8(script).context("read the completion script")?;
    output.document(&serde_json::json!({ "shell": args.shell.to_string(), "script": script }))?;
    output.result(script)?;
    Ok(Exit::Done)
}
