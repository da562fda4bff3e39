//! A guest's log, bounded: so many lines a second, so many bytes a line, no control characters.

use std::time::{Duration, Instant};

use crate::limits::LOG_LINES_PER_SECOND;

/// How much a guest has said of late.
#[derive(Debug)]
pub(crate) struct LogBudget {
    since: Instant,
    lines: u32,
    dropped: u64,
}

/// What is to be done with a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it; before that, say how many were dropped, if any were.
    Write {
        dropped: u64,
    },
    Drop,
}

impl LogBudget {
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            lines: 0,
            dropped: 0,
        }
    }

    pub fn line(&mut self, now: Instant) -> Verdict {
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.lines = 0;
        }
        if self.lines >= LOG_LINES_PER_SECOND {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.lines += 1;
        Verdict::Write {
            dropped: std::mem::take(&mut self.dropped),
        }
    }

    /// Dropped and not told of yet.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// A guest's text made fit for a log or a terminal: cut, and without control characters.
pub(crate) fn plain(text: &str, at_most: usize) -> String {
    let mut end = text.len().min(at_most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let clean = text[..end].trim_end().chars().map(|letter| match letter {
        '\n' | '\t' => letter,
        letter if letter.is_control() || turns_direction(letter) => '\u{FFFD}',
        letter => letter,
    });
    let mut clean: String = clean.collect();
    if end < text.len() {
        clean.push('…');
    }
    clean
}

/// As [`plain`], on one line.
pub(crate) fn plain_line(text: &str, at_most: usize) -> String {
    plain(text, at_most).replace(['\n', '\t'], " ")
}

/// Marks that make text read in another order than it is written.
fn turns_direction(letter: char) -> bool {
    matches!(letter, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::LOG_LINE_BYTES;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut budget = LogBudget::new(start);
        let written = (0..1000).filter(|_| budget.line(start) != Verdict::Drop).count();
        assert_eq!(written, LOG_LINES_PER_SECOND as usize);
        let dropped = 1000 - u64::from(LOG_LINES_PER_SECOND);
        assert_eq!(budget.dropped(), dropped);
        assert_eq!(budget.line(start + Duration::from_secs(1)), Verdict::Write { dropped });
    }

    #[test]
    fn a_text_is_cut_at_a_letter_and_cannot_steer_a_terminal() {
        assert_eq!(plain("\u{1b}[2Jhello\r\n", LOG_LINE_BYTES), "\u{FFFD}[2Jhello");
        assert_eq!(plain("äää", 3), "ä…");
        assert_eq!(plain("a\u{202E}b", 64), "a\u{FFFD}b");
        assert_eq!(plain_line("one\ntwo", 64), "one two");
    }
}
