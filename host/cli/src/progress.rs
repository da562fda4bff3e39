//! Shows a running job: bars at a terminal, plain lines elsewhere, nothing when quiet.
//!
//! The work keeps counters; a thread here looks at them a few times a second, so that the work never waits for a terminal.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{Output, size, span};
use crate::screen;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a plain log gets a line per disk: an hour's backup is 120 lines per disk, which a person still reads.
const PLAIN_EVERY: Duration = Duration::from_secs(30);
/// Rates are averages over this long: shorter jumps about, longer lies after a pause.
const RATE_OVER: Duration = Duration::from_secs(5);
/// More bars than this do not fit a terminal of 24 lines; the others are counted in one line.
const MAX_BARS: usize = 16;

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// What is being done, as a person would say it.
    pub phase: String,
    pub disks: Vec<DiskView>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiskView {
    pub name: String,
    /// How much there is to do; grows while it is being found out.
    pub total_bytes: u64,
    pub done_bytes: u64,
    /// What has been found to differ, if that is a question here.
    pub changed_bytes: Option<u64>,
    pub stored_bytes: Option<u64>,
    pub finished: bool,
}

/// How to show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Bars,
    Lines,
    Nothing,
}

impl Style {
    /// `unattended`: a form of call that cron uses, where silence means success.
    pub fn choose(output: &Output, unattended: bool) -> Self {
        if output.quiet {
            Self::Nothing
        } else if output.terminal {
            Self::Bars
        } else if (unattended || output.json) && output.verbose == 0 {
            Self::Nothing
        } else {
            Self::Lines
        }
    }
}

/// Looks at a job until it is dropped or finished.
pub struct Watch {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// `title` says what the lines are about: a machine's or a vault's name.
    pub fn start(style: Style, title: &str, look: impl Fn() -> View + Send + 'static) -> Self {
        let mut painter: Box<dyn Painter> = match style {
            Style::Bars => Box::new(Bars::new(title)),
            Style::Lines => Box::new(Lines::new(title)),
            Style::Nothing => {
                return Self {
                    stop: None,
                    thread: None,
                };
            }
        };
        let (stop, stopped) = mpsc::channel();
        let thread = thread::Builder::new().name("progress".to_owned()).spawn(move || {
            loop {
                let ended = stopped.recv_timeout(LOOK_EVERY) != Err(RecvTimeoutError::Timeout);
                painter.paint(&look(), Instant::now());
                if ended {
                    break painter.end();
                }
            }
        });
        Self {
            stop: Some(stop),
            // Without a thread to show it the job runs unseen, which is better than not at all.
            thread: thread.ok(),
        }
    }

    /// Shows the last state and takes the bars away.
    pub fn finish(self) {}
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there is already on stderr, and hides nothing of the job.
            let _ = thread.join();
        }
    }
}

trait Painter: Send {
    fn paint(&mut self, view: &View, now: Instant);
    fn end(&mut self);
}

/// Bytes per second over the last while.
#[derive(Debug, Default)]
struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    fn sample(&mut self, now: Instant, bytes: u64) -> f64 {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > RATE_OVER {
            self.samples.pop_front();
        }
        let (since, first) = self.samples[0];
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds > 0.0 {
            bytes.saturating_sub(first) as f64 / seconds
        } else {
            0.0
        }
    }
}

/// `2.4 GiB of 4.2 GiB, 412 MiB/s, 4 s left, changed 79.5 MiB, stored 61.2 MiB`: what matters least comes last, where a
/// narrow terminal cuts it off.
fn describe(disk: &DiskView, rate: f64) -> Vec<String> {
    if disk.finished && disk.total_bytes == 0 {
        return vec!["nothing to read".to_owned()];
    }
    let mut words = vec![format!("{} of {}", size(disk.done_bytes), size(disk.total_bytes))];
    if !disk.finished {
        words.push(format!("{}/s", size(rate as u64)));
        let left = disk.total_bytes.saturating_sub(disk.done_bytes) as f64;
        if left > 0.0 && rate >= 1.0 {
            // Tenths of a second would only flicker, and nobody waits for 30 years.
            let seconds = (left / rate).ceil().min(1e9);
            words.push(format!("{} left", span(Duration::from_secs(seconds as u64))));
        }
    }
    words.extend(disk.changed_bytes.map(|bytes| format!("changed {}", size(bytes))));
    words.extend(disk.stored_bytes.map(|bytes| format!("stored {}", size(bytes))));
    words
}

