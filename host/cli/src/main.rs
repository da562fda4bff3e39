//! `coffre`: the command line. It reads words and configuration, wires plugins, hooks and vault to the engine, and says what
//! came of it. Everything else is in the crates below.

mod args;
mod command;
mod exit;
mod key;
mod log;
mod machine;
mod output;
mod plugins;
mod progress;
mod report;
mod screen;
mod shape;
mod stop;
mod wire;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::exit::Exit;
use crate::output::Output;
use crate::report::Report;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if let ErrorKind::DisplayHelp | ErrorKind::DisplayVersion = error.kind() {
                // Broken pipes and the like: there is nobody left to tell.
                let _ = error.print();
                return Exit::Done.into();
            }
            // What clap calls a tip is a hint in every other error.
            let text = error.render().to_string().replace("\n  tip: ", "\nhint: ");
            screen::above(text.as_bytes());
            return Exit::Usage.into();
        }
    };
    let output = Output::new(&cli.global);
    match log::start(&cli.global).and_then(|()| command::run(cli, output)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let report = Report::new(&error);
            screen::above(report.render(output.colour()).as_bytes());
            // With --json there is one document on stdout, also when nothing else came of it.
            let _ = output.document(&serde_json::json!({ "error": report }));
            report.exit.into()
        }
    }
}
