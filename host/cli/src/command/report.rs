//! `coffre report --html FILE`: one page about every machine, for whoever has a browser and nothing else.
//!
//! It is made from the book, as `coffre status` is, and from nothing that a browser would have to fetch: no script, no font, no
//! picture from elsewhere.

mod calendar;
mod chart;
mod page;
mod regions;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use coffre_engine::book::{Book, KnownPoint};
use coffre_engine::job::JobView;
use coffre_engine::state::State;
use coffre_engine::status::MachineStatus;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::status::{self, Look};
use crate::args::{Global, ReportArgs};
use crate::exit::Exit;
use crate::output::{Output, count, size};
use crate::wire;

/// More failures than a calendar can show differently.
const JOBS_READ: usize = 200;

#[derive(Serialize)]
struct Document {
    html: PathBuf,
    machines: usize,
    size_bytes: u64,
}

/// One machine with all that the page shows of it.
struct Chapter {
    status: MachineStatus,
    /// Oldest first.
    points: Vec<KnownPoint>,
    jobs: Vec<JobView>,
}

pub async fn run(args: &ReportArgs, global: &Global, output: &Output) -> anyhow::Result<Exit> {
    let config = wire::config(global)?;
    for name in &args.machines {
        config.machine(name)?;
    }
    let state = State::new(&config.coffre.state);
    let book = Book::open(&state).context("cannot open the book of what is known")?;
    if args.refresh {
        status::refresh(&config, &book, &args.machines).await?;
    }
    let now = Timestamp::now();
    let look = Look {
        config,
        state,
        book,
        machines: args.machines.clone(),
    };
    let mut chapters = Vec::new();
    for status in look.now(now)? {
        chapters.push(Chapter {
            points: look.book.points(&status.vault, &status.machine)?,
            jobs: look.book.jobs(Some(&status.machine), JOBS_READ)?,
            status,
        });
    }
    let page = page::page(&wire::host(), &chapters, now, &TimeZone::system());
    write(&args.html, &page).with_context(|| format!("cannot write {}", args.html.display()))?;
    let bytes = page.len() as u64;
    output.line(format!(
        "{}: {}, {}",
        args.html.display(),
        count(chapters.len(), "machine"),
        size(bytes)
    ))?;
    output.document(&Document {
        html: args.html.clone(),
        machines: chapters.len(),
        size_bytes: bytes,
    })?;
    Ok(Exit::Done)
}

/// Whole or not at all: a web server may be handing the old one out. With the rights that any new file gets, since that is
/// what whoever publishes it expects.
fn write(path: &Path, page: &str) -> std::io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let mut file = std::fs::File::create(&beside)?;
    file.write_all(page.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests;