fn percent(disk: &DiskView) -> u64 {
    // One that was stopped is finished too, though not done.
    if disk.finished && disk.done_bytes >= disk.total_bytes {
        100
    } else if disk.total_bytes == 0 {
        0
    } else {
        // Not 100 before it is finished.
        ((disk.done_bytes as f64 / disk.total_bytes as f64 * 100.0) as u64).min(99)
    }
}

struct Bars {
    title: String,
    head: ProgressBar,
    rows: Vec<(ProgressBar, Rate)>,
    more: Option<ProgressBar>,
}

impl Bars {
    fn new(title: &str) -> Self {
        let head = screen::bars().add(ProgressBar::new_spinner());
        head.set_style(style("{spinner} {msg}  {elapsed}"));
        head.set_message(title.to_owned());
        Self {
            title: title.to_owned(),
            head,
            rows: Vec::new(),
            more: None,
        }
    }
}

/// The templates are constants of this file, and a test draws them.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("a template of this file parses")
        .progress_chars("=> ")
}

impl Painter for Bars {
    fn paint(&mut self, view: &View, now: Instant) {
        let message = if view.phase.is_empty() {
            self.title.clone()
        } else {
            format!("{}: {}", self.title, view.phase)
        };
        self.head.set_message(message);
        self.head.tick();
        let width = view
            .disks
            .iter()
            .map(|disk| disk.name.chars().count())
            .max()
            .unwrap_or(0)
            .min(24);
        for (index, disk) in view.disks.iter().take(MAX_BARS).enumerate() {
            if index == self.rows.len() {
                let above = self.rows.last().map_or(&self.head, |(bar, _)| bar);
                let bar = screen::bars().insert_after(above, ProgressBar::new(100));
                bar.set_style(style("  {prefix} [{bar:12}] {percent:>3}%  {wide_msg}"));
                self.rows.push((bar, Rate::default()));
            }
            let (bar, rate) = &mut self.rows[index];
            bar.set_prefix(format!("{:width$}", disk.name));
            bar.set_position(percent(disk));
            bar.set_message(describe(disk, rate.sample(now, disk.done_bytes)).join("  "));
        }
        let unseen = view.disks.get(MAX_BARS..).unwrap_or_default();
        if !unseen.is_empty() {
            let above = self.rows.last().map_or(&self.head, |(bar, _)| bar);
            let line = self.more.get_or_insert_with(|| {
                let line = screen::bars().insert_after(above, ProgressBar::new_spinner());
                line.set_style(style("  {wide_msg}"));
                line
            });
            let finished = unseen.iter().filter(|disk| disk.finished).count();
            line.set_message(format!("and {} more disks, {finished} of them finished", unseen.len()));
        }
    }

    fn end(&mut self) {
        // The result's lines say what became of it; bars left standing would only be in their way.
        for (bar, _) in self.rows.drain(..) {
            bar.finish_and_clear();
        }
        if let Some(line) = self.more.take() {
            line.finish_and_clear();
        }
        self.head.finish_and_clear();
    }
}

struct Lines {
    title: String,
    phase: String,
    rows: Vec<Row>,
    next: Option<Instant>,
    write: fn(&str),
}

#[derive(Default)]
struct Row {
    rate: Rate,
    finished: bool,
}

impl Lines {
    fn new(title: &str) -> Self {
        Self {
            title: title.to_owned(),
            phase: String::new(),
            rows: Vec::new(),
            next: None,
            write: screen::note,
        }
    }

