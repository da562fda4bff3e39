//! NBD addresses as the NBD URI specification has them.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use coffre_engine::nbd::Socket;
use percent_encoding::percent_decode_str;
use url::Url;

/// What a connection goes to, and which export is meant there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub place: Place,
    pub export: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Socket(String),
    /// `host:port`
    Tcp(String),
}

/// A server on the same network answers in milliseconds; `take` waits for this.
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);
/// The protocol's limit for names.
const EXPORT_BYTES: usize = 4096;

/// NBD's registered port.
const PORT: u16 = 10_809;

/// The error is a clause.
pub(super) fn address(uri: &str) -> Result<Address, String> {
    let parsed = Url::parse(uri).map_err(|error| error.to_string())?;
    if !parsed.username().is_empty() || parsed.password().is_some() || parsed.fragment().is_some() {
        return Err("it names a user or a fragment".to_owned());
    }
    let sockets: Vec<String> = parsed
        .query_pairs()
        .filter(|(key, _)| key == "socket")
        .map(|(_, value)| value.into_owned())
        .collect();
    let place = match (
        parsed.scheme(),
        sockets.as_slice(),
        parsed.host_str().filter(|host| !host.is_empty()),
    ) {
        ("nbd+unix", [socket], None) => Place::Socket(socket.clone()),
        ("nbd+unix", _, _) => return Err("it needs one socket=PATH and no host".to_owned()),
        ("nbd", [], Some(host)) => Place::Tcp(format!("{host}:{}", parsed.port().unwrap_or(PORT))),
        ("nbd", _, _) => return Err("it needs a host".to_owned()),
        ("nbds" | "nbds+unix", _, _) => return Err("this version of Coffre does not read NBD over TLS".to_owned()),
        (scheme, _, _) => return Err(format!("the scheme `{scheme}` is not one of nbd, nbd+unix")),
    };
    // One slash is the URI's, the rest is the name.
    let name = parsed.path().strip_prefix('/').unwrap_or_default();
    let export = percent_decode_str(name).decode_utf8();
    let export = export.map_err(|_| "the export's name is not UTF-8".to_owned())?;
    if export.len() > EXPORT_BYTES {
        return Err(format!("the export's name is longer than {EXPORT_BYTES} bytes"));
    }
    Ok(Address {
        place,
        export: export.into_owned(),
    })
}

/// The first of a name's addresses that answers.
pub(super) fn connect(host_and_port: &str) -> io::Result<Socket> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in host_and_port.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECTS_WITHIN) {
            Ok(socket) => return Ok(Socket::Tcp(socket)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let socket = |path: &str| Place::Socket(path.to_owned());
        let tcp = |place: &str| Place::Tcp(place.to_owned());
        for (uri, place, export) in [
            ("nbd+unix:///pit?socket=/run/x.sock", socket("/run/x.sock"), "pit"),
            ("nbd+unix:///?socket=/run/x.sock", socket("/run/x.sock"), ""),
            (
                "nbd+unix:////a/b%20c?socket=/run/x.sock",
                socket("/run/x.sock"),
                "/a/b c",
            ),
            ("nbd://10.0.0.5/pit", tcp("10.0.0.5:10809"), "pit"),
            ("nbd://10.0.0.5", tcp("10.0.0.5:10809"), ""),
            ("nbd://[::1]:10810/pit", tcp("[::1]:10810"), "pit"),
        ] {
            let export = export.to_owned();
            assert_eq!(address(uri), Ok(Address { place, export }), "{uri}");
        }
        for wrong in [
            "http://x/",
            "nbd+unix://host/pit?socket=/x",
            "nbd+unix:///pit",
            "nbd+unix:///p?socket=/a&socket=/b",
            "x",
            "nbd:///x",
            "nbds://host/x",
            "nbd://host/%ff",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
