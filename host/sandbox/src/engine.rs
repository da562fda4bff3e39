//! The WebAssembly engine: its configuration, and the thread that makes running guests look up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use wasmtime::{Config, Engine};

use crate::error::PluginError;
use crate::limits::{EPOCH_TICK, STACK_BYTES};

/// wasmtime's engine with the epoch ticker beside it. One per process.
pub(crate) struct SandboxEngine {
    engine: Engine,
    stop: Arc<AtomicBool>,
}

impl SandboxEngine {
    /// The process's, started by whoever first needs it: listing plugins needs none.
    pub fn shared() -> Result<Arc<Self>, PluginError> {
        static SHARED: OnceLock<Arc<SandboxEngine>> = OnceLock::new();
        if let Some(engine) = SHARED.get() {
            return Ok(engine.clone());
        }
        let engine = Arc::new(Self::start()?);
        Ok(SHARED.get_or_init(|| engine).clone())
    }

    fn start() -> Result<Self, PluginError> {
        let mut config = Config::new();
        // A guest is interrupted at function entries and loop heads; fuel would count instructions and cost more.
        config.epoch_interruption(true);
        config.max_wasm_stack(STACK_BYTES);
        // Ends of a guest are shown with names of functions, but not with the host's file names.
        config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable);
        let failed = |error: String| PluginError::Engine { cause: error };
        let engine = Engine::new(&config).map_err(|error| failed(format!("{error:#}")))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ticking, stopped) = (engine.weak(), stop.clone());
        // A thread and not a task: it must tick when every runtime thread is inside a guest.
        let ticker = thread::Builder::new().name("epoch-ticker".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                thread::sleep(EPOCH_TICK);
                match ticking.upgrade() {
                    Some(engine) => engine.increment_epoch(),
                    None => break,
                }
            }
        });
        ticker.map_err(|error| failed(error.to_string()))?;
        Ok(Self { engine, stop })
    }

    pub fn wasmtime(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for SandboxEngine {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
