//! The messages on `cni.sock`: one JSON document each way, then the connection ends. The client shuts its side down after the request.
//! As soon as the agent has the request it says [`SIGN_OF_LIFE`], so that one that hangs is known before one that has to wait for word would answer.
//!
//! Fields may be added (the readers ignore what they do not know, and new ones have a default); anything else needs a new [`VERSION`].

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Of these messages. Plugin and agent are of one image, but the plugin of yesterday meets the agent of today during an upgrade.
pub const VERSION: u32 = 1;
/// White space before the answer, which readers of JSON skip: those that know nothing of it, too.
pub const SIGN_OF_LIFE: &[u8] = b"\n";
/// Longest request: a GC that names the 500 sandboxes of the largest nodes has some 40 KiB.
pub const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Longest answer: a sentence.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What the plugin asks the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub command: Command,
}

impl Request {
    pub fn new(command: Command) -> Self {
        Self { version: VERSION, command }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub enum Command {
    /// A sandbox was made, and no process of the pod's containers runs yet.
    Add(Sandbox),
    /// Is the sandbox as ADD left it?
    Check(Sandbox),
    /// A sandbox is being taken down. Its namespace may have gone already.
    Del { container_id: String },
    /// Only these sandboxes are there still.
    Gc { container_ids: Vec<String> },
}

/// A pod's sandbox, as the runtime describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    pub container_id: String,
    /// Path of its network namespace, as the host sees it.
    pub netns: String,
    pub namespace: String,
    pub name: String,
    /// Runtimes before containerd 1.6 do not say it.
    #[serde(default)]
    pub uid: Option<String>,
    /// What the plugins before this one gave the pod.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// What the agent says. An error is for people: it says what is missing and what is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// None: all is well.
    #[serde(default)]
    pub error: Option<String>,
    /// Whether the pod is in the mesh now.
    #[serde(default)]
    pub enrolled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_today_is_read_for_ever() {
        let text = r#"{"version":1,"command":"add","container_id":"c1","netns":"/run/netns/a","namespace":"shop",
            "name":"web","uid":"u-1","addresses":["10.0.0.7","fd00::7"],"later":"field"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        let Command::Add(sandbox) = &request.command else { panic!("{request:?}") };
        assert_eq!((sandbox.container_id.as_str(), sandbox.uid.as_deref()), ("c1", Some("u-1")));
        assert_eq!(sandbox.addresses.len(), 2);
        let again = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&again).unwrap(), request);
    }

    #[test]
    fn every_command_comes_back_as_it_was_sent() {
        for command in [
            Command::Del { container_id: "c".into() },
            Command::Gc { container_ids: vec!["a".into(), "b".into()] },
        ] {
            let text = serde_json::to_string(&Request::new(command.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap().command, command);
        }
        assert!(serde_json::from_str::<Request>(r#"{"version":1,"command":"format"}"#).is_err());
    }
}
