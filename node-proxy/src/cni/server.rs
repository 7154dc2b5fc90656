//! The agent's side of `cni.sock`: takes requests within bounds, and answers each. Knows nothing of pods.
//!
//! Whatever comes, a connection costs a place and a bounded time: it gets an answer that says what is wrong, or is closed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use weft_cni::wire::{ANSWER_BYTES_MAX, Answer, Command, REQUEST_BYTES_MAX, Request, SIGN_OF_LIFE, VERSION};

/// Pods that start at once: a node that comes back starts all of its (110 by default), and each may wait for word.
const PLACES_MAX: usize = 256;
/// More wait in the kernel's queue for a place.
pub(super) const BACKLOG: i32 = 256;
/// For the request and for the answer to be taken: the plugin does both at once.
const IO_TIMEOUT: Duration = Duration::from_secs(5);

/// Who decides what is answered.
pub(super) trait Answers: Send + Sync + 'static {
    /// Must end within a bounded time.
    fn answer(&self, command: Command) -> impl Future<Output = Answer> + Send;
}

/// Until `end`.
pub(super) async fn serve(listener: UnixListener, answers: Arc<impl Answers>, end: CancellationToken) {
    let places = Arc::new(Semaphore::new(PLACES_MAX));
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = end.cancelled() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors: the data path needs the next ones more.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (answers, end) = (Arc::clone(&answers), end.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = connection(stream, answers.as_ref()) => {}
                () = end.cancelled() => {}
            }
            drop(place);
        });
    }
}

async fn connection(mut stream: UnixStream, answers: &impl Answers) {
    let answer = match tokio::time::timeout(IO_TIMEOUT, request(&mut stream)).await {
        Ok(Ok(command)) => {
            let begins = matches!(command, Command::Add(_) | Command::Check(_));
            if !signed(&mut stream).await && begins {
                // Nobody waits for it any more, as after a hang of ours: the runtime has given that sandbox up.
                return;
            }
            answers.answer(command).await
        }
        Ok(Err(error)) => refusal(error),
        Err(_) => refusal(format!("the request did not come within {} s", IO_TIMEOUT.as_secs())),
    };
    let mut bytes = serde_json::to_vec(&answer).expect("an answer is plain text");
    bytes.truncate(ANSWER_BYTES_MAX);
    // The plugin may have given up: the runtime asks again.
    let _ = tokio::time::timeout(IO_TIMEOUT, stream.write_all(&bytes)).await;
}

/// Says that the request is in good hands; false: the plugin has hung up.
async fn signed(stream: &mut UnixStream) -> bool {
    let said = tokio::time::timeout(IO_TIMEOUT, stream.write_all(SIGN_OF_LIFE)).await;
    matches!(said, Ok(Ok(())))
}

fn refusal(error: String) -> Answer {
    tracing::warn!(error, "a request at the CNI socket is refused");
    Answer { error: Some(error), enrolled: false }
}

