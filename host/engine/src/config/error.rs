//! What is wrong with a configuration, said so that it can be mended without reading any manual.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why there is no configuration to work with. None of these mends itself: trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no configuration file was found")]
    NotFound { searched: Vec<PathBuf> },
    #[error("read the configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} can be written by others than its owner (mode {mode:04o}), so what it says cannot be trusted", path.display())]
    Writable { path: PathBuf, mode: u32 },
    #[error("{} belongs to user {owner}, who is neither root nor the user that runs this", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("{} is not UTF-8 text (byte {at})", path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("{} is {size_bytes} bytes long; a configuration has at most {limit_bytes}", path.display())]
    TooLarge {
        path: PathBuf,
        size_bytes: u64,
        limit_bytes: u64,
    },
    #[error("{0}")]
    Invalid(Box<Problem>),
}

impl ConfigError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { searched } => {
                let places: Vec<String> = searched.iter().map(|path| path.display().to_string()).collect();
                Some(format!(
                    "looked for {}; `coffre config example` prints one to start from, --config FILE names another place",
                    places.join(", ")
                ))
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as a user that may read it".to_owned())
            }
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("`coffre config example` prints a configuration to start from".to_owned())
            }
            Self::Read { .. } | Self::NotText { .. } | Self::TooLarge { .. } => None,
            Self::Writable { path, .. } => Some(format!("chmod go-w {}", path.display())),
            Self::Foreign { path, .. } => Some(format!("chown it to root or to yourself: {}", path.display())),
            Self::Invalid(problem) => problem.hint.clone(),
        }
    }
}

/// One mistake at one place. Displays as the place, the message, and the line with what is meant underlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub file: PathBuf,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    pub message: String,
    /// The line as it stands in the file.
    pub text: String,
    /// How many characters of it are meant; at least 1.
    pub width: usize,
    pub hint: Option<String>,
}

impl Problem {
    /// Finds `span`, a byte range of `content`.
    pub(super) fn at(file: &Path, content: &str, span: Range<usize>, message: String, hint: Option<String>) -> Self {
        let mut start = span.start.min(content.len());
        while !content.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = content[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = content[start..].find('\n').map_or(content.len(), |at| start + at);
        let mut end = span.end.clamp(start, line_end.max(start));
        while !content.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            file: file.to_owned(),
            line: content[..start].matches('\n').count() + 1,
            column: content[line_start..start].chars().count() + 1,
            message,
            text: content[line_start..line_end].trim_end_matches('\r').to_owned(),
            width: content[start..end].chars().count().max(1),
            hint,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs, so that the caret stands below what it means however wide a tab is.
        let indent: String = self
            .text
            .chars()
            .take(self.column - 1)
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .collect();
        writeln!(
            out,
            "{}:{}:{}: {}",
            self.file.display(),
            self.line,
            self.column,
            self.message
        )?;
        writeln!(out, "{margin} |")?;
        writeln!(out, "{number} | {}", self.text)?;
        write!(out, "{margin} | {indent}{}", "^".repeat(self.width))
    }
}

/// The word of `known` that was probably meant by `found`.
pub(super) fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this, a suggestion is more often wrong than right.
    const ALIKE: f64 = 0.7;
    known
        .into_iter()
        .map(|word| (strsim::jaro_winkler(&found.to_lowercase(), word), word))
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, word)| word)
}

/// `did you mean …?`, or the whole list where nothing is near.
pub(crate) fn suggest<'a>(found: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(word) = nearest(found, known.clone()) {
        return Some(format!("did you mean `{word}`?"));
    }
    let known: Vec<String> = known.into_iter().map(|word| format!("`{word}`")).collect();
    (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")))
}
