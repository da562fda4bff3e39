//! `coffre`: the command line. It reads words and configuration, wires plugins, hooks and vault to the engine, and says what
//! came of it. Everything else is in the crates below.

mod args;
mod backing;
mod book;
mod command;
mod exit;
mod key;
mod left_behind;
mod log;
mod machine;
mod metrics;
mod output;
mod plugins;
mod progress;
mod rehearsals;
mod report;
mod screen;
mod shape;
mod stop;
mod tell;
mod wire;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::Cli;
use crate::exit::Exit;
use crate::output::Output;
use crate::report::Report;

/// What stands on stdout with `--json` when nothing else came of it.
#[derive(serde::Serialize)]
struct ErrorDocument {
    error: Report,
}

fn main() -> ExitCode {
    coffre_vault::keep_few_heaps();
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
    let run = || log::start(&cli.global).and_then(|()| command::run(cli, output));
    let ran = catch_unwind(AssertUnwindSafe(run));
    screen::flush();
    match ran {
        Ok(Ok(exit)) => exit.into(),
        // The panic's own message is on stderr already.
        Err(_) => {
            screen::note("hint: this is a fault in Coffre itself; please report it with the lines above");
            Exit::Failed.into()
        }
        Ok(Err(error)) => {
            let report = Report::new(&error);
            screen::above(report.render(output.colour()).as_bytes());
            // With --json there is one document on stdout, also when nothing else came of it.
            let exit = report.exit;
            let _ = output.document(&ErrorDocument { error: report });
            exit.into()
        }
    }
}
