//! A component that runs: its store, its limits, and the calls it makes. Providers and hooks are two worlds with the same
//! imports, so both run in the same way.

pub mod calls;
mod instance;
mod log;
mod storage;

pub(crate) use instance::{Around, CallError, GuestEngine, GuestState, Instance};
pub(crate) use log::plain;

/// The bindings of `wit/`, made at compile time.
#[allow(missing_docs)]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "snapshot-provider",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "coffre:plugin/process.child": super::calls::Never,
            "coffre:plugin/unix-socket.connection": super::calls::OpenSocket,
        },
    });
}

/// The same for hooks; what both worlds import is one.
#[allow(missing_docs)]
pub(crate) mod hook_bindings {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "application-hook",
        imports: { default: async | trappable },
        exports: { default: async },
        with: {
            "coffre:plugin/types": super::bindings::coffre::plugin::types,
            "coffre:plugin/log": super::bindings::coffre::plugin::log,
            "coffre:plugin/time": super::bindings::coffre::plugin::time,
            "coffre:plugin/process": super::bindings::coffre::plugin::process,
            "coffre:plugin/unix-socket": super::bindings::coffre::plugin::unix_socket,
            "coffre:plugin/guest-agent": super::bindings::coffre::plugin::guest_agent,
            "coffre:plugin/storage": super::bindings::coffre::plugin::storage,
            "coffre:plugin/secret": super::bindings::coffre::plugin::secret,
            "coffre:plugin/session.live": super::calls::Never,
        },
    });
}
