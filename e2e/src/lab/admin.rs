//! A small client for the admin endpoints of `weft-node` and `weft-control`: HTTP/1.1 on a Unix socket or loopback.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

/// An admin endpoint answers from memory; one that takes longer is stuck.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(5);
/// A configuration dump of a large mesh; more is not an answer but an accident.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    Unix(PathBuf),
    Tcp(String),
}

impl std::str::FromStr for Admin {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(path.into())),
            None if text.starts_with('/') => Ok(Self::Unix(text.into())),
            None if text.rsplit_once(':').is_some() => Ok(Self::Tcp(text.into())),
            None => Err(anyhow!("{text:?} is neither unix:/path nor address:port")),
        }
    }
}

impl Admin {
    /// As the `--admin` flag wants it.
    pub fn argument(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix:{}", path.display()),
            Self::Tcp(address) => address.clone(),
        }
    }

    /// Removes the socket of a process that is gone, so that nobody mistakes it for the next one's.
    pub(crate) fn forget(&self) {
        if let Self::Unix(path) = self {
            let _ = fs::remove_file(path);
        }
    }

    /// The body of a 200 answer.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, body) = self.fetch(path)?;
        if status != 200 {
            bail!("{} {path} answered {status}: {}", self.argument(), body.trim());
        }
        Ok(body)
    }

    pub fn json(&self, path: &str) -> Result<serde_json::Value> {
        serde_json::from_str(&self.text(path)?).with_context(|| format!("{} {path}", self.argument()))
    }

    pub fn ready(&self) -> Result<()> {
        self.text("/readyz").map(drop)
    }

    /// Status code and body.
    pub fn fetch(&self, path: &str) -> Result<(u16, String)> {
        let context = || format!("admin endpoint {}", self.argument());
        match self {
            Self::Unix(socket) => {
                let stream = UnixStream::connect(socket).with_context(context)?;
                stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
                exchange(stream, path).with_context(context)
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).with_context(context)?;
                stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
                exchange(stream, path).with_context(context)
            }
        }
    }

    /// The sum of all series of a Prometheus metric whose labels contain all of `labels` (`key="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(metric_sum(&self.text("/metrics")?, name, labels))
    }
}

/// `/status` of either binary.
pub(crate) fn status(admin: &Admin) -> Result<serde_json::Value> {
    admin.json("/status")
}

fn exchange(mut stream: impl Read + Write, path: &str) -> Result<(u16, String)> {
    // HTTP/1.0: the end of the answer is the end of the connection, and no chunk has to be decoded.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: weft\r\nAccept: */*\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer))
}

fn parse(answer: &str) -> Result<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("no HTTP answer"))?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    Ok((status.ok_or_else(|| anyhow!("no status in {head:?}"))?, body.to_owned()))
}

/// The sum of the series of `name` in a Prometheus text whose label part contains every one of `labels`.
pub fn metric_sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (series, rest) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None if rest.starts_with(' ') => ("", rest),
            None => return None,
        };
        let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
        labels.iter().all(|l| series.contains(l)).then_some(value)
    });
    values.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\"} 4\na{x=\"2\"} 5\nab{x=\"1\"} 6\nb 7\n";
        assert_eq!(metric_sum(text, "a", &["x=\"1\""]), 7.0);
        assert_eq!(metric_sum(text, "a", &[]), 12.0);
        assert_eq!(metric_sum(text, "b", &[]), 7.0);
    }

    #[test]
    fn an_address_is_a_socket_or_a_port() {
        assert_eq!("unix:/a".parse::<Admin>().unwrap(), Admin::Unix("/a".into()));
        assert_eq!("/a".parse::<Admin>().unwrap(), Admin::Unix("/a".into()));
        assert_eq!("127.0.0.1:1".parse::<Admin>().unwrap(), Admin::Tcp("127.0.0.1:1".into()));
        assert!("nonsense".parse::<Admin>().is_err());
    }
}
