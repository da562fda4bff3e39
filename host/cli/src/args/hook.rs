//! The words of `coffre hook`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use coffre_engine::config::parse_duration;
use coffre_engine::rehearsal::Fault;

/// Begin, check and try hooks, without a backup
///
/// A hook brings an application to rest before a snapshot and lets it go right after. docs/hooks.md says how to write one.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre hook new orders-db                     # a script to start from, and the lines for the configuration
  coffre hook check orders-db
  coffre hook test orders-db                    # holds and lets go, around a pretended snapshot
  coffre hook test orders-db --fault timeout    # and when it hangs?")]
pub struct HookArgs {
    #[command(subcommand)]
    pub command: HookCommand,
}

#[derive(Debug, Subcommand)]
pub enum HookCommand {
    /// The hooks in the configuration, which machines use them, and whether they can be loaded
    List,
    /// Load hooks and let them look for obstacles; disturbs nothing
    Check {
        /// Names of hooks in the configuration; all of them if none is named
        #[arg(value_name = "HOOK")]
        hooks: Vec<String>,
        /// The machine that they are asked for; every machine that uses them if not said
        #[arg(long, value_name = "MACHINE")]
        machine: Option<String>,
    },
    New(NewHookArgs),
    Test(TestHookArgs),
}

/// Write a hook to start from, and show the lines that the configuration needs
///
/// Nothing that exists is overwritten, and the configuration is not touched. What components and the scripts of Azure's
/// framework need stands in docs/hooks.md.
#[derive(Debug, Args)]
pub struct NewHookArgs {
    /// What the hook shall be called
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What to write it in
    #[arg(long, value_name = "KIND", default_value = "rhai")]
    pub kind: NewHookKind,
    /// Where to; the configuration's `scripts` folder if not said
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NewHookKind {
    /// A script in Rhai, which can do what it is granted and nothing else
    Rhai,
    /// An executable: here a shell script
    Exec,
}

/// Run hooks around a snapshot, without a backup, and show who was held from when to when
///
/// The hooks really hold their applications and let them go, by the same code as in a backup, with the same deadlines. The
/// snapshot is pretended unless `--snapshot real` says otherwise; a real one is taken and released. A fault makes something
/// go wrong while everything is at rest: what counts is that everybody is let go all the same.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Faults:
  timeout        the first hook holds its application and hangs until its timeout
  fail-pre       the first hook holds its application and says that it failed
  fail-snapshot  the snapshot fails
  fail-post      the first hook lets its application go and says that it failed
  kill-host      the program is killed (SIGKILL) while everything is held, and started again
  lose-session   what the first hook holds open ends before the snapshot

Exit codes: 0 everybody was let go, and what was to be reached was, or the fault did no harm; 1 somebody was not, or a hook
failed that was not meant to; 4 the point would have been worth less than wanted.")]
pub struct TestHookArgs {
    /// Names of hooks in the configuration; those of the machine if none is named
    #[arg(value_name = "HOOK")]
    pub hooks: Vec<String>,
    /// The machine that they are tried for; needed where several use them
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,
    /// What goes wrong
    #[arg(long, value_name = "FAULT")]
    pub fault: Option<Fault>,
    /// Whether a snapshot is taken
    #[arg(long, value_name = "WHICH", default_value = "pretended")]
    pub snapshot: SnapshotKind,
    /// How long a pretended snapshot takes
    #[arg(long, value_name = "TIME", default_value = "100ms", value_parser = parse_duration)]
    pub takes: Duration,
    /// The program that is to be killed while everything is held
    #[arg(long, hide = true)]
    pub die_while_held: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SnapshotKind {
    /// None is taken; the machine's provider is not even loaded
    Pretended,
    /// The machine's provider takes one, and releases it
    Real,
}
