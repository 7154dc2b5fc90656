//! `weft lab`: up, apply, exec, logs, status, down.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, Subcommand};
use weft_e2e::lab::{ContainerState, Lab, NODES_MAX, Options, cgroup, labs, no_lab};

use crate::Format;
use crate::table::table;

/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Args)]
pub(crate) struct Name {
    /// Which lab, if there are several
    #[arg(long, global = true, env = "WEFT_LAB", default_value = "lab")]
    pub(crate) name: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a lab from a directory of Kubernetes manifests; an earlier one of that name is replaced
    #[command(after_help = "Example: weft lab up -f examples/shop\n\n\
        The directory is watched by weft-control: a changed route or policy is in force within a second. \
        Pods that are added or removed take effect with `weft lab apply`.")]
    Up {
        /// Directory of manifests
        #[arg(short = 'f', long = "manifests", value_name = "DIR")]
        manifests: PathBuf,
        #[command(flatten)]
        name: Name,
        /// Nodes: node1, node2, ...
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
        nodes: u16,
        /// Run the pods without a mesh, to compare
        #[arg(long)]
        without_mesh: bool,
        /// Argument for every weft-node, such as --node-arg=--redirect=off; may be repeated
        #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
        node_arg: Vec<String>,
        /// Environment of every weft-node, such as OTEL_EXPORTER_OTLP_ENDPOINT=http://172.30.0.1:4317; may be repeated
        #[arg(long, value_name = "NAME=VALUE")]
        node_env: Vec<String>,
    },
    /// Start pods that the manifests gained and containers that ended, end pods that the manifests lost
    Apply {
        #[command(flatten)]
        name: Name,
    },
    /// Run a command inside a pod
    #[command(after_help = "Example: weft lab exec shop/frontend -- curl http://backend/")]
    Exec {
        #[command(flatten)]
        name: Name,
        /// namespace/pod
        pod: String,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        words: Vec<String>,
    },
    /// Show a log: of a pod (namespace/pod), of a node (node1, or node1.access for its access log) or of the control
    /// plane (control)
    Logs {
        #[command(flatten)]
        name: Name,
        /// namespace/pod, node1, node2 or control; without it, the logs there are
        of: Option<String>,
        /// Go on as the log grows
        #[arg(short, long)]
        follow: bool,
    },
    /// Start a weft-node or weft-control that was killed or ended; one that runs is ended first
    Restart {
        #[command(flatten)]
        name: Name,
        /// node1, node2, ... or control
        process: String,
    },
    /// The pods and processes of the lab
    Status {
        #[command(flatten)]
        name: Name,
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Take the lab down and leave nothing behind, whatever state it is in
    Down {
        #[command(flatten)]
        name: Name,
        /// All labs of this machine
        #[arg(long)]
        all: bool,
    },
}

pub(crate) fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up { manifests, name, nodes, without_mesh, node_arg, node_env } => {
            let node_env = node_env.iter().map(|v| variable(v)).collect::<Result<_>>()?;
            let options =
                Options { mesh: !without_mesh, nodes, node_args: node_arg, node_env, ..Options::default() };
            up(&name.name, &manifests, options)
        }
        Command::Apply { name } => {
            let (mut lab, _alone) = Lab::attach_alone(&name.name)?;
            lab.reconcile()?;
            say!("{} pods run in lab {}", lab.state().pods.len(), lab.name())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Exec { name, pod, words } => exec(&Lab::attach(&name.name)?, &pod, &words),
        Command::Logs { name, of, follow } => {
            let lab = Lab::attach(&name.name)?;
            match of {
                Some(of) => show(&log_of(&lab, &of)?, follow),
                None => list_logs(&lab.logs_directory()),
            }
        }
        Command::Restart { name, process } => restart(&Lab::attach_alone(&name.name)?.0, &process),
        Command::Status { name, output } => status(&Lab::attach(&name.name)?, output),
        Command::Down { name, all } => down(&name.name, all),
    }
}

fn variable(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').ok_or_else(|| anyhow!("{text:?} is not like NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn up(name: &str, manifests: &Path, options: Options) -> Result<ExitCode> {
    let start = Instant::now();
    let mut lab = Lab::up(name, manifests, options)?;
    lab.keep();
    let seconds = start.elapsed().as_secs_f32();
    say!("lab {name} is up after {seconds:.1} s")?;
    crate::write(&pods_table(&lab))?;
    let flag = if name == "lab" { String::new() } else { format!(" --name {name}") };
    say!("\n  weft status{flag}\n  weft lab exec{flag} NAMESPACE/POD -- COMMAND\n  weft lab down{flag}")?;
    Ok(ExitCode::SUCCESS)
}

fn exec(lab: &Lab, pod: &str, words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let status = lab.command(pod, &words)?.status();
    let status = status.with_context(|| format!("cannot run {} in {pod}", words[0]))?;
    // A command ended by a signal has no code; 255 is what ssh says then.
    let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(255);
    Ok(ExitCode::from(code))
}

fn restart(lab: &Lab, process: &str) -> Result<ExitCode> {
    if !lab.state().options.mesh {
        bail!("lab {} has no mesh: it was made with --without-mesh", lab.name());
    }
    if process == "control" {
        lab.stop_control()?;
        lab.start_control()?;
    } else if lab.nodes().iter().any(|node| node == process) {
        lab.stop_node(process)?;
        lab.start_node(process)?;
    } else {
        bail!("{process:?} is neither `control` nor a node ({})", lab.nodes().join(", "));
    }
    tell!("{process} is ready");
    Ok(ExitCode::SUCCESS)
}

