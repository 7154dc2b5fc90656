//! Proof that pods stay shut while what guards them is replaced: a client outside of the mesh asks all the time and is never answered,
//! and nothing that the mesh's own clients send crosses the link in the clear.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_e2e::lab::Capture;

use crate::fixture::{START_WAIT_MAX, Shop, TUNNEL_PORT};

const SERVERS: [&str; 2] = ["server-0", "server-1"];
const OPEN: &str = "{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: open-in-the-end, namespace: @NS@}, spec: {inbound: {mode: PERMISSIVE}}}";

/// The watch, until [`Closed::end`].
pub(crate) struct Closed<'a> {
    shop: &'a Shop<'a>,
    secret: &'a str,
    capture: Capture,
    /// Containers of the client outside: one for each server and address of it.
    asking: Vec<String>,
}

impl<'a> Closed<'a> {
    /// From now on. The mesh's clients put `secret` into what they ask for. Needs the cluster alone.
    pub(crate) fn watch(shop: &'a Shop<'a>, secret: &'a str) -> Result<Self> {
        let mut hosts = Vec::new();
        for server in SERVERS {
            hosts.extend(shop.hosts_of(server)?.into_iter().map(|host| (server, host)));
        }
        let mut stranger =
            "{apiVersion: v1, kind: Pod, metadata: {name: stranger, namespace: @NS@, labels: {weft.dev/mesh: disabled}}, spec: {nodeName: node1, restartPolicy: Never,
               terminationGracePeriodSeconds: 1, containers: ["
                .to_owned();
        let mut asking = Vec::new();
        for (server, host) in hosts {
            let name = format!("to-{server}-{}", asking.len());
            write!(
                stranger,
                "{{name: {name}, image: 'weft.local/weft-echo:@TAG@', args: [load, --url, 'http://{host}:8080/', --reconnect, --rate, '10', --timeout-ms, '1000',
                   --duration, '900', --until-status, '200']}},"
            )?;
            asking.push(name);
        }
        shop.apply(&(stranger + "]}}"))?;
        shop.wait_running("stranger")?;
        // Pods' traffic only: a node talks much with the API server.
        let pods = shop.cluster.families().each().iter().map(|family| format!("net {}", family.pods()));
        let pods = pods.collect::<Vec<_>>().join(" or ");
        let capture = shop.cluster.capture("node2", &format!("tcp and ({pods})"))?;
        Ok(Self { shop, secret, capture, asking })
    }

    /// It was shut all the time. Then it is opened, to see that who stood outside would have got in.
    pub(crate) fn end(self) -> Result<()> {
        let packets = self.capture.stop()?;
        ensure!(!packets.contains(self.secret), "the mesh's clients sent something in the clear");
        ensure!(packets.tls_records(TUNNEL_PORT) > 0, "and TLS crossed to the tunnel's port");
        let opened = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        self.shop.apply(OPEN)?;
        let stranger = ["-n", self.shop.namespace, "pod", "stranger"];
        self.shop.cluster.wait_field(&stranger, "{.status.phase}", "Succeeded", START_WAIT_MAX)?;
        for name in &self.asking {
            let told = self.shop.kubectl(&["logs", "stranger", "-c", name])?;
            let told: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
            let at = told["until_unix_ms"]
                .as_u64()
                .with_context(|| format!("{name} never got an answer: {told}"))?;
            ensure!(u128::from(at) >= opened, "{name} got an answer from outside of the mesh: {told}");
            println!("{name} got no answer to {} requests from outside of the mesh", told["failed"]);
        }
        self.shop.kubectl(&["delete", "trafficpolicy/open-in-the-end", "pod/stranger"]).map(drop)
    }
}
