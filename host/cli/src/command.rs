//! One file per command.

mod completions;

use crate::args::{Cli, Command};
use crate::exit::Exit;
use crate::output::Output;

/// Runs what was typed and says how it ended.
pub fn run(cli: Cli, output: Output) -> anyhow::Result<Exit> {
    match cli.command {
        Command::Completions(args) => completions::run(&args, &output),
        _ => anyhow::bail!("not yet"),
    }
}
