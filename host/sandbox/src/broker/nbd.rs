//! NBD addresses as the NBD URI specification has them.

use url::Url;

/// What a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Socket(String),
    /// `host:port`
    Tcp(String),
}

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
    match (
        parsed.scheme(),
        sockets.as_slice(),
        parsed.host_str().filter(|host| !host.is_empty()),
    ) {
        ("nbd+unix" | "nbds+unix", [socket], None) => Ok(Address::Socket(socket.clone())),
        ("nbd+unix" | "nbds+unix", _, _) => Err("it needs one socket=PATH and no host".to_owned()),
        ("nbd" | "nbds", [], Some(host)) => Ok(Address::Tcp(format!("{host}:{}", parsed.port().unwrap_or(PORT)))),
        ("nbd" | "nbds", _, _) => Err("it needs a host".to_owned()),
        (scheme, _, _) => Err(format!(
            "the scheme `{scheme}` is not one of nbd, nbds, nbd+unix, nbds+unix"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        assert_eq!(
            address("nbd+unix:///pit?socket=/run/x.sock"),
            Ok(Address::Socket("/run/x.sock".to_owned()))
        );
        assert_eq!(
            address("nbd://10.0.0.5/pit"),
            Ok(Address::Tcp("10.0.0.5:10809".to_owned()))
        );
        assert_eq!(
            address("nbd://[::1]:10810/pit"),
            Ok(Address::Tcp("[::1]:10810".to_owned()))
        );
        for wrong in [
            "http://x/",
            "nbd+unix://host/pit?socket=/x",
            "nbd+unix:///pit",
            "nbd+unix:///p?socket=/a&socket=/b",
            "x",
            "nbd:///x",
        ] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
