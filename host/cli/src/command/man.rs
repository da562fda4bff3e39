//! `coffre man FOLDER`: the manual pages, made from the very words of the command line.

use anyhow::Context;
use clap::CommandFactory;
use clap_mangen::generate_to;

use crate::args::{Cli, ManArgs};
use crate::exit::Exit;
use crate::output::Output;

pub fn run(args: &ManArgs, output: &Output) -> anyhow::Result<Exit> {
    // Dated by nothing: the same program makes the same pages.
    generate_to(Cli::command(), &args.folder)
        .with_context(|| format!("cannot write pages into {}", args.folder.display()))?;
    output.line(format!("{}: the manual pages are there", args.folder.display()))?;
    Ok(Exit::Done)
}
