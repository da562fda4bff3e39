//! What can go wrong between us and the object store, told so that somebody can act on it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use object_store::client::{HttpError, HttpErrorKind};

/// Why the store did not do as it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address or its options say something impossible.
    #[error("`{url}` is no address for a vault: {what}")]
    Address { url: String, what: String },
    #[error("read the certificates in {}", path.display())]
    CaFile { path: PathBuf, source: Cause },
    #[error("set up {store}")]
    Setup { store: String, source: Cause },
    /// No answer, or no way to the server.
    #[error("{store} cannot be reached")]
    Unreachable { store: String, source: Cause },
    #[error("{store} does not let us {action} `{object}`")]
    Denied {
        store: String,
        action: &'static str,
        object: String,
        source: Cause,
    },
    /// The file system of a local vault, or somebody's share of it.
    #[error("there is no room for `{object}` in {store}")]
    Full {
        store: String,
        object: String,
        source: Cause,
    },
    /// Something else lies where only our object may lie.
    #[error("another object is already at `{object}` in {store}")]
    Taken { store: String, object: String },
    #[error("`{object}` in {store} has {found_bytes} bytes, at most {limit_bytes} were expected")]
    TooLarge {
        store: String,
        object: String,
        found_bytes: u64,
        limit_bytes: u64,
    },
    #[error("{action} `{object}` in {store}")]
    Failed {
        store: String,
        action: &'static str,
        object: String,
        source: Cause,
    },
}

impl StoreError {
    /// Whether the same request may succeed a little later.
    pub fn may_help_to_try_again(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Failed { .. })
    }

    /// Whether the server could not be asked at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether a local disk cannot read or write what was asked for: a sector that is lost, or a disk that is.
    pub(crate) fn is_of_a_disk(&self) -> bool {
        // EIO, as the standard library ends its text whatever the language.
        let says = |text: &String| text.ends_with("(os error 5)");
        self.cause().is_some_and(|cause| cause.0.all.last().is_some_and(says))
    }

    /// The innermost reason, in one line.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            Self::CaFile { source, .. }
            | Self::Setup { source, .. }
            | Self::Unreachable { source, .. }
            | Self::Denied { source, .. }
            | Self::Full { source, .. }
            | Self::Failed { source, .. } => Some(source),
            Self::Address { .. } | Self::Taken { .. } | Self::TooLarge { .. } => None,
        }
    }

    pub(super) fn of(store: &str, action: &'static str, object: &str, error: object_store::Error) -> Self {
        let store = store.to_owned();
        let object = object.to_owned();
        match &error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied {
                    store,
                    action,
                    object,
                    source: Cause::of(&error),
                }
            }
            _ if is_local_denial(&error) || is_refused_delete(&error) => Self::Denied {
                store,
                action,
                object,
                source: Cause::of(&error),
            },
            _ if is_full(&error) => Self::Full {
                store,
                object,
                source: Cause::of(&error),
            },
            _ if is_unreachable(&error) => Self::Unreachable {
                store,
                source: Cause::of(&error),
            },
            _ => Self::Failed {
                store,
                action,
                object,
                source: Cause::of(&error),
            },
        }
    }
}

/// The innermost of a chain of errors in one line, and the whole chain for `{:?}`. object_store's own messages repeat
/// addresses, retries and wrappers at every level, which hides what somebody could act on.
pub struct Cause(Box<Chain>);

struct Chain {
    line: String,
    all: Vec<String>,
}

impl Cause {
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut chain = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        let innermost = chain.last().map_or("", String::as_str);
        let line = server_message(innermost).unwrap_or_else(|| one_line(innermost));
        Self(Box::new(Chain { line, all: chain }))
    }

    pub(crate) fn text(line: impl Into<String>) -> Self {
        let line = line.into();
        Self(Box::new(Chain {
            all: vec![line.clone()],
            line,
        }))
    }
}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self::of(&error)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.line)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0.all).finish()
    }
}

impl Error for Cause {}

/// Long answers, such as an HTML page of a proxy, are cut.
const LINE_LIMIT_CHARS: usize = 300;

fn one_line(text: &str) -> String {
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((cut, _)) = line.char_indices().nth(LINE_LIMIT_CHARS) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

/// S3 and Azure answer errors as XML with a code and a message; those two are all that matters of it.
fn server_message(text: &str) -> Option<String> {
    let code = between(text, "<Code>", "</Code>")?;
    Some(match between(text, "<Message>", "</Message>") {
        Some(message) => one_line(&format!("the server says {code}: {message}")),
        None => one_line(&format!("the server says {code}")),
    })
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let start = text.find(from)? + from.len();
    let end = text[start..].find(to)? + start;
    Some(&text[start..end])
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        error.downcast_ref::<HttpError>().is_some_and(|error| {
            matches!(
                error.kind(),
                HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Request | HttpErrorKind::Interrupted
            )
        })
    })
}

fn is_local_denial(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            )
        })
    })
}

fn is_full(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    })
}

/// Deletes go out in batches, which succeed as such; each one's own answer stands in the text of its error alone.
fn is_refused_delete(error: &(dyn Error + 'static)) -> bool {
    chain(error).any(|error| {
        let text = error.to_string();
        ["(code: 403)", "(code: AccessDenied)"]
            .iter()
            .any(|code| text.ends_with(code))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_innermost_error() {
        let inner = io::Error::new(io::ErrorKind::ConnectionRefused, "Connection refused (os error 111)");
        let error = object_store::Error::Generic {
            store: "S3",
            source: Box::new(inner),
        };
        assert_eq!(Cause::of(&error).to_string(), "Connection refused (os error 111)");
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures_and_not_tried_again_at_once() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = object_store::Error::Generic {
                store: "LocalFileSystem",
                source: Box::new(io::Error::from(kind)),
            };
            let error = StoreError::of("file:///vault", "create", "packs/x", error);
            assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
            assert!(!error.may_help_to_try_again());
        }
    }

    #[test]
    fn a_servers_xml_becomes_a_sentence() {
        let text = "Server returned non-2xx status code: 404 Not Found: <?xml version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code>\
                    <Message>The bucket does\nnot exist</Message></Error>";
        let cause = Cause::of(&io::Error::other(text.to_owned()));
        assert_eq!(
            cause.to_string(),
            "the server says NoSuchBucket: The bucket does not exist"
        );
    }
}
