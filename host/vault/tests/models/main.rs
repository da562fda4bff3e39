//! Models of what writers and cleaners do to a vault, small enough that every order of their acts can be tried.
//!
//! Each model has rules that can be left out. With all of them no order loses an acknowledged point; without one of them
//! the test wants an order that does, and `cargo test -p coffre-vault --test models -- --nocapture` prints it. Nothing here
//! uses the program: the models say what it must do, `docs/decisions/cleaner-protocol.md` why.
//!
//! Any actor may stop at any moment for ever, since every prefix of every order is tried: that is a crash, a stall, or a
//! machine that is switched off. A store creates if absent, atomically, and never answers a read with what was before.
#![allow(clippy::print_stdout)]

mod checker;
mod own_points;
mod purge;
mod repacking;
mod resume;
mod two_runs;
mod vault_base_pins;
mod vault_protocol;