fn log_of(lab: &Lab, of: &str) -> Result<PathBuf> {
    if of == "control" {
        return Ok(lab.control_log());
    }
    if lab.nodes().iter().any(|n| n == of) {
        return Ok(lab.node_log(of));
    }
    if let Some(node) = of.strip_suffix(".access").filter(|of| lab.nodes().iter().any(|n| n == of)) {
        return Ok(lab.access_log(node));
    }
    let (pod, container) = match of.split('/').collect::<Vec<_>>()[..] {
        [namespace, name] => (format!("{namespace}/{name}"), None),
        [namespace, name, container] => (format!("{namespace}/{name}"), Some(container)),
        _ => bail!(
            "{of:?} is neither `control`, a node ({}), nor namespace/pod[/container]",
            lab.nodes().join(", ")
        ),
    };
    let pod = lab.pod(&pod)?;
    if let Some(container) = container {
        return Ok(lab.pod_log(pod, container));
    }
    let directory = lab.pod_log(pod, "any").parent().map(Path::to_path_buf).unwrap_or_default();
    let logs: Vec<PathBuf> = logs_in(&directory);
    match &logs[..] {
        [one] => Ok(one.clone()),
        [] => bail!("{of} has no log yet"),
        several => {
            let names = several.iter().filter_map(|l| l.file_stem()?.to_str()).map(|c| format!("{of}/{c}"));
            bail!("{of} has several containers: {}", names.collect::<Vec<_>>().join(", "))
        }
    }
}

fn logs_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path());
    let mut logs: Vec<PathBuf> = entries.filter(|p| p.extension().is_some_and(|e| e == "log")).collect();
    logs.sort();
    logs
}

fn list_logs(directory: &Path) -> Result<ExitCode> {
    let mut of_pods: Vec<PathBuf> =
        fs::read_dir(directory)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    of_pods.sort();
    for log in logs_in(directory).into_iter().chain(of_pods.iter().flat_map(|d| logs_in(d))) {
        say!("{}", log.display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(log: &Path, follow: bool) -> Result<ExitCode> {
    let mut file = fs::File::open(log).with_context(|| log.display().to_string())?;
    loop {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        if io::stdout().write_all(&text).and_then(|()| io::stdout().flush()).is_err() || !follow {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(FOLLOW_EVERY);
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
    }
}

fn pods_table(lab: &Lab) -> String {
    let rows = lab.state().pods.iter().map(|p| {
        let ips = p.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        vec![p.key(), p.node.clone(), ips, state_of(&lab.containers(p))]
    });
    table(&["POD", "NODE", "ADDRESSES", "STATE"], rows)
}

/// `running`, or each container that does not.
fn state_of(containers: &[(String, ContainerState)]) -> String {
    let others = containers.iter().filter(|(_, state)| *state != ContainerState::Running);
    let others: Vec<String> = others.map(|(name, state)| format!("{name} {state}")).collect();
    if others.is_empty() { "running".to_owned() } else { others.join(", ") }
}

fn status(lab: &Lab, output: Format) -> Result<ExitCode> {
    let running = |group: &Path| cgroup::pids(group);
    let mut processes = vec![("weft-control".to_owned(), running(&lab.control_cgroup()))];
    processes
        .extend(lab.nodes().into_iter().map(|n| (format!("weft-node {n}"), running(&lab.agent_cgroup(&n)))));
    if output == Format::Json {
        let processes: serde_json::Map<_, _> = processes.into_iter().map(|(n, p)| (n, p.into())).collect();
        let containers = |pod| lab.containers(pod).into_iter().map(|(name, state)| (name, state.to_string()));
        let containers: BTreeMap<String, BTreeMap<String, String>> =
            lab.state().pods.iter().map(|pod| (pod.key(), containers(pod).collect())).collect();
        let told = serde_json::json!({"lab": lab.state(), "processes": processes, "containers": containers});
        say!("{}", serde_json::to_string_pretty(&told)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = processes.into_iter().map(|(name, pids)| {
        let pid = pids.first().map_or_else(|| "not running".into(), |p| format!("pid {p}"));
        vec![name, pid]
    });
    say!("{}", table(&["PROCESS", "STATE"], rows))?;
    crate::write(&pods_table(lab))?;
    Ok(ExitCode::SUCCESS)
}

fn down(name: &str, all: bool) -> Result<ExitCode> {
    if !all && !Lab::is_there(name)? {
        bail!("{}", no_lab(name));
    }
    let names = if all { labs() } else { vec![name.to_owned()] };
    for name in names {
        Lab::clean(&name)?;
        tell!("lab {name} is gone");
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_whose_container_ended_is_not_called_running() {
        let one = |name: &str, state| (name.to_owned(), state);
        let (running, exited) = (ContainerState::Running, ContainerState::Exited("exit status: 3".into()));
        assert_eq!(state_of(&[one("web", running.clone())]), "running");
        assert_eq!(state_of(&[one("web", running), one("log", exited)]), "log exited (exit status: 3)");
        assert_eq!(state_of(&[one("web", ContainerState::NotStarted)]), "web not started");
    }
}
