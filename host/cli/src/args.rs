//! The words of the command line: what may be typed, and the help for it.

mod hook;
mod key;

use std::path::PathBuf;
use std::time::Duration;

pub use hook::{HookArgs, HookCommand, NewHookArgs, NewHookKind, SnapshotKind, TestHookArgs};
pub use key::{AddKeyArgs, KeyArgs, KeyCommand, NewKeys, RemoveKeyArgs, RotateKeyArgs};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use coffre_vault::Percentage;

const EXIT_CODES: &str = "\
Exit codes:
    0  done                          65  the configuration is wrong
    1  failed                        75  busy: try again later
    3  some machines failed          77  denied
    4  done, but less consistent    130  cancelled
       than the policy wants
   64  wrong usage

Configuration: --config FILE, else $COFFRE_CONFIG, /etc/coffre/coffre.toml, ~/.config/coffre/coffre.toml.
Start with `coffre config example`.";

/// Backs up the disks of machines into a vault, and brings them back.
#[derive(Debug, Parser)]
#[command(name = "coffre", version, about, long_about = None, after_long_help = EXIT_CODES)]
#[command(
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct Global {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options everywhere")]
    pub config: Option<PathBuf>,

    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "Options everywhere")]
    pub json: bool,

    /// Say more; twice for more still ($COFFRE_LOG and $RUST_LOG say it finer)
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Options everywhere")]
    pub verbose: u8,

    /// How logs are written on stderr: text, json (a document per line), or journald (a priority before each line)
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        value_enum,
        env = "COFFRE_LOG_FORMAT",
        hide_env = true,
        hide_possible_values = true,
        default_value = "text",
        hide_default_value = true,
        help_heading = "Options everywhere"
    )]
    pub log_format: LogFormat,

    /// Say only what went wrong
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Options everywhere"
    )]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
    Journald,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Init(InitArgs),
    Backup(BackupArgs),
    /// Back up what is due by its policy's schedule, as a service
    ///
    /// Runs in the foreground until it is stopped; examples/systemd/coffre.service is its unit. Jobs begin when they are due, by
    /// the `schedule` of the machines' policies; what was missed while nothing ran is caught up once; what failed is tried again
    /// within the policy's `retry-within`. After a good backup the points that the policy keeps no longer are forgotten.
    ///
    /// SIGHUP or a changed file makes it read its configuration again; one with an error is refused, and the old one stays. SIGTERM
    /// stops it at a safe place: applications are let go, snapshots are released, and the next start goes on with what was sent.
    #[command(after_long_help = "\
Examples:
  coffre run
  systemctl enable --now coffre
  systemctl reload coffre")]
    Run,
    Status(StatusArgs),
    Report(ReportArgs),
    Points(PointsArgs),
    Restore(RestoreArgs),
    Forget(ForgetArgs),
    Undelete(UndeleteArgs),
    Pin(PinArgs),
    Unpin(UnpinArgs),
    Verify(VerifyArgs),
    Clean(CleanArgs),
    Repair(RepairArgs),
    Key(KeyArgs),
    Jobs(JobsArgs),
    Config(ConfigArgs),
    Plugin(PluginArgs),
    /// Undo what a run of Coffre that was killed has left, and show that writes work again
    ///
    /// Thaws file systems, ends processes, lets locks and snapshots go that are still owed; then writes to every file system
    /// that the configuration may freeze. Every backup begins with the same; this is for a service's ExecStopPost, and for
    /// whoever wants to know. 0: all is well. 1: something is still owed, or a file system takes no writes.
    #[command(after_long_help = "\
Examples:
  coffre doctor
  ExecStopPost=/usr/bin/coffre doctor")]
    Doctor,
    Hook(HookArgs),
    Notify(NotifyArgs),
    /// Print metrics for Prometheus
    ///
    /// The same that `coffre run` serves at the address of [metrics], for hosts whose backups cron starts: the textfile collector of
    /// node_exporter takes it.
    #[command(after_long_help = "\
