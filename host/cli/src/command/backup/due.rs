//! `coffre backup --due`: what the service would start now, once, for those who stay with cron.

use coffre_engine::book::Book;
use coffre_engine::job::BackupReport;
use coffre_engine::scheduler::{Action, Ended, Fate, Places, Scheduler};
use coffre_engine::state::{SchedulerLock, State};
use coffre_engine::{Chain, Clock, SystemClock};

use crate::backing::Backing;
use crate::command::{forget, run};
use crate::exit::Exit;
use crate::output::{count, time};
use crate::report::Report;
use crate::screen;

/// The scheduler of one call; while it is there, nobody else runs what is due.
pub struct Due {
    scheduler: Scheduler,
    book: Book,
    _lock: SchedulerLock,
}

impl Due {
    /// Finds the machines that are due, and writes down that they are being seen to.
    pub async fn find(backing: &Backing) -> anyhow::Result<(Self, Vec<String>)> {
        let now = SystemClock.now();
        let state = State::new(&backing.config.coffre.state);
        let lock = state.lock_scheduler(&format!("coffre backup --due since {}", time(now)))?;
        let book = Book::open(&state)?;
        // How many go at once is seen to by the command.
        let places = Places::new(usize::MAX, usize::MAX);
        let mut scheduler = run::scheduler_of(backing, &book, places, now).await?;
        let mut machines = Vec::new();
        for action in scheduler.tick(now) {
            match action {
                Action::Start { machine, .. } => machines.push(machine),
                Action::Tell(account) if account.fate == Fate::Missed => screen::note(&format!(
                    "{}: missed {} from {} to {}",
                    account.machine,
                    count(account.count as usize, "backup"),
                    time(account.first),
                    time(account.last)
                )),
                Action::Tell(_) | Action::Transfer { .. } => {}
            }
        }
        let mut due = Self {
            scheduler,
            book,
            _lock: lock,
        };
        due.write();
        Ok((due, machines))
    }

    /// Takes down how a machine's backup ended, and forgets what its policy keeps no longer after a good one.
    pub async fn ended(&mut self, backing: &Backing, machine: &str, result: &anyhow::Result<BackupReport>) {
        let how = match result {
            Ok(_) => Ended::Done,
            Err(error) => match Report::new(error).exit {
                // By a signal: a shutdown, most likely.
                Exit::Cancelled => Ended::Stopped,
                exit => Ended::Failed {
                    error: format!("{error:#}"),
                    again: !matches!(exit, Exit::Config | Exit::Usage),
                },
            },
        };
        self.scheduler.ended(machine, how, SystemClock.now());
        self.write();
        if let Ok(report) = result
            && let Err(error) = forget::after_backup(backing, machine, &report.vault).await
        {
            let about = format!("{machine}: what its policy keeps no longer: ");
            screen::above(Report::new(&error).render_for(&about, false).as_bytes());
        }
    }

    fn write(&mut self) {
        for (machine, turn) in self.scheduler.take_changed() {
            if let Err(error) = self.book.write_turn(&machine, &turn) {
                screen::note(&format!("{machine}: its turn is not in the book: {}", Chain(&error)));
            }
        }
    }
}
