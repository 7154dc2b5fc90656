//! Running host tools (`ip`, `nft`, `mount`) with errors that name the command and what it said.
//!
//! Nothing here runs inside a pod; that is [`super::process`].

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs a tool to its end; an exit code other than 0 is an error that quotes the tool.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<Output> {
    run_with_input(program, args, "")
}

/// Like [`run`], with `input` on standard input.
pub(crate) fn run_with_input(program: &str, args: &[&str], input: &str) -> Result<Output> {
    let shown = || format!("{program} {}", args.join(" "));
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`: is it installed? `make setup` installs it", shown()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that stops reading early says why on standard error, which is reported below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("`{}` was lost", shown()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let given = if input.is_empty() { String::new() } else { format!("\ninput was:\n{input}") };
        bail!("`{}` failed with {}: {}{given}", shown(), output.status, said.trim());
    }
    Ok(output)
}

/// Runs several `ip` sub-commands inside one network namespace, in one process.
pub(crate) fn ip_batch(netns: &str, lines: &[String]) -> Result<()> {
    run_with_input("ip", &["-n", netns, "-batch", "-"], &(lines.join("\n") + "\n"))?;
    Ok(())
}
