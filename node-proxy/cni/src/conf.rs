//! What the container runtime tells the plugin (CNI 0.3.0 to 1.1.0): configuration on stdin, the rest in the environment.
//!
//! Pure: takes texts, gives values or a [`Failure`] as the specification wants it reported.

use std::collections::HashMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::entry::Entry;
use crate::wire::Sandbox;

/// Versions of the specification: chaining exists from 0.3.0 on.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// In which an error is told when the configuration does not say a version.
const VERSION_UNKNOWN: &str = "1.0.0";

/// Codes of the specification.
pub mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const BAD_ENVIRONMENT: u32 = 4;
    pub const IO: u32 = 5;
    pub const UNDECODABLE: u32 = 6;
    pub const BAD_CONFIGURATION: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
}

/// What went wrong, as the runtime gets to know it: the kubelet shows `msg` and `details` in the pod's event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

impl Failure {
    pub fn new(code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    pub fn to_json(&self, cni_version: &str) -> Value {
        json!({"cniVersion": cni_version, "code": self.code, "msg": self.msg, "details": self.details})
    }
}

/// The configuration on stdin.
#[derive(Debug)]
pub struct Conf {
    pub cni_version: String,
    pub entry: Entry,
    /// What the plugin before this one answered. Passed on untouched.
    pub prev_result: Option<Value>,
    /// GC: the sandboxes that are still there.
    valid_attachments: Option<Value>,
}

/// The version that the text asks for, or that errors are told in.
pub fn version_of(stdin: &str) -> String {
    let conf: Option<Value> = serde_json::from_str(stdin).ok();
    let version = conf.as_ref().and_then(|conf| conf.get("cniVersion")?.as_str());
    version.unwrap_or(VERSION_UNKNOWN).to_owned()
}

pub fn parse(stdin: &str) -> Result<Conf, Failure> {
    let bad = |details: String| {
        Failure::new(code::UNDECODABLE, "weft-cni: the network configuration cannot be read", details)
    };
    let conf: Value = serde_json::from_str(stdin).map_err(|error| bad(error.to_string()))?;
    let cni_version = version_of(stdin);
    if !VERSIONS.contains(&cni_version.as_str()) {
        let details = format!("{cni_version:?} is none of {}", VERSIONS.join(", "));
        return Err(Failure::new(code::INCOMPATIBLE_VERSION, "weft-cni: unknown cniVersion", details));
    }
    Ok(Conf {
        cni_version,
        prev_result: conf.get("prevResult").filter(|result| !result.is_null()).cloned(),
        valid_attachments: conf.get("cni.dev/valid-attachments").cloned(),
        entry: serde_json::from_value(conf).map_err(|error| bad(error.to_string()))?,
    })
}

impl Conf {
    /// The addresses that the plugins before gave the pod.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let Some(result) = &self.prev_result else {
            return Err(Failure::new(
                code::BAD_CONFIGURATION,
                "weft-cni: must be chained behind another plugin",
                "the configuration has no prevResult: weft-cni gives a pod no address, and must not be the first plugin",
            ));
        };
        let ips = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        ips.iter()
            .map(|ip| {
                let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
                let address = text.split_once('/').map_or(text, |(address, _)| address);
                address.parse().map_err(|_| {
                    let details = format!("prevResult.ips: {text:?} is not an address with a prefix length");
                    Failure::new(code::BAD_CONFIGURATION, "weft-cni: prevResult cannot be read", details)
                })
            })
            .collect()
    }

    /// GC: the ids of the sandboxes that are still there.
    pub fn valid_sandboxes(&self) -> Result<Vec<String>, Failure> {
        let attachments = self.valid_attachments.as_ref().and_then(Value::as_array).ok_or_else(|| {
            let details = "cni.dev/valid-attachments is no list";
            Failure::new(code::BAD_CONFIGURATION, "weft-cni: nothing to compare with", details)
        })?;
        let ids = attachments.iter().filter_map(|it| it.get("containerID")?.as_str()).map(Into::into);
        Ok(ids.collect())
    }
}

/// The environment of one call.
#[derive(Debug, Default)]
pub struct Environment {
    pub command: String,
    pub container_id: String,
    pub netns: String,
    args: HashMap<String, String>,
}

