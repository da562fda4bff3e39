//! Who is at the other end of a socket.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

/// The user of the process that made the other end (SO_PEERCRED of unix(7)), for which the standard library has no stable
/// name yet.
#[allow(unsafe_code)]
pub(crate) fn user_of(socket: &UnixStream) -> io::Result<u32> {
    let mut credentials = MaybeUninit::<libc::ucred>::zeroed();
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel writes at most `length` bytes to the place,
    // which has that many.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            credentials.as_mut_ptr().cast(),
            &mut length,
        )
    };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every pattern of bits is a ucred, and the place was zeroed.
    let credentials = unsafe { credentials.assume_init() };
    // Of a socket that is not connected the kernel says -1.
    if credentials.pid <= 0 {
        return Err(io::ErrorKind::NotConnected.into());
    }
    Ok(credentials.uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_of_a_pair_is_ours() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(user_of(&one).unwrap(), rustix::process::geteuid().as_raw());
    }
}
