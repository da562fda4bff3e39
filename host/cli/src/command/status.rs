//! `coffre status`: whether every machine is safe, without asking a vault.

mod view;
mod watch;

use std::io::IsTerminal;

use anyhow::Context;
use coffre_engine::book::Book;
use coffre_engine::config::Config;
use coffre_engine::live;
use coffre_engine::state::State;
use coffre_engine::status::{Due, Known, Level, MachineStatus, judge, worst};
use jiff::Timestamp;

use crate::args::{Global, StatusArgs};
use crate::exit::{Complaint, Exit, judge as judge_error};
use crate::output::Output;
use crate::{book, stop, wire};
use view::Document;

/// What goes wrong is no good news either: for monitoring, the state is not known.
pub async fn run(args: &StatusArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    look(args, global, output)
        .await
        .map_err(|error| match judge_error(&error).exit {
            exit @ (Exit::Usage | Exit::Cancelled) => error.context(unknown(exit)),
            _ => error.context(unknown(Exit::Unknown)),
        })
}

fn unknown(exit: Exit) -> Complaint {
    Complaint {
        exit: Some(exit),
        text: "the state of the machines is not known".to_owned(),
        hint: None,
    }
}

async fn look(args: &StatusArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    for name in &args.machines {
        config.machine(name)?;
    }
    let state = State::new(&config.coffre.state);
    let book = Book::open(&state).context("cannot open the book of what is known")?;
    if args.refresh {
        stop::or_dropped(refresh(&config, &book, &args.machines)).await?;
    }
    let look = Look {
        config,
        state,
        book,
        machines: args.machines.clone(),
    };
    if args.watch {
        if !std::io::stdout().is_terminal() || output.json {
            let hint = "leave --watch out, or run `coffre status --json` as often as you like";
            return Err(Complaint::usage("--watch needs a terminal", hint).into());
        }
        return watch::run(&look).await;
    }
    let now = Timestamp::now();
    let machines = look.now(now)?;
    output.result(view::text(&machines, now))?;
    output.document(&Document::new(&machines, now))?;
    Ok(exit(worst(&machines)))
}

/// For monitoring, as its plugins have it; promised in docs/cli.md.
fn exit(level: Level) -> Exit {
    match level {
        Level::Safe => Exit::Done,
        Level::Warning => Exit::Warning,
        Level::NotSafe => Exit::NotSafe,
        Level::Unknown => Exit::Unknown,
    }
}

/// What is looked at, once or again and again.
pub struct Look {
    pub config: Config,
    pub state: State,
    pub book: Book,
    /// None: all.
    pub machines: Vec<String>,
}

impl Look {
    pub fn now(&self, now: Timestamp) -> anyhow::Result<Vec<MachineStatus>> {
        let running = live::running(&self.config.coffre.run, &self.state)?;
        let known = Known::read(&self.book, running).context("cannot read the book of what is known")?;
        let mut machines = judge(&self.config, &known, |_| Due::default(), now);
        if !self.machines.is_empty() {
            machines.retain(|machine| self.machines.contains(&machine.machine));
        }
        Ok(machines)
    }
}