Examples:
  coffre metrics
  coffre metrics > /var/lib/node_exporter/coffre.prom")]
    Metrics,
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Make a new vault, and the recovery key that opens it when all else is lost
///
/// VAULT is the name of a [vault.NAME] table in the configuration. If that names a key file that does not exist
/// yet, it is made: 32 random bytes that only you may read. The recovery key opens the vault without that file.
/// It is shown once and stored nowhere: write it down, away from this machine.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre init main
  coffre init main --recovery-key-file /media/usb/coffre-main.recovery")]
pub struct InitArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    /// Write the recovery key into this new file (mode 0600) instead of showing it
    #[arg(long, value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
}

/// Back up machines: hooks, snapshot, transfer of what changed, recovery point
///
/// Without a machine's name, the configuration must have exactly one machine, or --all or --policy must choose. Several
/// machines go one after the other, or as many at once as `jobs` in the configuration says; when one fails, the others
/// still run and the exit code is 3. With --all or --policy, and not at a terminal (cron), only what went wrong is said;
/// -v says the rest.
///
/// Ctrl-C ends the job cleanly: applications are let go, the snapshot is released, no point is written.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre backup web01
  coffre backup web01 db01 --json
  coffre backup --all
  coffre backup --policy daily        # every machine with policy = \"daily\"
  coffre backup --due                 # every five minutes by cron, instead of `coffre run`")]
pub struct BackupArgs {
    /// Names of machines in the configuration
    #[arg(value_name = "MACHINE", conflicts_with_all = ["all", "policy"])]
    pub machines: Vec<String>,

    /// Every machine in the configuration
    #[arg(long)]
    pub all: bool,

    /// Every machine with this policy
    #[arg(long, value_name = "POLICY", conflicts_with = "all")]
    pub policy: Option<String>,

    /// Every machine that is due by its policy's schedule, as `coffre run` would, once
    #[arg(long, conflicts_with_all = ["machines", "all", "policy"])]
    pub due: bool,
}

/// Say whether every machine is safe
///
/// Worst first: the last good point and its age, the consistency it reached, when the next run is due, what runs now and how
/// far it is (in whichever process), and what is wrong with what to do about it. It asks what this host remembers and no
/// vault; --refresh reads the points in the vaults first, for what other hosts have changed.
///
/// A machine is safe while its newest good point (not forgotten, and at least as consistent as its policy accepts) is as new
/// as its schedule wants. Without a schedule, two days are a warning and seven not safe.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes, as monitoring has them:
    0  every machine is safe      2  some machine is not safe
    1  there is a warning         3  some machine's state is not known, or nothing is
   64  wrong usage

Examples:
  coffre status
  coffre status web01 --json
  coffre status --watch
  coffre status --refresh")]
pub struct StatusArgs {
    /// Only these machines
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,

    /// Read the machines' points in their vaults first
    #[arg(long)]
    pub refresh: bool,

    /// Stay, and show what runs as it goes on
    #[arg(long, conflicts_with = "refresh")]
    pub watch: bool,
}

/// Write a page about every machine, for people with a browser
///
/// One HTML file that needs nothing else and no network: what is not safe first, then for each machine a calendar of its
/// recovery points, sizes and changes over time, how long applications were held and file systems frozen, and which regions of each disk
/// changed. It is made from what this host remembers, like `coffre status`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre report --html /srv/www/backups.html
  coffre report --html web01.html web01 --refresh")]
pub struct ReportArgs {
    /// The file to write; one that is there is replaced
    #[arg(long, value_name = "FILE")]
    pub html: PathBuf,

    /// Only these machines
    #[arg(value_name = "MACHINE")]
    pub machines: Vec<String>,

    /// Read the machines' points in their vaults first
    #[arg(long)]
    pub refresh: bool,
}

/// List recovery points
///
/// Each recovery point restores the whole machine by itself. Its number is what `coffre restore MACHINE@POINT` takes.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre points
  coffre points web01
  coffre points web01 --json
  coffre points web01 --vault main    # a machine that is no longer in the configuration")]
