//! Logs on stderr, above the progress bars and never through them.

use std::io::{self, IsTerminal, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::args::Global;
use crate::exit::Complaint;
use crate::screen;

const OURS: [&str; 4] = ["coffre", "coffre_engine", "coffre_sandbox", "coffre_vault"];

/// Starts logging: `COFFRE_LOG`, else `RUST_LOG`, else what `-v` and `-q` say.
pub fn start(global: &Global) -> anyhow::Result<()> {
    let filter = match said_by_environment() {
        Some((name, text)) => EnvFilter::try_new(&text).map_err(|error| {
            Complaint::usage(
                format!("${name} is not a log filter: {error}"),
                "for example: info, or coffre_vault=debug,warn",
            )
        })?,
        None => EnvFilter::new(by_flags(global)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveTheBars)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
    // At a terminal the times are the reader's; journald and cron's mail want them said, and so does whoever wants detail.
    let started = if io::stderr().is_terminal() && global.verbose < 2 {
        builder.without_time().with_target(false).try_init()
    } else {
        builder.try_init()
    };
    // Somebody else's subscriber (a test's) is as good.
    let _ = started;
    Ok(())
}

fn said_by_environment() -> Option<(&'static str, String)> {
    ["COFFRE_LOG", "RUST_LOG"].into_iter().find_map(|name| {
        std::env::var(name)
            .ok()
            .filter(|text| !text.is_empty())
            .map(|text| (name, text))
    })
}

fn by_flags(global: &Global) -> String {
    let (ours, others) = match (global.quiet, global.verbose) {
        (true, _) => ("error", "error"),
        (false, 0) => ("warn", "error"),
        (false, 1) => ("info", "warn"),
        (false, 2) => ("debug", "info"),
        (false, _) => ("trace", "debug"),
    };
    let mut filter = others.to_owned();
    for name in OURS {
        filter.push_str(&format!(",{name}={ours}"));
    }
    if global.verbose == 0 {
        // What a job finds worth a warning stands in its result, which is shown when it ends.
        filter.push_str(",coffre_engine::job=error");
    }
    filter
}

struct AboveTheBars;

impl<'writer> MakeWriter<'writer> for AboveTheBars {
    type Writer = Line;

    fn make_writer(&'writer self) -> Line {
        Line(Vec::new())
    }
}

/// One event, written whole when the subscriber lets go of it.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        screen::above(&self.0);
    }
}
