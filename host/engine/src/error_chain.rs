//! An error with all its causes on one line, for logs and outcomes.

use std::error::Error;
use std::fmt;

/// Shows `error` and its sources, divided by colons.
pub struct Chain<'a>(pub &'a (dyn Error + Send + Sync));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(source) = next {
            write!(out, ": {source}")?;
            next = source.source();
        }
        Ok(())
    }
}