pub struct PointsArgs {
    /// Only this machine
    #[arg(value_name = "MACHINE")]
    pub machine: Option<String>,

    /// Look into this vault (else: the machine's vault in the configuration, or all vaults)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Write a recovery point's disks back, verified while they are written
///
/// Without --disk, all disks are written into the folder PATH, one image file each. With --disk, that one disk is
/// written to PATH, an image file or a block device. A target that is smaller than the disk, mounted or not empty is
/// refused.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre restore web01 --to /srv/restored            # the newest point, all disks
  coffre restore web01@12 --to /srv/restored
  coffre restore web01 --disk vda --to /srv/vda.img
  coffre restore web01 --disk vda --to /dev/sdb --overwrite")]
pub struct RestoreArgs {
    /// The machine, and which of its points (the newest complete one if not said)
    #[arg(value_name = "MACHINE[@POINT]", value_parser = parse_target)]
    pub target: Target,

    /// Only this disk
    #[arg(long, value_name = "ID")]
    pub disk: Option<String>,

    /// The folder to write into; with --disk, the image file or block device
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,

    /// Write over what is in the target
    #[arg(long)]
    pub overwrite: bool,

    /// Where the point is damaged leave zeroes, say so and end with 1, instead of stopping
    #[arg(long)]
    pub skip_damaged: bool,

    /// Look into this vault (else: the machine's vault in the configuration, or the only vault)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Forget recovery points, by policy or by name: the first of two steps to delete them
///
/// MACHINE forgets what the `keep` of the machine's policy does not keep, MACHINE@POINT that one point. The answer is a
/// table that gives the reason for every point. Nothing is deleted yet: a forgotten point can be restored, and `coffre
/// undelete` keeps it again, until `coffre clean` purges it, 14 days later if the vault does not say otherwise
/// (`undelete-for`).
///
/// Pinned points stay, and so does the newest good point of a machine: one as consistent as the policy accepts.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre forget web01 --dry-run       # what would go and why
  coffre forget --all
  coffre forget web01@3 web01@4
  coffre forget old01 --retire        # all points of a machine that is not backed up any more")]
pub struct ForgetArgs {
    /// Machines, whose policies decide, or points by their numbers
    #[arg(value_name = "MACHINE[@POINT]", value_parser = parse_numbered, conflicts_with_all = ["all", "policy"])]
    pub targets: Vec<Target>,

    /// Every machine in the configuration, each by its policy
    #[arg(long)]
    pub all: bool,

    /// Every machine with this policy
    #[arg(long, value_name = "POLICY", conflicts_with = "all")]
    pub policy: Option<String>,

    /// Forget all points of the named machines, also the newest
    #[arg(long, conflicts_with_all = ["all", "policy"])]
    pub retire: bool,

    /// Only show what would be forgotten
    #[arg(long)]
    pub dry_run: bool,

    /// Look into this vault (else: the machine's vault in the configuration, or the only vault)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Keep a forgotten recovery point again
///
/// Possible until `coffre clean` purges the point; `coffre points` shows until when at least.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre undelete web01@3")]
pub struct UndeleteArgs {
    /// The machine and the point's number
    #[arg(value_name = "MACHINE@POINT", value_parser = parse_point)]
    pub point: PointName,

    /// Look into this vault (else: the machine's vault in the configuration, or the only vault)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Keep a recovery point whatever the policy says, until it is unpinned
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre pin web01@3
  coffre pin web01@3 --reason 'before the move to the new database'")]
pub struct PinArgs {
    /// The machine and the point's number
    #[arg(value_name = "MACHINE@POINT", value_parser = parse_point)]
    pub point: PointName,