impl Environment {
    /// From the variables, by name.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name: &str| variable(name).unwrap_or_default();
        let args = text("CNI_ARGS");
        let args = args.split(';').filter_map(|pair| pair.split_once('='));
        Self {
            command: text("CNI_COMMAND"),
            container_id: text("CNI_CONTAINERID"),
            netns: text("CNI_NETNS"),
            args: args.map(|(name, value)| (name.into(), value.into())).collect(),
        }
    }

    fn arg(&self, name: &str) -> Option<&str> {
        self.args.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The pod's namespace. None: this is no pod of Kubernetes.
    pub fn namespace(&self) -> Option<&str> {
        self.arg("K8S_POD_NAMESPACE")
    }

    /// The variable must be set.
    pub fn required<'a>(name: &str, value: &'a str) -> Result<&'a str, Failure> {
        if value.is_empty() {
            let details = format!("{name} is not set");
            return Err(Failure::new(
                code::BAD_ENVIRONMENT,
                "weft-cni: the runtime's call is incomplete",
                details,
            ));
        }
        Ok(value)
    }

    pub fn sandbox(&self, namespace: &str, addresses: Vec<IpAddr>) -> Result<Sandbox, Failure> {
        Ok(Sandbox {
            container_id: Self::required("CNI_CONTAINERID", &self.container_id)?.into(),
            netns: Self::required("CNI_NETNS", &self.netns)?.into(),
            namespace: namespace.into(),
            name: Self::required("K8S_POD_NAME in CNI_ARGS", self.arg("K8S_POD_NAME").unwrap_or_default())?
                .into(),
            uid: self.arg("K8S_POD_UID").map(Into::into),
            addresses,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conf(extra: &str) -> String {
        format!(r#"{{"cniVersion":"1.0.0","name":"k8s","type":"weft-cni"{extra}}}"#)
    }

    #[test]
    fn addresses_are_read_from_results_of_every_version() {
        for (ips, expected) in [
            (r#"[{"address":"10.1.0.5/16","gateway":"10.1.0.1"}]"#, vec!["10.1.0.5"]),
            (
                r#"[{"version":"4","address":"10.1.0.5/16"},{"version":"6","address":"fd00::5/64"}]"#,
                vec!["10.1.0.5", "fd00::5"],
            ),
            ("[]", vec![]),
        ] {
            let conf = parse(&conf(&format!(r#","prevResult":{{"ips":{ips}}}"#))).unwrap();
            let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(conf.addresses().unwrap(), expected, "{ips}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_code_of_the_specification() {
        let failure = |text: &str| parse(text).and_then(|conf| conf.addresses()).unwrap_err();
        for (text, code, named) in [
            ("{", code::UNDECODABLE, "EOF"),
            (r#"{"cniVersion":"0.2.0","type":"weft-cni"}"#, code::INCOMPATIBLE_VERSION, "0.2.0"),
            (&*conf(r#","socket":7"#), code::UNDECODABLE, "invalid type"),
            (&*conf(""), code::BAD_CONFIGURATION, "no prevResult"),
            (&*conf(r#","prevResult":{"ips":[{"address":"x/8"}]}"#), code::BAD_CONFIGURATION, "\"x/8\""),
        ] {
            let failure = failure(text);
            assert_eq!(failure.code, code, "{text}: {failure:?}");
            assert!(failure.details.contains(named), "{text}: {failure:?}");
            assert_eq!(failure.to_json("1.0.0")["code"], code);
        }
    }

    #[test]
    fn an_entry_without_settings_has_the_defaults() {
        let conf = parse(&conf("")).unwrap();
        assert_eq!(conf.entry.socket, "/run/weft/cni.sock");
        assert_eq!(conf.entry.exclude_namespaces, ["kube-system", "weft-system"]);
    }

    #[test]
    fn the_runtime_names_the_pod_in_its_arguments() {
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1";
        let variables = HashMap::from([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/run/netns/x"),
            ("CNI_ARGS", args),
        ]);
        let of = |variables: &HashMap<&str, &str>| {
            Environment::new(|name| variables.get(name).map(ToString::to_string))
        };
        let environment = of(&variables);
        assert_eq!(environment.namespace(), Some("shop"));
        let sandbox = environment.sandbox("shop", Vec::new()).unwrap();
        assert_eq!((sandbox.name.as_str(), sandbox.uid.as_deref()), ("web-1", Some("u-1")));
        for (missing, told) in
            [("CNI_NETNS", "CNI_NETNS"), ("CNI_CONTAINERID", "CNI_CONTAINERID"), ("CNI_ARGS", "K8S_POD_NAME")]
        {
            let mut variables = variables.clone();
            variables.remove(missing);
            let failure = of(&variables).sandbox("shop", Vec::new()).unwrap_err();
            assert_eq!(failure.code, code::BAD_ENVIRONMENT);
            assert!(failure.details.contains(told), "{failure:?}");
        }
    }
}
