//! One check for each sort of value that a flag may have: each notes its mistake and goes on, so that all are told at once.
//!
//! Which flag has which is said in [`Settings::new`](super::Settings::new).

use std::path::PathBuf;
use std::time::Duration;

use super::CniSettings;
use crate::cgroup_root;
use crate::cni::Host;
use crate::telemetry::{EnvironmentError, OtelSettings};

const NAME_BYTES_MAX: usize = 253;

/// Collects mistakes; what it returns after one is never used.
#[derive(Default)]
pub(super) struct Check(pub(super) Vec<String>);

impl Check {
    pub(super) fn required<T: Default>(&mut self, flag: &str, value: Option<T>) -> T {
        if value.is_none() {
            self.0.push(format!("{flag} is missing"));
        }
        value.unwrap_or_default()
    }

    pub(super) fn parsed<T>(&mut self, flag: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|mistake| self.0.push(format!("{flag}: {mistake}"))).ok()
    }

    pub(super) fn otel(&mut self, read: Result<OtelSettings, Vec<EnvironmentError>>) -> OtelSettings {
        read.unwrap_or_else(|mistakes| {
            self.0.extend(mistakes.iter().map(ToString::to_string));
            OtelSettings::default()
        })
    }

    pub(super) fn name(&mut self, flag: &str, value: Option<String>) -> String {
        let missing = value.is_none();
        let value = self.required(flag, value);
        let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if !missing && (value.is_empty() || value.len() > NAME_BYTES_MAX || !value.bytes().all(valid)) {
            self.0.push(format!(
                "{flag}: {value:?} is not 1 to {NAME_BYTES_MAX} characters of a-z, 0-9, '.', '-'"
            ));
        }
        value
    }

    pub(super) fn address(&mut self, flag: &str, value: Option<String>) -> String {
        let missing = value.is_none();
        let value = self.required(flag, value);
        let uri = value.parse::<http::Uri>().ok();
        let usable = uri.is_some_and(|uri| {
            uri.scheme_str() == Some("https") && uri.port_u16().is_some() && matches!(uri.path(), "" | "/")
        });
        if !missing && !usable {
            self.0.push(format!("{flag}: {value:?} is not of the form https://<host>:<port>"));
        }
        value
    }

    pub(super) fn absolute(&mut self, flag: &str, value: PathBuf) -> PathBuf {
        if !value.is_absolute() {
            self.0.push(format!("{flag}: {value:?} is not an absolute path"));
        }
        value
    }

    pub(super) fn cgroup_root(&mut self, flag: &str, value: Option<PathBuf>) -> PathBuf {
        match value {
            Some(value) => self.absolute(flag, value),
            None => self.parsed(flag, cgroup_root::detect()).unwrap_or_default(),
        }
    }

    pub(super) fn cni(
        &mut self,
        bin_dir: Option<PathBuf>,
        conf_dir: Option<PathBuf>,
        socket: Option<PathBuf>,
        exclude_namespaces: &str,
    ) -> Option<CniSettings> {
        let host = match (bin_dir, conf_dir) {
            (Some(bin_dir), Some(conf_dir)) => Some(Host {
                bin_dir: self.absolute("--cni-bin-dir", bin_dir),
                conf_dir: self.absolute("--cni-conf-dir", conf_dir),
            }),
            (None, None) => None,
            _ => {
                self.0
                    .push("--cni-bin-dir and --cni-conf-dir belong together: one of them is missing".into());
                None
            }
        };
        let socket = socket.or_else(|| host.is_some().then(|| weft_cni::entry::SOCKET.into()))?;
        let names = exclude_namespaces.split(',').filter(|name| !name.is_empty());
        Some(CniSettings {
            socket: self.absolute("--cni-socket", socket),
            host,
            exclude_namespaces: names
                .map(|name| self.name("--cni-exclude-namespaces", Some(name.to_owned())))
                .collect(),
        })
    }

    pub(super) fn one_of<T: Copy>(&mut self, flag: &str, value: &str, choices: &[(&str, T)]) -> T {
        let chosen = choices.iter().find(|(name, _)| *name == value);
        if chosen.is_none() {
            let names = choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
            self.0.push(format!("{flag}: {value:?} is none of {names}"));
        }
        chosen.unwrap_or(&choices[0]).1
    }

    pub(super) fn number(&mut self, flag: &str, value: &str, min: u32, max: u32) -> u32 {
        match value.parse::<u32>() {
            Ok(number) if (min..=max).contains(&number) => number,
            _ => {
                self.0.push(format!("{flag}: {value:?} is not a whole number from {min} to {max}"));
                min
            }
        }
    }

    pub(super) fn seconds(&mut self, flag: &str, value: &str, max: u64) -> Duration {
        match value.parse::<u64>() {
            Ok(seconds) if seconds <= max => Duration::from_secs(seconds),
            _ => {
                self.0.push(format!("{flag}: {value:?} is not a whole number from 0 to {max}"));
                Duration::ZERO
            }
        }
    }
}
