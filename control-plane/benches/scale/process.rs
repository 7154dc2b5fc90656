//! `weft-control` as a process, watched from outside: processor time and memory as the kernel counts them.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::api_server::ApiServer;

/// Of `/proc/PID/stat`: USER_HZ, the same on every architecture of today.
const TICK: Duration = Duration::from_millis(10);
/// Below this share of a core it counts as at rest.
const REST_CORES_MAX: f64 = 0.05;
/// Of a look at whether it is at rest, and how many in a row must say so.
const LOOK: Duration = Duration::from_secs(1);
const QUIET_LOOKS: u32 = 3;
/// What never comes to rest is measured as it is.
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(60);

pub(crate) struct Process {
    child: Mutex<Child>,
    pid: u32,
    pub(crate) address: SocketAddr,
    synced: Arc<Mutex<Option<f64>>>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
    }
}

impl Process {
    pub(crate) fn start(server: &ApiServer, binary: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let directory = server.directory.path();
        let (log, admin) = (directory.join("weft-control.log"), directory.join("admin.sock"));
        let _ = std::fs::remove_file(&admin);
        let child = Command::new(binary)
            .args([
                "--kubernetes",
                &format!("--listen={address}"),
                &format!("--admin=unix:{}", admin.display()),
            ])
            .env("KUBECONFIG", server.kubeconfig())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let synced = Arc::new(Mutex::new(None));
        tokio::spawn(watch_ready(admin, Instant::now(), synced.clone()));
        Self { pid: child.id(), child: Mutex::new(child), address, synced }
    }

    /// From the start until every kind was listed and taken in.
    pub(crate) fn synced_s(&self) -> f64 {
        self.synced.lock().unwrap().unwrap_or(f64::NAN)
    }

    /// User and kernel time, of all threads.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        // The name in brackets may hold anything; fields 14 and 15 of the whole are counted from behind it.
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        TICK * u32::try_from(ticks).unwrap()
    }

    fn kib(&self, file: &str, field: &str) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Resident and proportional set size.
    pub(crate) fn memory_mib(&self) -> (f64, f64) {
        (self.kib("status", "VmRSS") / 1024.0, self.kib("smaps_rollup", "Pss") / 1024.0)
    }

    pub(crate) fn peak_mib(&self) -> f64 {
        self.kib("status", "VmHWM") / 1024.0
    }

    /// Waits until it is at rest.
    pub(crate) async fn settle(&self) {
        let end = Instant::now() + SETTLE_WAIT_MAX;
        let mut quiet = 0;
        while quiet < QUIET_LOOKS && Instant::now() < end {
            let before = self.cpu();
            tokio::time::sleep(LOOK).await;
            let used = (self.cpu() - before).as_secs_f64() / LOOK.as_secs_f64();
            quiet = if used < REST_CORES_MAX { quiet + 1 } else { 0 };
        }
    }
}

async fn watch_ready(admin: PathBuf, began: Instant, synced: Arc<Mutex<Option<f64>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    loop {
        if let Ok(mut stream) = tokio::net::UnixStream::connect(&admin).await {
            let asked =
                stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            let mut answer = String::new();
            if asked.is_ok() && stream.read_to_string(&mut answer).await.is_ok() && answer.contains("200 OK")
            {
                *synced.lock().unwrap() = Some(began.elapsed().as_secs_f64());
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