    /// Why, for whoever wonders later; pinning again changes it
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Look into this vault (else: the machine's vault in the configuration, or the only vault)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Let the policy decide upon a pinned recovery point again
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre unpin web01@3")]
pub struct UnpinArgs {
    /// The machine and the point's number
    #[arg(value_name = "MACHINE@POINT", value_parser = parse_point)]
    pub point: PointName,

    /// Look into this vault (else: the machine's vault in the configuration, or the only vault)
    #[arg(long, value_name = "VAULT")]
    pub vault: Option<String>,
}

/// Check that a vault's recovery points can be restored
///
/// Reads the map of every point and the vault's index, and checks that each pack is there at its size. With --read-data,
/// also reads, opens and re-hashes every chunk and record; with --read-data=PERCENT so much of the packs, each run going on
/// where the last one on this host ended: 5% reads all of them in 20 runs.
///
/// What is damaged is named (points, disks, byte ranges) and quarantined: a record in the vault says so to all hosts,
/// nothing new relies on it, and the next backup of a machine that still has those bytes stores them again.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre verify main
  coffre verify main --read-data
  coffre verify main --read-data=5%
  coffre verify main --machine web01 --json")]
pub struct VerifyArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    /// Read and re-hash all data too, or a part of it that differs from run to run
    #[arg(
        long,
        value_name = "PERCENT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "100%"
    )]
    pub read_data: Option<Percentage>,

    /// Only this machine's points
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,

    /// Record nothing in the vault
    #[arg(long)]
    pub no_quarantine: bool,
}

/// Take out of a vault what nothing needs any more
///
/// Purges points that were forgotten longer ago than the vault's `undelete-for`, and frees what only they needed. That takes
/// two runs: one condemns packs, so that no backup builds upon them any more; a later one deletes them, once no backup that
/// was running then may rely on them. Backups, restores and other clean-ups may run beside it. Run it daily: each run
/// finishes what the one before has begun, and says what waits for what.
///
/// It stops before it deletes anything when clocks contradict each other, when something is missing or cannot be read,
/// and, without --force, when nobody has made a backup for a month or more than a fifth of the vault would go at once.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre clean main
  coffre clean main --dry-run
  coffre clean main --force --undelete-for 0s     # what is forgotten goes now")]
pub struct CleanArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,

    /// Say what would be done; write and delete nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Also when much goes at once, when the vault was idle for a month, and packs of any age
    #[arg(long)]
    pub force: bool,

    /// Purge what was forgotten at least this long ago, instead of the vault's `undelete-for`
    #[arg(long, value_name = "DURATION", value_parser = coffre_engine::config::parse_duration)]
    pub undelete_for: Option<Duration>,

