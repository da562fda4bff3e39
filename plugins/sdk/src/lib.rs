//! What a Coffre plugin in Rust is written with: the contract of `wit/` as Rust types, and a little around it.
//!
//! Implement [`Provider`] and name the type once with [`provider!`]; `examples/plugin-smallest-rust` is all there is to a
//! plugin. Beside the code lies a `manifest.toml` with what the plugin asks for, which `cargo xtask plugins` puts into the
//! component. A panic ends up in the job's log with its message, and the host starts a new instance.

pub mod images;
mod provider;

pub use provider::{Adapter, ListedChanges, Provider, Step, Steps};

/// The bindings as wit-bindgen makes them.
#[allow(clippy::all, missing_docs, rust_2018_idioms)]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "snapshot-provider",
        pub_export_macro: true,
        default_bindings_module: "coffre_plugin_sdk::bindings",
    });
}

pub use bindings::coffre::plugin::types::{
    Attachment, Consistency, Disk, Extent, Failure, Finding, Level, Machine, OsFamily,
};
pub use bindings::coffre::plugin::{guest_agent, log, process, secret, storage, time, unix_socket};
pub use bindings::exports::coffre::plugin::provider::{
    Base, Description, NbdExport, Request, Snapshot, Source, TakenDisk,
};

/// Exports a [`Provider`] from the component.
#[macro_export]
macro_rules! provider {
    ($provider:ty) => {
        type CoffreExportedProvider = $crate::Adapter<$provider>;
        $crate::bindings::export!(CoffreExportedProvider with_types_in $crate::bindings);
    };
}

/// Reads a machine's settings into a type. Unknown keys and wrong types become `invalid-settings`, if the type says
/// `#[serde(deny_unknown_fields)]`.
pub fn settings<T: serde::de::DeserializeOwned>(machine: &Machine) -> Result<T, Failure> {
    serde_json::from_str(&machine.settings)
        .map_err(|error| Failure::InvalidSettings(format!("the settings of machine {}: {error}", machine.name)))
}

/// The text of a failure, whatever its kind.
pub fn text_of(failure: &Failure) -> &str {
    match failure {
        Failure::InvalidSettings(text)
        | Failure::NotFound(text)
        | Failure::Denied(text)
        | Failure::Busy(text)
        | Failure::Unavailable(text)
        | Failure::TimedOut(text)
        | Failure::Unsupported(text)
        | Failure::Failed(text) => text,
    }
}

/// Success where a thing is not there: the value is none.
pub fn if_there<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(Failure::NotFound(_)) => Ok(None),
        Err(failure) => Err(failure),
    }
}
