//! Starting a process inside a network namespace, a cgroup and, for pods, a mount namespace with its own `/etc/hosts`.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where a process runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
    /// Files of the host that the process sees at another path.
    pub(crate) files: Vec<(PathBuf, PathBuf)>,
}

impl Place {
    /// Makes `command` start in this place.
    pub(crate) fn apply(&self, command: &mut Command) -> Result<()> {
        super::cgroup::create(&self.cgroup)?;
        let netns: OwnedFd = File::open(super::netns::path(&self.netns))
            .with_context(|| format!("network namespace {}", self.netns))?
            .into();
        let procs: OwnedFd = OpenOptions::new()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))
            .with_context(|| format!("cgroup {}", self.cgroup.display()))?
            .into();
        let files = self.files.iter().map(|(from, to)| Ok((c_path(from)?, c_path(to)?)));
        let files: Vec<(CString, CString)> = files.collect::<Result<_>>()?;
        // SAFETY: between fork and exec the closure makes only system calls on descriptors and strings prepared
        // above; it neither allocates nor takes a lock.
        unsafe {
            command.pre_exec(move || {
                // "0" is the writing process itself.
                rustix::io::write(&procs, b"0")?;
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
                if !files.is_empty() {
                    own_files(&files)?;
                }
                Ok(())
            });
        }
        Ok(())
    }
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).with_context(|| format!("path {}", path.display()))
}

/// A private mount namespace in which each `to` shows the file `from`.
fn own_files(files: &[(CString, CString)]) -> io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: plain system calls with NUL-terminated strings that outlive them; null pointers where the kernel
    // ignores the argument.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return Err(io::Error::last_os_error());
        }
        let private = libc::MS_REC | libc::MS_PRIVATE;
        if libc::mount(none, c"/".as_ptr(), none, private, none.cast()) != 0 {
            return Err(io::Error::last_os_error());
        }
        for (from, to) in files {
            if libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Starts a background process that appends what it says to `log`. How it ends is noted beside the log (`.exit`), also after
/// the calling process is gone.
pub(crate) fn start(command: Command, place: &Place, log: &Path) -> Result<()> {
    start_with_output(command, place, log, log)
}

/// Like [`start`], with standard output apart from standard error.
pub(crate) fn start_with_output(
    mut command: Command,
    place: &Place,
    log: &Path,
    output: &Path,
) -> Result<()> {
    if let Some(directory) = log.parent() {
        fs::create_dir_all(directory)?;
    }
    let open = |file: &Path| OpenOptions::new().create(true).append(true).open(file);
    command.stdin(Stdio::null()).stdout(open(output)?).stderr(open(log)?);
    let note = log.with_extension("exit");
    super::remove_file(&note)?;
    // First of all, so that whoever waits stays where the caller is.
    let note = c_path(&note)?;
    // SAFETY: between fork and exec, system calls only, on a string prepared above.
    unsafe {
        command.pre_exec(move || match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => Ok(()),
            child => wait_and_note(child, &note),
        });
    }
    place.apply(&mut command)?;
    // SAFETY: a system call without arguments, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // A session of its own: a Ctrl-C at the terminal that started the lab does not reach its processes.
            libc::setsid();
            Ok(())
        });
    }
    let program = command.get_program().to_string_lossy().into_owned();
    let mut waiter = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // So that it leaves no zombie.
    std::thread::spawn(move || waiter.wait());
    Ok(())
}

/// What the parent of a started process does, and nothing else: waits for it and notes how it ended. Without allocating: the
/// process that it was forked from may have had other threads.
fn wait_and_note(child: libc::pid_t, note: &CStr) -> ! {
    // SAFETY: system calls on what lives on this stack, and on a string that outlives them.
    unsafe {
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"weft-lab-wait".as_ptr());
        // Locks and pipes of the caller: held here, they would never be seen closed.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        let mut status = 0;
        while libc::waitpid(child, &mut status, 0) == -1 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(1);
            }
        }
        // As the standard library words it.
        let (what, number): (&[u8], _) = match libc::WIFSIGNALED(status) {
            true => (b"signal: ", libc::WTERMSIG(status)),
            false => (b"exit status: ", libc::WEXITSTATUS(status)),
        };
        // The lab's directory may be gone by now: then nobody wants to know.
        let file = libc::open(note.as_ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC, 0o644);
        let write = |bytes: &[u8]| libc::write(file, bytes.as_ptr().cast(), bytes.len());
        write(what);
        for ten in [100, 10, 1] {
            if number >= ten || ten == 1 {
                write(&[b'0' + (number / ten % 10) as u8]);
            }
        }
        write(b"\n");
        libc::_exit(0)
    }
}

/// Sends a signal to every process of a group.
pub(crate) fn signal(group: &Path, signal: rustix::process::Signal) {
    for pid in super::cgroup::pids_below(group) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // A process that ended meanwhile needs no signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// A sum over all mappings of a process, in MiB: `Pss` (what it costs the machine), `Anonymous` (what it holds itself, without
/// the pages of its binary).
pub fn memory_mib(pid: i32, what: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')?.trim().strip_suffix(" kB"));
    let kib: f64 = line.with_context(|| format!("no {what} in smaps_rollup"))?.trim().parse()?;
    Ok(kib / 1024.0)
}

/// For tests that watch a process: the descriptor table's size.
pub fn open_descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
