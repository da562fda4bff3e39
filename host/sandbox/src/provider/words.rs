//! The engine's words in the contract's types, and back.

use coffre_engine::{
    Attachment, Base, Consistency, DiskId, FindingLevel, Machine, OsFamily, ProviderError, ProviderErrorKind,
    TakeRequest,
};

use super::answer::text;
use crate::guest::CallError;
use crate::guest::bindings::coffre::plugin::types as wit;
use crate::guest::bindings::exports::coffre::plugin::provider as exported;

pub(crate) fn machine(machine: &Machine) -> wit::Machine {
    let settings = match &machine.settings {
        serde_json::Value::Null => "{}".to_owned(),
        settings => settings.to_string(),
    };
    let os = match machine.os {
        OsFamily::Linux => wit::OsFamily::Linux,
        OsFamily::Windows => wit::OsFamily::Windows,
        OsFamily::Other => wit::OsFamily::Other,
    };
    wit::Machine {
        name: machine.name.clone(),
        os,
        settings,
    }
}

pub(crate) fn ids(disks: &[DiskId]) -> Vec<String> {
    disks.iter().map(|disk| disk.0.clone()).collect()
}

pub(super) fn bases(bases: &[Base]) -> Vec<exported::Base> {
    bases
        .iter()
        .map(|base| exported::Base {
            disk: base.disk.0.clone(),
            token: base.token.clone(),
        })
        .collect()
}

pub(super) fn request(request: &TakeRequest) -> exported::Request {
    exported::Request {
        id: request.id.0.clone(),
        disks: ids(&request.disks),
        bases: bases(&request.bases),
        freeze_at_most_ms: request.freeze_at_most_ms,
    }
}

pub(super) fn consistency(found: wit::Consistency) -> Consistency {
    match found {
        wit::Consistency::Crash => Consistency::Crash,
        wit::Consistency::FileSystem => Consistency::FileSystem,
        wit::Consistency::Application => Consistency::Application,
    }
}

pub(crate) fn level(found: wit::Level) -> FindingLevel {
    match found {
        wit::Level::Note => FindingLevel::Note,
        wit::Level::Warning => FindingLevel::Warning,
        wit::Level::Blocking => FindingLevel::Blocking,
    }
}

pub(crate) fn attachment(found: wit::Attachment) -> Attachment {
    Attachment {
        name: found.name,
        media_type: found.media_type,
        content: found.content,
    }
}

pub(super) fn provider_error(plugin: &str, call: &str, failure: wit::Failure) -> ProviderError {
    let (kind, cause) = match failure {
        wit::Failure::InvalidSettings(cause) => (ProviderErrorKind::InvalidSettings, cause),
        wit::Failure::NotFound(cause) => (ProviderErrorKind::NotFound, cause),
        wit::Failure::Denied(cause) => (ProviderErrorKind::Denied, cause),
        wit::Failure::Busy(cause) => (ProviderErrorKind::Busy, cause),
        wit::Failure::Unavailable(cause) => (ProviderErrorKind::Unavailable, cause),
        wit::Failure::TimedOut(cause) => (ProviderErrorKind::TimedOut, cause),
        wit::Failure::Unsupported(cause) => (ProviderErrorKind::Unsupported, cause),
        wit::Failure::Failed(cause) => (ProviderErrorKind::Failed, cause),
    };
    let hint = match kind {
        ProviderErrorKind::InvalidSettings => Some("mend the machine's `settings` in the configuration".to_owned()),
        ProviderErrorKind::Denied => Some(format!(
            "`coffre plugin inspect {plugin}` shows what it asks for and what is granted"
        )),
        _ => None,
    };
    ProviderError {
        kind,
        text: format!("{plugin} ({call}): {}", text(&cause)),
        hint,
    }
}

/// The guest is gone: it trapped, or hit a limit.
pub(super) fn died(plugin: &str, call: &str, error: &CallError) -> ProviderError {
    let (kind, what) = match error {
        CallError::Trap(_) => (ProviderErrorKind::Trapped, "trapped: "),
        CallError::Deadline(_) => (ProviderErrorKind::Limit, "was ended: it "),
        _ => (ProviderErrorKind::Limit, "hit a limit: it "),
    };
    let hint = match kind {
        ProviderErrorKind::Trapped => format!("this is a mistake in the plugin `{plugin}`; nothing of the call counts"),
        _ => format!("`coffre plugin inspect {plugin}` shows the limits"),
    };
    let text = format!("the plugin `{plugin}` {what}{error} (in `{call}`)");
    ProviderError {
        kind,
        text,
        hint: Some(hint),
    }
}
