//! Hooks of every kind as a job runs them: the contract that all of them keep (`contract`), programs that misbehave
//! (`hostile`), and what is each kind's own. The job, the vault and the processes are real; the provider is not. Needs built
//! components: `cargo xtask plugins`.

mod azure;
mod contract;
mod exec;
mod far;
mod guests;
mod hostile;
mod kinds;
mod wasm;
mod world;