/// Reads the points of the machines in their vaults. What cannot be reached is said, and the rest is read all the same.
pub async fn refresh(config: &Config, known: &Book, machines: &[String]) -> anyhow::Result<()> {
    let wanted = |name: &String| machines.is_empty() || machines.contains(name);
    for vault in config.vaults.keys() {
        let here = config.machines.values().filter(|machine| machine.vault == *vault);
        let names: Vec<&str> = here
            .filter(|machine| wanted(&machine.name))
            .map(|machine| machine.name.as_str())
            .collect();
        if names.is_empty() {
            continue;
        }
        let read = async {
            let open = wire::open_vault(config, vault).await?;
            book::read_points(known, &open, &names).await
        };
        if let Err(error) = read.await {
            let error = error.context(format!("what vault `{vault}` has is not read anew"));
            crate::screen::above(crate::report::Report::new(&error).render(false).as_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use coffre_engine::DiskId;
    use coffre_engine::book::{LastJob, Newest, Shelf, Turn, TurnState};
    use coffre_engine::config::PolicyConfig;
    use coffre_engine::journal::JobOutcome;
    use coffre_engine::live::RunningJob;
    use coffre_engine::progress::{DiskView, Phase, ProgressView};
    use coffre_vault::Consistency;

    use super::*;

    pub fn now() -> Timestamp {
        hour(0)
    }

    fn hour(hours: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
    }

    fn due(_: &PolicyConfig) -> Due {
        Due {
            last: Some(hour(-3)),
            before_last: Some(hour(-27)),
            next: Some(hour(21)),
        }
    }

    fn newest(machine: &str, hours: i64, reached: Consistency) -> Newest {
        Newest {
            vault: "main".to_owned(),
            machine: machine.to_owned(),
            reached,
            number: 12,
            taken_at: hour(hours),
            size_bytes: 8 << 30,
        }
    }

    /// Four machines: one that failed for long, one nobody knows, one downgraded, one safe and running.
    pub fn machines() -> Vec<MachineStatus> {
        let mut config = "[vault.main]\nurl = \"vault\"\nencryption = \"none\"\n".to_owned();
        for name in ["db01", "new01", "mail01", "web01"] {
            config.push_str(&format!(
                "[machine.{name}]\nprovider = \"image\"\nfreeze = [\"/srv/{name}\"]\n"
            ));
        }
        let config = Config::parse(Path::new("/etc/coffre/coffre.toml"), &config).unwrap();
        let failed = LastJob {
            id: "20260921T110000-0001".to_owned(),
            started_at: Some(hour(-3)),
            ended_at: Some(hour(-3)),
            outcome: Some(JobOutcome::Failed),
            error: Some("transfer the disks: the store is full".to_owned()),
            hint: Some("make room, then run it again".to_owned()),
            point: None,
        };
        let missed = Turn {
            due: hour(-3),
            attempts: 3,
            try_at: None,
            state: TurnState::Failed,
            error: Some("transfer the disks: the store is full".to_owned()),
        };
        let running = RunningJob {
            machine: "web01".to_owned(),
            job: "20260921T140000-0002".to_owned(),
            process: 4711,
            since: Timestamp::from_second(now().as_second() - 95).unwrap(),
            at: now(),
            progress: ProgressView {
                job: None,
                phase: Phase::Transfer,
                step: None,
                disks: vec![DiskView {
                    id: DiskId("vda".to_owned()),
                    size_bytes: 8 << 30,
                    to_read_bytes: 4 << 30,
                    read_bytes: 3 << 30,
                    changed_bytes: 80 << 20,
                    stored_bytes: 61 << 20,
                    finished: false,
                }],
                notes: Vec::new(),
            },
        };
        let shelf = |machine: &str| {
            let shelf = Shelf {
                points: 12,
                stored_bytes: 5 << 30,
            };
            (("main".to_owned(), machine.to_owned()), shelf)
        };
        let known = Known {
            newest: vec![
                newest("db01", -99, Consistency::FileSystem),
                newest("mail01", -2, Consistency::Crash),
                newest("web01", -3, Consistency::FileSystem),
            ],
            shelves: BTreeMap::from(["db01", "mail01", "web01"].map(shelf)),
            turns: BTreeMap::from([("db01".to_owned(), missed)]),
            last_jobs: BTreeMap::from([("db01".to_owned(), failed)]),
            running: vec![running],
            ..Known::default()
        };
        judge(&config, &known, due, now())
    }

    #[test]
    fn it_reads_well() {
        insta::assert_snapshot!(view::text(&machines(), now()));
    }

    #[test]
    fn its_document_has_what_the_page_promises() {
        let machines = machines();
        let document = serde_json::to_string_pretty(&view::Document::new(&machines, now())).unwrap();
        insta::assert_snapshot!(document);
    }

    #[test]
    fn nothing_to_protect_is_said() {
        insta::assert_snapshot!(view::text(&[], now()), @"the configuration has no machines");
    }

    #[test]
    fn it_exits_as_monitoring_wants() {
        let codes = Level::ALL.map(|level| exit(level).code());
        assert_eq!(codes, [0, 1, 3, 2]);
        assert_eq!(exit(worst(&machines())), Exit::NotSafe);
    }
}
