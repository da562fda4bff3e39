//! What goes to stdout: text and tables for people, or one JSON document; and how sizes and times are written.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::args::Global;
use crate::screen;

/// Where a command's results go. Progress and logs go to stderr, never here.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    pub json: bool,
    pub quiet: bool,
    pub verbose: u8,
    /// Stderr is a terminal: bars can be drawn there.
    pub terminal: bool,
}

impl Output {
    pub fn new(global: &Global) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            terminal: io::stderr().is_terminal() && !dumb,
        }
    }

    /// Colours on stderr, unless NO_COLOR says otherwise (no-color.org).
    pub fn colour(&self) -> bool {
        self.terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
    }

    /// One line of a result; nothing with `--json`, which prints one document instead.
    pub fn line(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        if self.json || self.quiet {
            return Ok(());
        }
        write_stdout(&format!("{}\n", text.as_ref()))
    }

    /// The result itself, which is printed however quiet.
    pub fn result(&self, text: impl AsRef<str>) -> anyhow::Result<()> {
        if self.json {
            return Ok(());
        }
        write_stdout(text.as_ref())
    }

    /// The command's one JSON document; nothing without `--json`.
    pub fn document(&self, document: &impl Serialize) -> anyhow::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut text = serde_json::to_string_pretty(document).context("write the result as JSON")?;
        text.push('\n');
        write_stdout(&text)
    }
}

/// How wide the terminal is that stdout is; none where it is none, or does not know.
pub fn terminal_columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// How many lines it has.
pub fn terminal_rows() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_row)).filter(|rows| *rows > 0)
}

/// A reader that has gone (`coffre points | head -1`) is no failure.
fn write_stdout(text: &str) -> anyhow::Result<()> {
    let written = screen::beside_the_bars(|| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write to stdout"),
    }
}

/// A table without lines; columns in `right` hold numbers.
pub fn table(headers: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.iter().copied());
    for row in rows {
        table.add_row(row);
    }
    let columns = headers.len();
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index + 1 == columns { 0 } else { 2 }));
        if right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.trim_fmt();
    text.push('\n');
    text
}

/// `1.5 GiB`: powers of 1024, three digits at most.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    };
    format!("{} {}", digits.strip_suffix(".0").unwrap_or(&digits), UNITS[unit])
}

/// `85 ms`, `2.4 s`, `40 s`, `3 min 20 s`, `1 h 05 min`.
pub fn span(duration: Duration) -> String {
    let ms = duration.as_millis();
    let seconds = duration.as_secs();
    if ms < 1000 {
        format!("{ms} ms")
    } else if ms < 60_000 {
        let digits = format!("{:.1}", duration.as_secs_f64());
        format!("{} s", digits.strip_suffix(".0").unwrap_or(&digits))
    } else if seconds < 3600 {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    } else {
        format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60)
    }
}

/// How long applications were held, and how much of it is our own doing.
pub fn held(held_ms: u64, overhead_ms: Option<u64>) -> String {
    let overhead = overhead_ms.map(|ms| format!(" ({ms} ms of it neither in hooks nor in the snapshot)"));
    format!(
        "{}{}",
        span(Duration::from_millis(held_ms)),
        overhead.unwrap_or_default()
    )
}

/// Local time to the second; JSON has UTC instead.
pub fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system())
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// `1 disk`, `2 disks`.
pub fn count(number: usize, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{number} {one}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_well() {
        let sizes: Vec<String> = [0, 1023, 1024, 1_048_575, 1_048_576, 83_361_792, 900 << 20, 8 << 40]
            .map(size)
            .into();
        assert_eq!(
            sizes,
            [
                "0 B", "1023 B", "1 KiB", "1 MiB", "1 MiB", "79.5 MiB", "900 MiB", "8 TiB"
            ]
        );
        let spans: Vec<String> = [85, 2_440, 200_000, 3_900_000]
            .map(|ms| span(Duration::from_millis(ms)))
            .into();
        assert_eq!(spans, ["85 ms", "2.4 s", "3 min 20 s", "1 h 05 min"]);
    }

    #[test]
    fn a_table_is_aligned_and_has_no_trailing_blanks() {
        let rows = vec![
            vec!["web01".to_owned(), "7".to_owned()],
            vec!["a".to_owned(), "12".to_owned()],
        ];
        insta::assert_snapshot!(table(&["MACHINE", "POINT"], &[1], rows), @r"
        MACHINE  POINT
        web01        7
        a           12
        ");
    }
}