    /// Leave packs that are younger than this [default: 72h]
    #[arg(long, value_name = "DURATION", value_parser = coffre_engine::config::parse_duration, conflicts_with = "force")]
    pub minimum_age: Option<Duration>,
}

/// Make good what a vault has lost and can be had from what is left
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre repair index main
  coffre repair log main")]
pub struct RepairArgs {
    #[command(subcommand)]
    pub command: RepairCommand,
}

#[derive(Debug, Subcommand)]
pub enum RepairCommand {
    Index(RepairIndexArgs),
    Log(RepairLogArgs),
}

/// Mend a clean-up log of which a record is damaged
///
/// The clean-up log says which packs are going and which are damaged, so where it cannot be read, backups and clean-ups stop
/// (restores do not). This writes down anew what it says without the damaged records, and nobody reads those any more.
/// Nothing is deleted or overwritten, and nothing is written where two damaged records together may hide something.
#[derive(Debug, Args)]
pub struct RepairLogArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,
}

/// Rebuild the vault's index from its packs
///
/// Without the index nothing can be found in a vault, but every pack says at its end what it holds. Packs that no readable
/// piece of the index lists are listed again. Nothing is deleted or overwritten; it may run beside backups.
#[derive(Debug, Args)]
pub struct RepairIndexArgs {
    /// The vault's name in the configuration
    #[arg(value_name = "VAULT")]
    pub vault: String,
}

/// What jobs did: phases, hooks, disks, outcomes
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre jobs
  coffre jobs list --machine web01 --limit 5
  coffre jobs show 20261123T020000-1f3a")]
#[command(args_conflicts_with_subcommands = true)]
pub struct JobsArgs {
    #[command(subcommand)]
    pub command: Option<JobsCommand>,
    #[command(flatten)]
    pub list: JobsList,
}

#[derive(Debug, Args)]
pub struct JobsList {
    /// Only this machine's
    #[arg(long, value_name = "MACHINE")]
    pub machine: Option<String>,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub limit: usize,
}

#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// The newest jobs (the default)
    List(JobsList),
    /// End a job that runs, whichever process it runs in: no point is written
    Cancel {
        /// A job's id, or enough of its start to be the only one; or the machine's name
        #[arg(value_name = "ID")]
        id: String,
    },
    /// One job, step by step
    Show {
        /// A job's id, or enough of its start to be the only one
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Check, show or begin a configuration
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre config example > coffre.toml
  coffre --config coffre.toml config check
  coffre config show --json")]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration, its plugins and its hooks can work; runs no hook and takes no snapshot
    Check,
    /// The configuration as it is understood: defaults filled in, secrets left out
    Show,
    /// An example to start from, every key explained
    Example {
        /// Which one (`--list` names them)
        #[arg(value_name = "NAME", default_value = "full")]
        name: String,
        /// List the examples
        #[arg(long)]
        list: bool,
    },
}

/// The plugins that are installed, what they ask for and what they were granted
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre plugin list
  coffre plugin inspect reflink
  coffre plugin inspect ./target/plugins/image.wasm --json")]
pub struct PluginArgs {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Every plugin in the plugin path
    List,
    /// One plugin: manifest, digest, pin, what it asks for and what it may
    Inspect {
        /// A plugin's name, or a .wasm file
        #[arg(value_name = "NAME|FILE")]
        plugin: String,
    },
}

/// Tell the channels of [notify.NAME] what is new, or try them
///
/// `coffre run` does so by itself; this is for hosts whose backups cron starts. A channel hears of a trouble once (a failed
/// backup, a missed run, a point worth less than wanted, a machine that is not safe), and once that the machine is safe again. What
/// could not be delivered is told the next time.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre notify
  coffre notify ops --test")]
pub struct NotifyArgs {
    /// Only this channel
    #[arg(value_name = "NAME")]
    pub channel: Option<String>,

    /// Send a message that says that it is a test, and tell no news
    #[arg(long)]
    pub test: bool,
}

/// Write the manual pages into a folder
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// A folder that is there
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coffre completions bash > /etc/bash_completion.d/coffre
  coffre completions zsh > ~/.zfunc/_coffre
  coffre completions fish > ~/.config/fish/completions/coffre.fish")]
pub struct CompletionsArgs {
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// `MACHINE` or `MACHINE@POINT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub machine: String,
    /// The newest one if not said.
    pub point: Option<u32>,
}

fn parse_target(text: &str) -> Result<Target, String> {
    let (machine, point) = match text.rsplit_once('@') {
        None => (text, None),
        Some((machine, "latest")) => (machine, None),
        Some((machine, number)) => {
            let number = number
                .parse()
                .map_err(|_| format!("`{number}` is not a point's number, as `coffre points {machine}` shows them"))?;
            (machine, Some(number))
        }
    };
    if machine.is_empty() {
        return Err("the machine's name is missing before the `@`".to_owned());
    }
    Ok(Target {
        machine: machine.to_owned(),
        point,
    })
}

/// As [`parse_target`], without `@latest`: what takes something away wants to be told exactly what.
fn parse_numbered(text: &str) -> Result<Target, String> {
    let target = parse_target(text)?;
    if target.point.is_none() && text.ends_with("@latest") {
        return Err(format!(
            "a point is named by its number here, as `coffre points {}` shows them",
            target.machine
        ));
    }
    Ok(target)
}

/// `MACHINE@POINT`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointName {
    pub machine: String,
    pub point: u32,
}

fn parse_point(text: &str) -> Result<PointName, String> {
    let Target { machine, point } = parse_numbered(text)?;
    match point {
        Some(point) => Ok(PointName { machine, point }),
        None => Err(format!(
            "which point? As in `{machine}@3`; `coffre points {machine}` shows their numbers"
        )),
    }
}

#[cfg(test)]
mod tests;
