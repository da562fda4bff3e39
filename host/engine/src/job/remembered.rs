//! What a job tells the book. The book serves those who look; a job never fails for it.

use coffre_vault::Point;
use jiff::Timestamp;

use super::view::JobView;
use crate::book::{Book, BookError};
use crate::error_chain::Chain;
use crate::journal::{JobRecord, JournalError};
use crate::state::State;

pub(super) struct Remembered {
    /// None: it cannot be opened, which was said.
    book: Option<Book>,
    state: State,
    machine: String,
    vault: String,
    job: String,
}

impl Remembered {
    pub fn of(state: &State, machine: &str, vault: &str, job: &str) -> Self {
        let book = Book::open(state);
        let book = book.inspect_err(|error| tracing::warn!("the job goes on without the book: {}", Chain(error)));
        Self {
            book: book.ok(),
            state: state.clone(),
            machine: machine.to_owned(),
            vault: vault.to_owned(),
            job: job.to_owned(),
        }
    }

    pub fn job_began(&self) {
        self.tell("the job", |book| self.write(book, &self.job));
    }

    /// Its own journal, and those of jobs that died and were ended by this one.
    pub fn job_ended(&self, point: Option<&Point>) {
        self.tell("the job", |book| {
            for job in book.open_jobs(&self.machine)? {
                self.write(book, &job)?;
            }
            Ok(())
        });
        if let Some(point) = point {
            self.tell("the point", |book| Ok(book.write_point(&self.vault, point)?));
        }
    }

    /// All points that the machine has in the vault.
    pub fn points(&self, now: Timestamp, points: &[Point]) {
        self.tell("the machine's points", |book| {
            Ok(book.write_points(&self.vault, &self.machine, points, now)?)
        });
    }

    fn write(&self, book: &Book, job: &str) -> Result<(), Untold> {
        let record = JobRecord::read(&self.state, &self.machine, job)?;
        let mut view = JobView::of(&record);
        // This process holds the journal, and what ended in it does not run any more.
        view.running &= view.outcome.is_none();
        Ok(book.write_job(&view)?)
    }

    fn tell(&self, what: &str, tell: impl FnOnce(&Book) -> Result<(), Untold>) {
        if let Some(book) = &self.book
            && let Err(error) = tell(book)
        {
            tracing::warn!(job = self.job, "{what} is not in the book: {}", Chain(&error));
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Untold {
    #[error(transparent)]
    Book(#[from] BookError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}
