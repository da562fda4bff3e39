//! Checks when and how fast transfers go.

use toml::Spanned;

use super::{Checker, Result};
use crate::config::raw;
use crate::config::transfer::{Busy, TransferConfig, bandwidth};
use crate::config::words;
use crate::pacer::Caps;
use crate::schedule::Window;

/// Fewer, and a backup that needs a thousand requests is no backup of today.
const REQUESTS_LEAST: u32 = 1;
const REQUESTS_MOST: u32 = 100_000;

impl Checker<'_> {
    pub(super) fn transfer(&self, raw: Option<raw::Transfer>) -> Result<TransferConfig> {
        let Some(raw) = raw else {
            return Ok(TransferConfig::default());
        };
        let busy = raw.busy.into_iter().map(|busy| {
            let span = busy.span();
            let busy = busy.into_inner();
            let at = self.required(busy.at, "at", "\"mon-fri 08:00-18:00\"", span.clone())?;
            if busy.bandwidth.is_none() && busy.requests.is_none() {
                let hint = "add bandwidth = \"5MiB/s\" or requests = 10; bandwidth = \"0\" lets nothing go";
                return Err(self.wrong(span, "a busy time without a cap", Some(hint.to_owned())));
            }
            Ok(Busy {
                at: self.word(&at, words::window)?,
                caps: self.caps(&busy.bandwidth, &busy.requests)?,
            })
        });
        Ok(TransferConfig {
            busy: busy.collect::<Result<_>>()?,
            caps: self.caps(&raw.bandwidth, &raw.requests)?,
        })
    }

    fn caps(&self, bytes: &raw::Word, requests: &Option<Spanned<u32>>) -> Result<Caps> {
        let bytes = bytes.as_ref().map(|word| self.word(word, bandwidth)).transpose()?;
        let requests = requests.as_ref().map(|count| {
            let found = *count.get_ref();
            if (REQUESTS_LEAST..=REQUESTS_MOST).contains(&found) {
                return Ok(u64::from(found));
            }
            let message = format!("`requests` per second are at least {REQUESTS_LEAST} and at most {REQUESTS_MOST}");
            Err(self.wrong(count.span(), message, None))
        });
        Ok(Caps {
            bytes,
            requests: requests.transpose()?,
        })
    }

    /// The windows of a policy's `transfer`.
    pub(super) fn windows(&self, raw: Option<Spanned<Vec<Spanned<String>>>>) -> Result<Vec<Window>> {
        let Some(raw) = raw else { return Ok(Vec::new()) };
        let span = raw.span();
        let windows = raw.into_inner();
        if windows.is_empty() {
            let hint = "leave `transfer` out to transfer at any time".to_owned();
            return Err(self.wrong(
                span,
                "`transfer` without a window: nothing would ever be transferred",
                Some(hint),
            ));
        }
        windows.iter().map(|word| self.word(word, words::window)).collect()
    }
}
