//! `coffre-guard`: a small process that waits, and pays what its host owes when the host is gone or a deadline has passed.
//!
//! Its standard input is its socket, whether a host started it or systemd did for a connection (`Accept=yes`). Two threads:
//! the *waiting* one takes debts and thaws. It allocates nothing once it is armed, waits for no medium and writes nothing
//! before all that is due is thawed. The *paying* one does what may block: it ends process trees, runs commands, and says
//! what went wrong.

mod payer;
mod shelter;
mod shout;
mod slots;
mod waiter;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use crate::{peer, prove};

/// The program's name in messages.
const NAME: &str = "coffre-guard";
const USAGE: &str = "coffre-guard waits on its standard input, which is a socket that coffre gives it.\n\
                     `coffre-guard prove FOLDER` shows whether the file system of a folder takes writes.\n";

/// Why a guard did not begin.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("standard input is not a socket of coffre's: coffre starts this program itself")]
    NoSocket(#[source] io::Error),
    #[error("the other end of the socket belongs to user {peer}, not to user {own}")]
    Stranger { peer: u32, own: u32 },
    #[error("talk to the host")]
    Talk(#[source] io::Error),
}

/// The whole program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().skip(1).collect();
    match arguments.as_slice() {
        [] => match serve() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                shout::say(&format!("{error}{}", cause.unwrap_or_default()));
                ExitCode::FAILURE
            }
        },
        [word, folder] if word == prove::WORD => prove::main(folder.as_ref()),
        _ => {
            shout::on_stderr(USAGE);
            ExitCode::from(64)
        }
    }
}

/// Serves one host, on standard input, until the host is gone and all is paid.
fn serve() -> Result<(), BeginError> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map_err(BeginError::NoSocket)?;
    let socket = UnixStream::from(socket);
    let peer = peer::user_of(&socket).map_err(BeginError::NoSocket)?;
    let own = rustix::process::geteuid().as_raw();
    // A debt can be a command to run.
    if peer != own {
        return Err(BeginError::Stranger { peer, own });
    }
    let shelter = shelter::take();
    let slots = Arc::new(slots::Shared::new());
    let waiter = waiter::Waiter::meet(socket, slots.clone(), shelter).map_err(BeginError::Talk)?;
    // Its host said nothing and went.
    let Some(waiter) = waiter else { return Ok(()) };
    let payer = payer::start(slots, waiter.ledgers());
    waiter.wait();
    payer.finish();
    Ok(())
}