    /// What there is to say since the last look.
    fn lines(&mut self, view: &View, now: Instant) -> Vec<String> {
        let phase = (view.phase != self.phase).then(|| format!("{}: {}", self.title, view.phase));
        self.phase.clone_from(&view.phase);
        let next = *self.next.get_or_insert(now + PLAIN_EVERY);
        let due = now >= next;
        if due {
            self.next = Some(now + PLAIN_EVERY);
        }
        let known = self.rows.len();
        self.rows.resize_with(known.max(view.disks.len()), Row::default);
        let mut lines = Vec::new();
        for (row, disk) in self.rows.iter_mut().zip(&view.disks) {
            let rate = row.rate.sample(now, disk.done_bytes);
            let just_finished = disk.finished && !row.finished;
            row.finished = disk.finished;
            if just_finished || (due && !disk.finished && disk.total_bytes > 0) {
                let how_far = describe(disk, rate).join(", ");
                lines.push(format!("{}: {} {} %, {how_far}", self.title, disk.name, percent(disk)));
            }
        }
        // Disks that were there before, or have ended already, ended in the phase before; others begin in the new one.
        let ended = known > 0 || view.disks.iter().all(|disk| disk.finished);
        let place = if ended { lines.len() } else { 0 };
        if let Some(phase) = phase {
            lines.insert(place, phase);
        }
        lines
    }
}

impl Painter for Lines {
    fn paint(&mut self, view: &View, now: Instant) {
        for line in self.lines(view, now) {
            (self.write)(&line);
        }
    }

    fn end(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(done_bytes: u64, finished: bool) -> DiskView {
        DiskView {
            name: "vda".to_owned(),
            total_bytes: 4 << 30,
            done_bytes,
            changed_bytes: Some(80 << 20),
            stored_bytes: Some(61 << 20),
            finished,
        }
    }

    fn view(phase: &str, disks: Vec<DiskView>) -> View {
        View {
            phase: phase.to_owned(),
            disks,
        }
    }

    #[test]
    fn plain_lines_come_with_phases_with_finished_disks_and_every_half_minute() {
        let mut lines = Lines::new("web01");
        let start = Instant::now();
        let mut said = Vec::new();
        said.extend(lines.lines(&view("snapshot", vec![]), start));
        said.extend(lines.lines(&view("transfer", vec![disk(0, false)]), start));
        said.extend(lines.lines(
            &view("transfer", vec![disk(1 << 30, false)]),
            start + Duration::from_secs(10),
        ));
        said.extend(lines.lines(
            &view("transfer", vec![disk(2 << 30, false)]),
            start + Duration::from_secs(30),
        ));
        said.extend(lines.lines(
            &view("transfer", vec![disk(4 << 30, true)]),
            start + Duration::from_secs(50),
        ));
        said.extend(lines.lines(
            &view("transfer", vec![disk(4 << 30, true)]),
            start + Duration::from_secs(90),
        ));
        insta::assert_snapshot!(said.join("\n"), @r"
        web01: snapshot
        web01: transfer
        web01: vda 50 %, 2 GiB of 4 GiB, 51.2 MiB/s, 40 s left, changed 80 MiB, stored 61 MiB
        web01: vda 100 %, 4 GiB of 4 GiB, changed 80 MiB, stored 61 MiB
        ");
    }

    #[test]
    fn bars_draw_and_go_away() {
        let mut bars = Bars::new("web01");
        let disks = (0..MAX_BARS + 3).map(|_| disk(1 << 30, false)).collect();
        bars.paint(&view("transfer", disks), Instant::now());
        assert_eq!((bars.rows.len(), bars.more.is_some()), (MAX_BARS, true));
        bars.end();
    }

    #[test]
    fn cron_hears_nothing_and_a_pipe_hears_lines() {
        let output = |quiet, verbose, terminal| Output {
            json: false,
            quiet,
            verbose,
            terminal,
        };
        assert_eq!(Style::choose(&output(false, 0, true), true), Style::Bars);
        assert_eq!(Style::choose(&output(false, 0, false), true), Style::Nothing);
        assert_eq!(Style::choose(&output(false, 1, false), true), Style::Lines);
        assert_eq!(Style::choose(&output(false, 0, false), false), Style::Lines);
        assert_eq!(Style::choose(&output(true, 0, true), false), Style::Nothing);
    }
}
