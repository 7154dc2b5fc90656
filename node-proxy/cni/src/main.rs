//! `weft-cni`: the CNI plugin that the container runtime calls for every pod, last in the chain.
//!
//! It gives a pod nothing and takes nothing: it holds the pod's start up until `weft-node` has it in hand, and passes on what the plugins
//! before it answered. What it refuses, the kubelet tells in an event of the pod and tries again. Start reading at [`call`].

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use weft_cni::ask::{AskError, Patience, ask};
use weft_cni::conf::{self, Conf, Environment, Failure, VERSIONS, code};
use weft_cni::notice::Notice;
use weft_cni::wire::{Answer, Command};

/// Longest configuration: the result of some plugins lists hundreds of routes.
const STDIN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What to do about an agent that runs and does not answer.
const LOOK_AT_THE_AGENT: &str = "`kubectl -n weft-system get pods -o wide` names the weft-node of this node, \
    `kubectl -n weft-system logs <pod>` says what it did last, and `kubectl -n weft-system delete pod <pod>` replaces it; \
    its liveness probe does that by itself. The kubelet tries again.";

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--help" || argument == "--version") {
        println!(
            "weft-cni {}: a CNI plugin; the container runtime calls it, and weft-node installs it.\n\
             CNI versions: {}. See docs/cni.md.",
            env!("CARGO_PKG_VERSION"),
            VERSIONS.join(", ")
        );
        return ExitCode::SUCCESS;
    }
    let mut stdin = String::new();
    let read = io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut stdin);
    let environment = Environment::new(|name| std::env::var(name).ok());
    let done = match read {
        Ok(_) => call(&environment, &stdin),
        Err(error) => {
            Err(Failure::new(code::IO, "weft-cni: cannot read the configuration", error.to_string()))
        }
    };
    let (answer, exit) = match done {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.to_json(&conf::version_of(&stdin))), ExitCode::FAILURE),
    };
    let written = answer.map_or(Ok(()), |answer| writeln!(io::stdout(), "{answer}"));
    if written.is_ok() { exit } else { ExitCode::FAILURE }
}

/// One call of the runtime: what to print, if anything.
fn call(environment: &Environment, stdin: &str) -> Result<Option<Value>, Failure> {
    match environment.command.as_str() {
        "VERSION" => {
            return Ok(Some(json!({"cniVersion": conf::version_of(stdin), "supportedVersions": VERSIONS})));
        }
        // Always ready: an agent that is away holds up the pods that need it, one by one, and must not make the node NotReady.
        "STATUS" => return Ok(None),
        _ => {}
    }
    match environment.command.as_str() {
        "ADD" => add(environment, &conf::parse(stdin)?),
        "CHECK" => check(environment, &conf::parse(stdin)?),
        "DEL" | "GC" => {
            // The end of a sandbox must not fail, or the pod could not be deleted. Runtimes log what a plugin says here.
            if let Err(reason) = forget(environment, stdin) {
                eprintln!("weft-cni: weft-node was not told that a sandbox ended: {reason}");
            }
            Ok(None)
        }
        other => {
            let details = format!("{other:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION");
            Err(Failure::new(code::BAD_ENVIRONMENT, "weft-cni: unknown CNI_COMMAND", details))
        }
    }
}

fn add(environment: &Environment, conf: &Conf) -> Result<Option<Value>, Failure> {
    let addresses = conf.addresses()?;
    if let Some(namespace) = waits_for_the_agent(environment, conf) {
        agree(conf, namespace, Command::Add(environment.sandbox(namespace, addresses)?))?;
    }
    Ok(conf.prev_result.clone())
}

fn check(environment: &Environment, conf: &Conf) -> Result<Option<Value>, Failure> {
    let addresses = conf.addresses()?;
    if let Some(namespace) = waits_for_the_agent(environment, conf) {
        agree(conf, namespace, Command::Check(environment.sandbox(namespace, addresses)?))?;
    }
    Ok(None)
}

/// The pod's namespace, unless the pod is none of the agent's business.
fn waits_for_the_agent<'a>(environment: &'a Environment, conf: &Conf) -> Option<&'a str> {
    let namespace = environment.namespace()?;
    let excluded = conf.entry.exclude_namespaces.iter().any(|excluded| excluded == namespace);
    (!excluded).then_some(namespace)
}

/// The agent's word; while it gives none, what its notice says.
fn agree(conf: &Conf, namespace: &str, command: Command) -> Result<(), Failure> {
    let socket = Path::new(&conf.entry.socket);
    let (text, mut details) = match ask(socket, command, &Patience::BEGIN) {
        Ok(Answer { error: None, .. }) => return Ok(()),
        Ok(Answer { error: Some(error), .. }) => {
            let text = "weft: the pod cannot be taken into the mesh yet";
            return Err(Failure::new(code::TRY_AGAIN, text, error));
        }
        Err(error) => no_answer(&error, &conf.entry.socket),
    };
    match Notice::read(socket) {
        Ok(notice) if !notice.must_wait(namespace) => return Ok(()),
        Ok(_) => {}
        Err(error) => {
            let path = Notice::path(socket);
            details += &format!(
                " Pods outside the mesh wait too, because {} cannot be read: {error}",
                path.display()
            );
        }
    }
    Err(Failure::new(code::TRY_AGAIN, text, details))
}

fn no_answer(error: &AskError, socket: &str) -> (&'static str, String) {
    match error {
        AskError::Away(error) => (
            "weft: the pod waits for weft-node, which does not run on this node",
            format!(
                "nobody answers at {socket}: {error}. Is the DaemonSet weft-node ready here? The kubelet tries again."
            ),
        ),
        AskError::Hangs(_) | AskError::Late(_) => (
            "weft: the pod waits for weft-node, which does not answer",
            format!("{error} ({socket}). {LOOK_AT_THE_AGENT}"),
        ),
        AskError::Broken(_) => {
            ("weft: the pod waits for weft-node, which gave no answer", format!("{error} ({socket})."))
        }
    }
}

/// An agent that is away or hangs finds out by itself that the sandbox is gone.
fn forget(environment: &Environment, stdin: &str) -> Result<(), String> {
    let told = |failure: Failure| format!("{}: {}", failure.msg, failure.details);
    let conf = conf::parse(stdin).map_err(told)?;
    let command = match environment.command.as_str() {
        "GC" => Command::Gc { container_ids: conf.valid_sandboxes().map_err(told)? },
        _ => Command::Del { container_id: environment.container_id.clone() },
    };
    let answer = ask(Path::new(&conf.entry.socket), command, &Patience::END);
    answer.map_err(|error| error.to_string())?.error.map_or(Ok(()), Err)
}
