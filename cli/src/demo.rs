//! `weft demo`: brings up the story's lab, tells its steps with the evidence of each, takes the lab down.
//!
//! It owns how the story looks on a terminal and what happens when it is interrupted; what is told is in
//! `weft_e2e::story`. Start reading at [`run`].

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
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
    let style = Style::of_terminal();
    let interrupted = watch_for_interrupt(arguments.name.clone())?;
    let start = Instant::now();
    println!("{}", style.bold("Weft: a mesh of two nodes on this machine"));
    let result = tell(arguments, style, &interrupted);
    if interrupted.load(Ordering::Acquire) {
        Lab::clean(&arguments.name)?;
        println!("\ninterrupted; the lab is gone");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let failed = result?;
    let took = start.elapsed().as_secs_f32();
    println!();
    if failed.is_empty() {
        println!("{} in {took:.1} s; the lab is gone", style.green("Every step held"));
        return Ok(ExitCode::SUCCESS);
    }
    let failed = failed.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    println!("{} after {took:.1} s; the lab is gone", style.red(&format!("Failed: step {failed}")));
    Ok(ExitCode::FAILURE)
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
        let holds = tell_one(step, &mut lab, style, interrupted);
        if interrupted.load(Ordering::Acquire) {
            return Ok(failed);
        }
        if !holds {
            failed.push(step.number);
            println!("   logs of the lab: {}", lab.keep_logs()?.display());
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
    print!("bringing up the lab ...");
    std::io::stdout().flush()?;
    let lab = story::up(name).inspect_err(|_| println!()).context("the lab did not come up")?;
    let (nodes, pods) = (lab.nodes().len(), lab.state().pods.len());
    println!(" {nodes} nodes, {pods} pods, {:.1} s", start.elapsed().as_secs_f32());
    Ok(lab)
}

fn tell_one(step: &Step, lab: &mut Lab, style: Style, interrupted: &AtomicBool) -> bool {
    println!("\n{}", style.bold(&format!("{}. {}", step.number, step.title)));
    let start = Instant::now();
    let result = (step.run)(lab);
    let seconds = start.elapsed().as_secs_f32();
    match result {
        Ok(evidence) => {
            evidence.iter().for_each(|line| println!("   {line}"));
            println!("   {} {}", style.green("holds"), style.dim(&format!("{seconds:.1} s")));
            true
        }
        Err(_) if interrupted.load(Ordering::Acquire) => false,
        Err(error) => {
            println!("   {} {error:#} {}", style.red("FAILED:"), style.dim(&format!("{seconds:.1} s")));
            false
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
        println!("\ntaking the lab down ...");
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
