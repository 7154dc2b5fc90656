//! Wall clocks that a test sets while the mesh runs: of `weft-control` and of each `weft-node` alone, by a small library that is loaded
//! before all others. The clocks that only go on are the machine's.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Lab;

const SOURCE: &str = include_str!("clock.c");
const LIBRARY: &str = "clock.so";
/// In the directory of each process: by how many seconds its clock is ahead.
const FILE: &str = "clock";

impl Lab {
    /// Sets the wall clock of `control` or of a node so many seconds ahead of the machine's, at once. Needs [`super::Options::clocks`].
    pub fn set_clock(&self, process: &str, ahead_seconds: i64) -> Result<()> {
        let file = self.directory().join(process).join(FILE);
        let clock = fs::OpenOptions::new().write(true).open(&file);
        let clock =
            clock.with_context(|| format!("{process} has no clock of its own: {}", file.display()))?;
        clock.write_all_at(&ahead_seconds.to_ne_bytes(), 0)?;
        Ok(())
    }

    /// What gives a process of the lab a wall clock of its own, which one that was there before left as it is.
    pub(super) fn clock_environment(&self, process: &str) -> Result<Vec<(&'static str, std::path::PathBuf)>> {
        if !self.state.options.clocks {
            return Ok(Vec::new());
        }
        let library = self.directory().join(LIBRARY);
        if !library.exists() {
            compile(&library)?;
        }
        let file = self.directory().join(process).join(FILE);
        if !file.exists() {
            fs::write(&file, 0_i64.to_ne_bytes()).with_context(|| file.display().to_string())?;
        }
        Ok(vec![("LD_PRELOAD", library), ("WEFT_TEST_CLOCK", file)])
    }
}

fn compile(library: &Path) -> Result<()> {
    let source = library.with_extension("c");
    fs::write(&source, SOURCE).with_context(|| source.display().to_string())?;
    let mut command = Command::new("cc");
    command.args(["-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(&source);
    let made = command.output().context("cc")?;
    if !made.status.success() {
        bail!("cc failed: {}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(())
}
