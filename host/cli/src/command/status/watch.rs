//! `coffre status --watch`: the same, alive, on a screen of its own that is left as it was found.

use std::io::{self, Write};
use std::time::Duration;

use coffre_engine::status::MachineStatus;
use jiff::Timestamp;

use super::Look;
use super::view::{rows, running, since, summary};
use crate::exit::Exit;
use crate::output::{size, span, terminal_columns, terminal_rows, time};
use crate::stop;

/// Running jobs say once a second how far they are.
const EVERY: Duration = Duration::from_secs(1);
/// A terminal that does not know how large it is.
const ROWS: usize = 24;
const COLUMNS: usize = 100;

/// The other screen, without a cursor; and back. (xterm's control sequences, which every terminal of today knows.)
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Until it is told to stop, which is no failure.
pub async fn run(look: &Look) -> anyhow::Result<Exit> {
    let screen = Screen::enter()?;
    let mut ticks = tokio::time::interval(EVERY);
    let stopped = stop::asked();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            stopped = &mut stopped => {
                stopped?;
                return Ok(Exit::Done);
            }
            _ = ticks.tick() => {
                let now = Timestamp::now();
                let machines = look.now(now)?;
                let rows = terminal_rows().unwrap_or(ROWS);
                screen.show(&frame(&machines, now, rows, terminal_columns().unwrap_or(COLUMNS)))?;
            }
        }
    }
}

struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        let mut stdout = io::stdout();
        stdout.write_all(ENTER.as_bytes())?;
        Ok(Self)
    }

    fn show(&self, lines: &[String]) -> io::Result<()> {
        // Written over, line by line, and what is left below is cleared: nothing flickers.
        let mut text = "\x1b[H".to_owned();
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        let mut stdout = io::stdout();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        // A terminal that is gone has nothing to be left.
        let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// What fits on a screen: what runs, disk by disk, then the machines, worst first.
fn frame(machines: &[MachineStatus], now: Timestamp, rows_there: usize, columns: usize) -> Vec<String> {
    let mut lines = vec![
        format!("{}    {}    Ctrl-C ends this", time(now), summary(machines)),
        String::new(),
    ];
    for machine in machines {
        let Some(job) = &machine.running else { continue };
        let took = span(since(job, now).unsigned_abs());
        lines.push(format!("{}: {}, since {took}", machine.machine, running(job)));
        for disk in &job.progress.disks {
            lines.push(format!("  {}", bar(disk)));
        }
    }
    if lines.len() > 2 {
        lines.push(String::new());
    }
    lines.extend(rows(machines, now).lines().map(str::to_owned));
    for line in &mut lines {
        if let Some((cut, _)) = line.char_indices().nth(columns) {
            line.truncate(cut);
        }
    }
    if lines.len() > rows_there {
        lines.truncate(rows_there.saturating_sub(1));
        lines.push("… there is more than fits on this screen".to_owned());
    }
    lines
}

fn bar(disk: &coffre_engine::progress::DiskView) -> String {
    const WIDTH: u64 = 24;
    let done = disk.read_bytes.min(disk.to_read_bytes);
    let full = (done * WIDTH).checked_div(disk.to_read_bytes).unwrap_or(0);
    let line: String = (0..WIDTH).map(|at| if at < full { '#' } else { '.' }).collect();
    format!(
        "{:12} [{line}] {} of {}, changed {}, stored {}",
        disk.id.to_string(),
        size(done),
        size(disk.to_read_bytes),
        size(disk.changed_bytes),
        size(disk.stored_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{machines, now};
    use super::*;

    #[test]
    fn a_frame_shows_what_runs_disk_by_disk() {
        let lines = frame(&machines(), now(), 40, 120).join("\n");
        insta::assert_snapshot!(lines.split_once("    ").unwrap().1);
    }

    #[test]
    fn a_frame_fits_on_its_screen() {
        let lines = frame(&machines(), now(), 6, 30);
        assert_eq!(lines.len(), 6);
        assert!(lines.iter().all(|line| line.chars().count() <= 41), "{lines:?}");
        assert!(lines[5].contains("more than fits"));
    }
}
