//! The one owner of stderr while progress bars stand there.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

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

/// How much of what is said while something is frozen is kept; the oldest goes first. Far more than a job says in the
/// seconds of a freeze.
const KEPT_BYTES: usize = 256 * 1024;

/// What was said while something was frozen.
static KEPT: Mutex<VecDeque<u8>> = Mutex::new(VecDeque::new());

/// Writes to stderr, above the bars if there are any. That it cannot be written is nothing anybody could be told.
///
/// While this process holds a freeze it is kept in memory: a stderr that is a file on what is frozen would hold the very
/// thread that is to thaw it.
pub fn above(text: &[u8]) {
    let kept = {
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        keep(&mut kept, text);
        if coffre_guard::anything_frozen() {
            return;
        }
        std::mem::take(&mut *kept)
    };
    write(&Vec::from(kept));
}

/// Writes what was kept, at the end.
pub fn flush() {
    above(&[]);
}

fn keep(kept: &mut VecDeque<u8>, text: &[u8]) {
    kept.extend(text);
    let too_many = kept.len().saturating_sub(KEPT_BYTES);
    kept.drain(..too_many);
}

fn write(text: &[u8]) {
    if text.is_empty() {
        return;
    }
    beside_the_bars(|| {
        let mut stderr = io::stderr().lock();
        let _ = stderr.write_all(text).and_then(|()| stderr.flush());
    });
}

/// A line on stderr.
pub fn note(text: &str) {
    above(format!("{text}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_an_end_and_the_newest_stays() {
        let mut kept = VecDeque::new();
        keep(&mut kept, &vec![b'a'; KEPT_BYTES]);
        keep(&mut kept, b"last");
        assert_eq!(kept.len(), KEPT_BYTES);
        assert!(Vec::from(kept).ends_with(b"alast"));
    }
}
