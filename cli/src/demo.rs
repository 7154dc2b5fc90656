//! `weft demo`: brings up the story's lab, tells its steps with the evidence of each, takes the lab down.
//!
//! It owns how the story looks on a terminal and what happens when it is interrupted; what is told is in
//! `weft_e2e::story`. Start reading at [`run`].

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use weft_e2e::lab::Lab;
use weft_e2e::story::{self, Step};

/// How long the step that was interrupted may take to notice that its lab is dead.
const INTERRUPTED_WAIT_MAX: Duration = Duration::from_secs(10);
/// As a shell reports a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(
    after_help = "Exits with 0 if every step held. Needs root; `make demo` also builds what is needed."
)]
pub(crate) struct Arguments {
    /// Name of the lab that is brought up and taken down
    #[arg(long, default_value = "demo")]
    name: String,
    /// Tell only these steps; may be repeated
    #[arg(long, value_name = "NUMBER")]
    step: Vec<u8>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_steps(&arguments.step)?;
    let style = Style::of_terminal();
    let interrupted = watch_for_interrupt(arguments.name.clone())?;
    let start = Instant::now();
    say!("{}", style.bold("Weft: a mesh of two nodes on this machine"))?;
    let result = tell(arguments, style, &interrupted);
    if interrupted.load(Ordering::Acquire) {
        Lab::clean(&arguments.name)?;
        say!("\ninterrupted; the lab is gone")?;
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let failed = result?;
    let took = start.elapsed().as_secs_f32();
    if failed.is_empty() {
        let held = if arguments.step.is_empty() { "Every step held" } else { "Every chosen step held" };
        say!("\n{} in {took:.1} s; the lab is gone", style.green(held))?;
        return Ok(ExitCode::SUCCESS);
    }
    let failed = failed.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let failed = style.red(&format!("Failed: step {failed}"));
    // Whoever reads no more is told by the exit code.
    tell!("\n{failed} after {took:.1} s; the lab is gone");
    Ok(ExitCode::FAILURE)
}

/// A story without steps would hold whatever the mesh does.
fn check_steps(chosen: &[u8]) -> Result<()> {
    let Some(unknown) = chosen.iter().find(|chosen| story::STEPS.iter().all(|s| s.number != **chosen)) else {
        return Ok(());
    };
    let steps: String = story::STEPS.iter().map(|s| format!("\n  {}  {}", s.number, s.title)).collect();
    bail!("there is no step {unknown}; the steps are:{steps}")
}

/// Tells the steps and takes the lab down. The numbers of those that failed.
fn tell(arguments: &Arguments, style: Style, interrupted: &AtomicBool) -> Result<Vec<u8>> {
    let mut lab = up(&arguments.name)?;
    if interrupted.load(Ordering::Acquire) {
        return Ok(Vec::new());
    }
    let chosen = |step: &&Step| arguments.step.is_empty() || arguments.step.contains(&step.number);
    let mut failed = Vec::new();
    for step in story::STEPS.iter().filter(chosen) {
        let holds = tell_one(step, &mut lab, style, interrupted)?;
        if interrupted.load(Ordering::Acquire) {
            return Ok(failed);
        }
        if !holds {
            failed.push(step.number);
            say!("   logs of the lab: {}", lab.keep_logs()?.display())?;
            // What the step left half done must not spoil the next one.
            lab.down().context("the lab is not all gone")?;
            lab = up(&arguments.name)?;
        }
    }
    lab.down().context("the lab is not all gone")?;
    Ok(failed)
}

fn up(name: &str) -> Result<Lab> {
    let start = Instant::now();
    crate::write("bringing up the lab ...")?;
    let ended = |_: &anyhow::Error| {
        tell!("");
    };
    let lab = story::up(name).inspect_err(ended).context("the lab did not come up")?;
    let (nodes, pods) = (lab.nodes().len(), lab.state().pods.len());
    say!(" {nodes} nodes, {pods} pods, {:.1} s", start.elapsed().as_secs_f32())?;
    Ok(lab)
}

fn tell_one(step: &Step, lab: &mut Lab, style: Style, interrupted: &AtomicBool) -> Result<bool> {
    say!("\n{}", style.bold(&format!("{}. {}", step.number, step.title)))?;
    let start = Instant::now();
    let result = (step.run)(lab);
    let seconds = start.elapsed().as_secs_f32();
    match result {
        Ok(evidence) => {
            evidence.iter().try_for_each(|line| say!("   {line}"))?;
            say!("   {} {}", style.green("holds"), style.dim(&format!("{seconds:.1} s")))?;
            Ok(true)
        }
        Err(_) if interrupted.load(Ordering::Acquire) => Ok(false),
        Err(error) => {
            say!("   {} {error:#} {}", style.red("FAILED:"), style.dim(&format!("{seconds:.1} s")))?;
            Ok(false)
        }
    }
}

/// On Ctrl-C or SIGTERM the lab's processes are ended, so that the step that runs fails and the story ends.
fn watch_for_interrupt(name: String) -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let told = flag.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Handlers are in place when this returns, not when the thread gets to run.
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        use tokio::signal::unix::{SignalKind, signal};
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
        });
        told.store(true, Ordering::Release);
        tell!("\ntaking the lab down ...");
        // Not removed here: a step may be making new things. If the processes cannot be ended, it takes a little longer.
        let _ = Lab::kill(&name);
        std::thread::sleep(INTERRUPTED_WAIT_MAX);
        let _ = Lab::clean(&name);
        std::process::exit(INTERRUPTED.into());
    });
    Ok(flag)
}

/// Colours, on a terminal only.
#[derive(Debug, Clone, Copy)]
struct Style {
    coloured: bool,
}

impl Style {
    fn of_terminal() -> Self {
        Self { coloured: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    fn red(self, text: &str) -> String {
        self.paint("31", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_there_is_not_is_refused_with_those_that_there_are() {
        assert!(check_steps(&[]).is_ok() && check_steps(&[1, 9]).is_ok());
        let said = check_steps(&[1, 42]).unwrap_err().to_string();
        assert!(said.contains("no step 42") && said.contains("\n  9  "), "{said}");
    }
}
