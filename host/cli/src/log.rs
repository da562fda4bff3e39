//! Logs on stderr, above the progress bars and never through them.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::args::{Global, LogFormat};
use crate::exit::Complaint;
use crate::report::Report;
use crate::screen;

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

const OURS: [&str; 4] = ["coffre", "coffre_engine", "coffre_sandbox", "coffre_vault"];

/// Starts logging: `COFFRE_LOG`, else `RUST_LOG`, else what `-v` and `-q` say.
pub fn start(global: &Global) -> anyhow::Result<()> {
    let _ = FORMAT.set(global.log_format);
    let filter = match said_by_environment() {
        Some((name, text)) => EnvFilter::try_new(&text).map_err(|error| {
            Complaint::usage(
                format!("${name} is not a log filter: {error}"),
                "for example: info, or coffre_vault=debug,warn",
            )
        })?,
        None => EnvFilter::new(by_flags(global)),
    };
    let plain = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveTheBars);
    let builder = match global.log_format {
        LogFormat::Text => plain
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())),
        LogFormat::Json => {
            let _ = plain.json().flatten_event(true).with_ansi(false).try_init();
            return Ok(());
        }
        LogFormat::Journald => {
            let _ = plain.with_ansi(false).event_format(WithPriority).try_init();
            return Ok(());
        }
    };
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

/// A line of a service about what it does: on stderr for people, an event for programs.
pub fn say(text: &str) {
    match FORMAT.get() {
        None | Some(LogFormat::Text) => screen::note(text),
        Some(LogFormat::Json | LogFormat::Journald) => tracing::info!("{text}"),
    }
}

/// What went wrong and the service goes on from, likewise. `about` stands before the message.
pub fn complain(about: &str, report: &Report) {
    match FORMAT.get() {
        None | Some(LogFormat::Text) => screen::above(report.render_for(about, false).as_bytes()),
        Some(LogFormat::Json | LogFormat::Journald) => {
            let (causes, hints) = (report.causes.join(": "), report.hints.join("; "));
            tracing::error!(causes, hints, "{about}{}", report.message);
        }
    }
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
    if global.log_format != LogFormat::Text && global.verbose == 0 && !global.quiet {
        // What a service says of itself is an event then.
        filter.push_str(",coffre::log=info");
    }
    filter
}

/// A line per event as journald reads it from a service's stderr: `<4>` and the like say how serious it is, and the time is
/// journald's own (sd-daemon(3)).
struct WithPriority;

impl<S, N> FormatEvent<S, N> for WithPriority
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        // Each line of it: one without would be taken for news of its own, and of no importance.
        for line in text.lines() {
            writeln!(writer, "<{priority}>{line}")?;
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Kept {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn every_line_for_journald_has_its_priority() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(kept.clone())
            .with_ansi(false)
            .with_max_level(Level::TRACE)
            .event_format(WithPriority)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(job = "20261123T020000-1f3a", "no room\nhint: make some");
            tracing::warn!("careful");
            tracing::info!("begun");
            tracing::debug!("detail");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        insta::assert_snapshot!(text, @r#"
        <3>no room
        <3>hint: make some job="20261123T020000-1f3a"
        <4>careful
        <6>begun
        <7>detail
        "#);
    }
}
