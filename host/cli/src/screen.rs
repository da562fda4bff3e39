//! The one owner of stderr while progress bars stand there.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::{MultiProgress, ProgressDrawTarget};

/// Ten redraws a second: smooth to the eye, and nothing beside the work.
const REDRAWS_PER_SECOND: u8 = 10;

static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// The bars' place: made at the first use, which only happens at a terminal.
pub fn bars() -> &'static MultiProgress {
    BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND)))
}

/// Does what writes to the terminal while the bars are out of the way.
pub fn beside_the_bars<T>(write: impl FnOnce() -> T) -> T {
    match BARS.get() {
        Some(bars) => bars.suspend(write),
        None => write(),
    }
}

/// Writes to stderr, above the bars if there are any. That it cannot be written is nothing anybody could be told.
pub fn above(text: &[u8]) {
    beside_the_bars(|| {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text).and_then(|()| stderr.flush());
    });
}

/// A line on stderr.
pub fn note(text: &str) {
    above(format!("{text}\n").as_bytes());
}
