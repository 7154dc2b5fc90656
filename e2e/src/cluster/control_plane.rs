//! The control plane: etcd, API server, controller manager and scheduler in one network namespace, and the relay that leads
//! from this machine's loopback to the API server. Each is a part that can be stopped and started alone.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::certificates::{Authority, Subject, kubeconfig};
use super::network::{API_PORT, netns_of};
use super::{Cluster, Families, tools};
use crate::lab::process::{Place, start};
use crate::lab::wait::{self, Hopeless};
use crate::lab::{cgroup, mesh};

/// The first start of an API server, on two processors that have other work.
const READY_WAIT_MAX: Duration = Duration::from_secs(90);

/// Parts in the order of their start.
pub(crate) const PARTS: [&str; 5] =
    ["etcd", "kube-apiserver", "relay", "kube-controller-manager", "kube-scheduler"];

impl Cluster {
    pub(crate) fn pki(&self) -> PathBuf {
        self.directory().join("pki")
    }

    pub(crate) fn part_cgroup(&self, part: &str) -> PathBuf {
        self.cgroup().join("control").join(part)
    }

    pub(crate) fn make_certificates(&self, nodes: u16) -> Result<()> {
        let pki = self.pki();
        let ca = Authority::new(&pki, "ca")?;
        let families = self.families().each().iter();
        let mut servers: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
        servers.extend(families.clone().flat_map(|family| [family.control(), family.api_service()]));
        let dns = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
        ca.sign(
            "apiserver",
            &Subject { name: "kube-apiserver", dns: &dns, ips: &servers, ..Default::default() },
        )?;
        for (user, name, group) in [
            ("admin", "admin", Some("system:masters")),
            ("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters")),
            ("kube-controller-manager", "system:kube-controller-manager", None),
            ("kube-scheduler", "system:kube-scheduler", None),
            ("kube-proxy", "system:kube-proxy", None),
        ] {
            ca.sign(user, &Subject { name, group, ..Default::default() })?;
        }
        for index in 1..=nodes {
            let node = format!("node{index}");
            let ips: Vec<_> = families.clone().map(|family| family.node(index)).collect();
            ca.sign(
                &node,
                &Subject {
                    name: &format!("system:node:{node}"),
                    group: Some("system:nodes"),
                    dns: &[&node],
                    ips: &ips,
                },
            )?;
        }
        ca.signing_key("service-account")?;
        let front = Authority::new(&pki, "front-proxy-ca")?;
        front.sign("front-proxy-client", &Subject { name: "front-proxy-client", ..Default::default() })?;
        let server = self.api_address();
        for user in ["kube-controller-manager", "kube-scheduler"] {
            kubeconfig(&pki.join(format!("{user}.kubeconfig")), &server, ".", user)?;
        }
        Ok(())
    }

    /// Where the API server listens, in the control plane's namespace.
    fn api(&self) -> SocketAddr {
        (self.families().first().control(), API_PORT).into()
    }

    pub(crate) fn api_address(&self) -> String {
        format!("https://{}", self.api())
    }

    /// Starts all parts and waits until the API server is ready.
    pub(crate) fn start_control(&self) -> Result<()> {
        for part in PARTS {
            // The last two give up if the API server is not there.
            if part == "kube-controller-manager" {
                self.wait_api()?;
            }
            self.start_part(part)?;
        }
        Ok(())
    }

    /// Starts one part of the control plane; it is not waited for.
    pub fn start_part(&self, part: &str) -> Result<()> {
        let group = self.part_cgroup(part);
        if !cgroup::pids(&group).is_empty() {
            bail!("{part} runs already");
        }
        if part == "relay" {
            return self.start_relay();
        }
        start(self.part_command(part)?, &self.part_place(part), &self.part_log(part)).map(drop)
    }

    /// Kills one part of the control plane.
    pub fn kill_part(&self, part: &str) -> Result<()> {
        cgroup::kill(&self.part_cgroup(part))
    }

    fn part_place(&self, part: &str) -> Place {
        Place { netns: netns_of(self.name(), "control"), cgroup: self.part_cgroup(part), files: Vec::new() }
    }

    pub(crate) fn part_log(&self, part: &str) -> PathBuf {
        self.logs_directory().join(format!("{part}.log"))
    }

    fn part_command(&self, part: &str) -> Result<Command> {
        let pki = self.pki();
        let file = |name: &str| pki.join(name).display().to_string();
        let (program, arguments) = match part {
            "etcd" => (tools::others().join("bin/etcd"), etcd(&self.directory().join("etcd"))),
            "kube-apiserver" => (tools::kubernetes().join(part), api_server(self.families(), &file)),
            "kube-controller-manager" => (tools::kubernetes().join(part), controller_manager(&file)),
            "kube-scheduler" => (tools::kubernetes().join(part), scheduler(&file)),
            _ => bail!("no part {part:?}; there are {}", PARTS.join(", ")),
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Ok(command)
    }

    /// The relay listens on this machine's loopback and connects inside the control plane's namespace: the socket is made
    /// here and handed on. The port is free by then, and noted in the kubeconfig.
    fn start_relay(&self) -> Result<()> {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let descriptor = listener.as_raw_fd();
        let mut command = Command::new(crate::tools::built_beside().join("weft-cluster"));
        command.args(["relay", "--listener"]).arg(descriptor.to_string());
        command.args(["--to", &self.api().to_string()]);
        // SAFETY: one system call on a number, between fork and exec; the parent's descriptor stays as it is.
        unsafe {
            command.pre_exec(move || match libc::fcntl(descriptor, libc::F_SETFD, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        start(command, &self.part_place("relay"), &self.part_log("relay"))?;
        kubeconfig(&self.kubeconfig(), &format!("https://127.0.0.1:{port}"), "pki", "admin")
    }

    /// Waits until the API server answers that it is ready.
    pub fn wait_api(&self) -> Result<()> {
        wait::until(READY_WAIT_MAX, || {
            for part in ["etcd", "kube-apiserver", "relay"] {
                self.check_part(part)?;
            }
            self.kubectl(&["get", "--raw=/readyz"]).map(drop)
        })
        .context("the API server does not become ready")
    }

    /// An error with the last lines of its log if a part is dead.
    pub(crate) fn check_part(&self, part: &str) -> Result<()> {
        let log = self.part_log(part);
        // A part that was not started yet has no log.
        if !cgroup::pids(&self.part_cgroup(part)).is_empty() || !log.exists() {
            return Ok(());
        }
        let ended = fs::read_to_string(log.with_extension("exit")).unwrap_or_default();
        let text =
            format!("{part} ended ({}); the end of {}:\n{}", ended.trim(), log.display(), mesh::tail(&log));
        Err(Hopeless(text).into())
    }
}

fn etcd(data: &Path) -> Vec<String> {
    vec![format!("--data-dir={}", data.display()), "--unsafe-no-fsync".into(), "--log-level=warn".into()]
}

fn api_server(families: Families, file: &dyn Fn(&str) -> String) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", families.first().control()),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("apiserver.pem")),
        format!("--tls-private-key-file={}", file("apiserver.key")),
        format!("--client-ca-file={}", file("ca.pem")),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--enable-aggregator-routing=true".into(),
        format!("--kubelet-certificate-authority={}", file("ca.pem")),
        format!("--kubelet-client-certificate={}", file("kubelet-client.pem")),
        format!("--kubelet-client-key={}", file("kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        format!("--requestheader-client-ca-file={}", file("front-proxy-ca.pem")),
        "--requestheader-allowed-names=front-proxy-client".into(),
        "--requestheader-username-headers=X-Remote-User".into(),
        "--requestheader-group-headers=X-Remote-Group".into(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".into(),
        format!("--proxy-client-cert-file={}", file("front-proxy-client.pem")),
        format!("--proxy-client-key-file={}", file("front-proxy-client.key")),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        format!("--service-cluster-ip-range={}", families.listed(|family| family.services().to_owned())),
    ]
}

fn controller_manager(file: &dyn Fn(&str) -> String) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file("kube-controller-manager.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
        "--controllers=*".into(),
        "--use-service-account-credentials=true".into(),
        format!("--service-account-private-key-file={}", file("service-account.key")),
        format!("--root-ca-file={}", file("ca.pem")),
        // A killed node is noticed within half a minute, so that a test can wait for it.
        "--node-monitor-period=2s".into(),
        "--node-monitor-grace-period=20s".into(),
    ]
}

fn scheduler(file: &dyn Fn(&str) -> String) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", file("kube-scheduler.kubeconfig")),
        "--bind-address=127.0.0.1".into(),
        "--leader-elect=false".into(),
    ]
}
