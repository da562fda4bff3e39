//! A component that runs: its store, its limits, and the calls it makes.

pub mod calls;
mod instance;
mod log;
mod storage;

pub(crate) use instance::{CallError, GuestEngine, GuestState, Instance};
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
            "coffre:plugin/unix-socket.connection": super::calls::Never,
        },
    });
}
