//! `coffre-guard`: undoes what `coffre` has begun when it cannot do so itself any more. All of it is in the crate of that name.

use std::process::ExitCode;

fn main() -> ExitCode {
    coffre_guard::program::main(std::env::args_os())
}
