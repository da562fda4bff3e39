//! One file per command.

mod backup;
mod check;
mod clean;
mod completions;
mod config;
mod doctor;
mod fate;
mod forget;
mod hook;
mod init;
mod jobs;
mod key;
mod man;
mod metrics;
mod notify;
mod plugin;
mod points;
mod repair;
mod report;
mod restore;
mod run;
pub mod status;
mod verify;

use anyhow::Context;

use crate::args::{Cli, Command, RepairCommand};
use crate::exit::Exit;
use crate::output::Output;
use crate::stop;
pub use backup::view as backup_view;

/// Runs what was typed and says how it ended.
pub fn run(cli: Cli, output: Output) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let exit = runtime.block_on(dispatch(&cli, &output));
    // What still reads in the background is of no use to anybody; waiting for it would only look like hanging. It ends with
    // the process: to detach threads that are just ending, as a shutdown in the background does, reads freed memory in glibc
    // 2.36 (pthread_detach), of which one run in some thousands died when all was done.
    std::mem::forget(runtime);
    exit
}

async fn dispatch(cli: &Cli, output: &Output) -> anyhow::Result<Exit> {
    let global = &cli.global;
    match &cli.command {
        Command::Init(args) => init::run(args, global, output).await,
        Command::Points(args) => stop::or_dropped(points::run(args, global, output)).await,
        Command::Backup(args) => backup::run(args, global, output).await,
        Command::Notify(args) => stop::or_dropped(notify::run(args, global, output)).await,
        Command::Metrics => metrics::run(global, output).await,
        Command::Man(args) => man::run(args, output),
        Command::Report(args) => report::run(args, global, output).await,
        Command::Status(args) => status::run(args, global, output).await,
        Command::Run => run::run(global).await,
        Command::Jobs(args) => stop::or_dropped(jobs::run(args, global, output)).await,
        Command::Restore(args) => restore::run(args, global, output).await,
        Command::Forget(args) => stop::or_dropped(forget::run(args, global, output)).await,
        Command::Undelete(args) => stop::or_dropped(fate::undelete(args, global, output)).await,
        Command::Pin(args) => stop::or_dropped(fate::pin(args, global, output)).await,
        Command::Unpin(args) => stop::or_dropped(fate::unpin(args, global, output)).await,
        Command::Verify(args) => stop::or_dropped(verify::run(args, global, output)).await,
        Command::Clean(args) => stop::or_dropped(clean::run(args, global, output)).await,
        Command::Repair(args) => match &args.command {
            RepairCommand::Index(args) => stop::or_dropped(repair::index(args, global, output)).await,
            RepairCommand::Log(args) => stop::or_dropped(repair::log(args, global, output)).await,
        },
        Command::Key(args) => key::run(&args.command, global, output).await,
        Command::Doctor => stop::or_dropped(doctor::run(global, output)).await,
        Command::Config(args) => stop::or_dropped(config::run(&args.command, global, output)).await,
        Command::Plugin(args) => plugin::run(&args.command, global, output),
        Command::Hook(args) => hook::run(&args.command, global, output).await,
        Command::Completions(args) => completions::run(args, output),
    }
}