async fn request(stream: &mut UnixStream) -> Result<Command, String> {
    let mut text = Vec::new();
    let bytes_max = u64::try_from(REQUEST_BYTES_MAX).expect("a usize fits") + 1;
    let read = stream.take(bytes_max).read_to_end(&mut text).await;
    read.map_err(|error| format!("the request cannot be read: {error}"))?;
    if text.len() > REQUEST_BYTES_MAX {
        return Err(format!("the request is longer than {REQUEST_BYTES_MAX} bytes"));
    }
    let request: Request =
        serde_json::from_slice(&text).map_err(|error| format!("this is no request: {error}"))?;
    if request.version != VERSION {
        let other = request.version;
        return Err(format!(
            "weft-cni speaks version {other} of the socket's messages, weft-node {VERSION}: one of them is of another release"
        ));
    }
    Ok(request.command)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use weft_cni::ask::{AskError, Patience, ask};

    use super::*;
    use weft_admin::open_unix;

    /// Says what it was asked.
    struct Echo;

    impl Answers for Echo {
        async fn answer(&self, command: Command) -> Answer {
            Answer { error: Some(format!("{command:?}")), enrolled: true }
        }
    }

    fn start() -> (tempfile::TempDir, PathBuf, CancellationToken) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/cni.sock");
        let end = CancellationToken::new();
        tokio::spawn(serve(open_unix(&path, BACKLOG).unwrap(), Arc::new(Echo), end.clone()));
        (directory, path, end)
    }

    async fn asked(path: &Path, command: Command) -> Result<Answer, AskError> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || ask(&path, command, &Patience::END)).await.unwrap()
    }

    async fn raw(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        // A server that refuses early may have stopped reading.
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        answer
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_socket_is_its_owners() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, path, end) = start();
        let answer = asked(&path, Command::Del { container_id: "c1".into() }).await.unwrap();
        assert!(answer.enrolled && answer.error.unwrap().contains("c1"));
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        end.cancel();
        loop {
            // Nobody listens as soon as the end is known.
            match asked(&path, Command::Del { container_id: "c1".into() }).await {
                Err(AskError::Away(_)) => break,
                _ => tokio::task::yield_now().await,
            }
        }
    }

    /// Has word of nothing, ever.
    struct Waits(tokio::sync::mpsc::UnboundedSender<Command>);

    impl Answers for Waits {
        async fn answer(&self, command: Command) -> Answer {
            self.0.send(command).unwrap();
            std::future::pending().await
        }
    }

    fn add(container_id: &str) -> Command {
        Command::Add(weft_cni::wire::Sandbox {
            container_id: container_id.into(),
            netns: "/n".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: None,
            addresses: Vec::new(),
        })
    }

    #[tokio::test]
    async fn a_request_gets_a_sign_of_life_at_once_and_is_dropped_when_its_pod_gave_up_before() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cni.sock");
        let listener = open_unix(&path, BACKLOG).unwrap();
        let bytes = |command| serde_json::to_vec(&Request::new(command)).unwrap();
        // While the agent hung: a pod that began, and one that ended.
        for command in [add("given up"), Command::Del { container_id: "ended".into() }] {
            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            stream.write_all(&bytes(command)).unwrap();
            // Not by a drop: a child that another test is making may have a copy of the descriptor.
            stream.shutdown(std::net::Shutdown::Both).unwrap();
        }
        let (sender, mut asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(serve(listener, Arc::new(Waits(sender)), CancellationToken::new()));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(&bytes(add("waits"))).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut sign = [0; SIGN_OF_LIFE.len()];
        stream.read_exact(&mut sign).await.unwrap();
        assert_eq!(sign, SIGN_OF_LIFE);
        let told = [asked.recv().await.unwrap(), asked.recv().await.unwrap()];
        assert!(
            told.contains(&add("waits")) && told.contains(&Command::Del { container_id: "ended".into() })
        );
        assert!(asked.try_recv().is_err());
    }

    #[tokio::test]
    async fn hostile_input_gets_an_error_and_costs_nobody_else_anything() {
        let (_directory, path, _end) = start();
        // Holds a place and says nothing.
        let _silent = UnixStream::connect(&path).await.unwrap();
        let long = vec![b'['; REQUEST_BYTES_MAX + 1];
        let deep = b"[".repeat(10_000);
        for (bytes, told) in [
            (&b""[..], "no request"),
            (b"{", "no request"),
            (b"\xff\xfe\x00", "no request"),
            (b"{\"version\":1,\"command\":\"add\"}", "missing field"),
            (b"{\"version\":1,\"command\":\"rm -rf\"}", "unknown variant"),
            (b"{\"version\":2,\"command\":\"del\",\"container_id\":\"c\"}", "version 2"),
            (b"{\"version\":-1,\"command\":\"del\",\"container_id\":\"c\"}", "no request"),
            (&deep, "no request"),
            (&long, "longer than"),
        ] {
            let answer = raw(&path, bytes).await;
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
            // What is too long may meet a closed connection instead of the answer.
            assert!(answer.contains(told) || bytes.len() > REQUEST_BYTES_MAX, "{shown}: {answer}");
        }
        let answer = asked(&path, Command::Gc { container_ids: vec!["c2".into()] }).await.unwrap();
        assert!(answer.error.unwrap().contains("c2"));
    }
}
