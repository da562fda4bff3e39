//! What a hook and its commands said: bounded, with the secrets taken out.

use super::limits::{LOG_LINE_BYTES, OUTPUT_BYTES};

/// Collects one call's output. Secrets are taken out of each piece as it comes, and once more at the end, since a command
/// may say a secret before the script asks for it.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    text: String,
    lost_bytes: usize,
    secrets: Vec<(String, String)>,
}

impl Transcript {
    /// From now on, `value` is shown as the secret `name`.
    pub(crate) fn hide(&mut self, name: &str, value: &str) {
        if !value.is_empty() && !self.secrets.iter().any(|(_, known)| known == value) {
            self.secrets.push((name.to_owned(), value.to_owned()));
            // Where one secret is part of another the longer goes first, or its rest would stay.
            self.secrets.sort_by_key(|(_, value)| std::cmp::Reverse(value.len()));
        }
    }

    /// The secret that a text holds, by name.
    pub(crate) fn secret_in(&self, text: &str) -> Option<&str> {
        self.secrets
            .iter()
            .find(|(_, value)| text.contains(value.as_str()))
            .map(|(name, _)| name.as_str())
    }

    /// A text with every secret replaced by its name.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, (name, value)| {
            if text.contains(value.as_str()) {
                text.replace(value.as_str(), &format!("[secret {name}]"))
            } else {
                text
            }
        })
    }

    /// Adds a line, or lines.
    pub(crate) fn line(&mut self, text: &str) {
        let text = self.redact(text.trim_end_matches('\n'));
        let room = OUTPUT_BYTES.saturating_sub(self.text.len());
        if text.len() < room {
            self.text.push_str(&text);
            self.text.push('\n');
        } else {
            let cut = text.floor_char_boundary(room.saturating_sub(1));
            if cut > 0 {
                self.text.push_str(&text[..cut]);
                self.text.push('\n');
            }
            self.lost_bytes += text.len() - cut;
        }
    }

    /// Adds what a command wrote. If it was cut it may end within a secret, whose beginning is then taken off.
    pub(crate) fn command_output(&mut self, bytes: &[u8], is_cut: bool) {
        let text = String::from_utf8_lossy(bytes);
        if text.is_empty() {
            return;
        }
        let end = if is_cut {
            self.without_begun_secret(&text)
        } else {
            text.len()
        };
        self.line(&text[..end]);
    }

    fn without_begun_secret(&self, text: &str) -> usize {
        let begun = |secret: &str| {
            (1..secret.len())
                .rev()
                .filter(|length| secret.is_char_boundary(*length))
                .find(|length| text.ends_with(&secret[..*length]))
        };
        let longest = self.secrets.iter().filter_map(|(_, value)| begun(value)).max();
        text.len() - longest.unwrap_or(0)
    }

    /// All of it, as a recovery point keeps it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.redact(&self.text);
        let mut lost_bytes = self.lost_bytes;
        // A secret's name may be longer than the secret.
        lost_bytes += text.len().saturating_sub(OUTPUT_BYTES);
        if lost_bytes > 0 {
            let note = format!("[{lost_bytes} more bytes not kept]\n");
            text.truncate(text.floor_char_boundary(OUTPUT_BYTES - note.len()));
            text.push_str(&note);
        }
        text
    }
}

/// A line for the log, cut to what a line may be.
pub(super) fn log_line(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOG_LINE_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_also_of_what_was_said_before() {
        let mut transcript = Transcript::default();
        transcript.line("the password is hunter2");
        transcript.hide("part", "hunter");
        transcript.hide("db", "hunter2");
        transcript.line("hunter2!");
        assert_eq!(transcript.text(), "the password is [secret db]\n[secret db]!\n");
        assert_eq!(transcript.secret_in("--password=hunter2"), Some("db"));
    }

    #[test]
    fn the_beginning_of_a_secret_at_a_cut_is_not_kept() {
        let mut transcript = Transcript::default();
        transcript.hide("db", "hunter2");
        transcript.command_output(b"password hunt", true);
        transcript.command_output(b"to hunt", false);
        assert_eq!(transcript.text(), "password \nto hunt\n");
    }

    #[test]
    fn output_is_bounded_and_says_what_is_missing() {
        let mut transcript = Transcript::default();
        for _ in 0..3 {
            transcript.line(&"ä".repeat(OUTPUT_BYTES / 3));
        }
        let text = transcript.text();
        assert!(text.len() <= OUTPUT_BYTES, "{}", text.len());
        assert!(text.ends_with("more bytes not kept]\n"));
    }
}
