//! Where an endpoint listens. The admin endpoint has no authentication: nobody but this machine, or the socket's owner, may reach it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    /// Always loopback.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match Path::new(path) {
                path if path.is_absolute() => Ok(Self::Unix(path.into())),
                _ => Err(format!("{text:?} does not name an absolute path after unix:")),
            };
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => Err(format!("{text:?} is not a loopback address: the endpoint shows the configuration")),
            Err(_) => Err(format!("{text:?} is neither unix:/path nor a loopback address with port")),
        }
    }
}

/// As it is written.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// `10.0.0.1:15020`, `[fd00::1]:15020`; and `fd00::1:15020`, as it comes of `$(POD_IP):15020`.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is not an IP address with a port");
    text.parse().or_else(|_| {
        let (ip, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        Ok(SocketAddr::new(ip.parse().map_err(|_| wrong())?, port.parse().map_err(|_| wrong())?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_admin_endpoint_stays_on_the_machine() {
        for text in ["127.0.0.1:1", "[::1]:1", "unix:/run/weft/admin.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in
            ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "localhost:1", "127.0.0.1", "unix:admin.sock", "unix:", ""]
        {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_address_is_read_as_kubernetes_puts_it_together() {
        for (text, address) in [
            ("10.0.0.1:15020", "10.0.0.1:15020"),
            ("[fd00::1]:15020", "[fd00::1]:15020"),
            ("fd00::1:15020", "[fd00::1]:15020"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for wrong in ["", ":15020", "15020", "10.0.0.1", "10.0.0.1:x", "host:15020", "10.0.0.1:70000"] {
            assert!(listen_address(wrong).is_err(), "{wrong}");
        }
    }
}
