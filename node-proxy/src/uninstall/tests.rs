//! Only a clear answer is an uninstall: asked of a real TLS server that answers what an API server may.

use std::collections::BTreeSet;

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_yaml_ng::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_rustls::TlsAcceptor;

use super::*;

const PRESENT: (u16, &str) = (200, r#"{"kind":"DaemonSet","metadata":{"name":"weft-node"}}"#);
const DELETING: (u16, &str) = (
    200,
    r#"{"kind":"DaemonSet","metadata":{"name":"weft-node","deletionTimestamp":"2026-11-22T00:00:00Z"}}"#,
);
const GONE: (u16, &str) = (404, r#"{"kind":"Status","status":"Failure","reason":"NotFound","code":404}"#);
const FORBIDDEN: (u16, &str) = (403, r#"{"kind":"Status","reason":"Forbidden"}"#);
const UNAUTHORIZED: (u16, &str) = (401, r#"{"kind":"Status","reason":"Unauthorized"}"#);
const NAMESPACE: (u16, &str) = (200, r#"{"kind":"Namespace","metadata":{"name":"weft-system"}}"#);
const TERMINATING: (u16, &str) = (
    200,
    r#"{"kind":"Namespace","metadata":{"name":"weft-system","deletionTimestamp":"2026-11-22T00:00:00Z"}}"#,
);
/// The connection is closed without an answer.
const SILENT: (u16, &str) = (0, "");

/// An API server that gives these answers about the DaemonSet in turn, the last one for ever, and always one about the namespace.
struct Api {
    cluster: Cluster,
    answers: Arc<Mutex<Vec<(u16, &'static str)>>>,
    namespace: Arc<Mutex<(u16, &'static str)>>,
    requests: Arc<Mutex<Vec<String>>>,
    _credentials: tempfile::TempDir,
}

impl Api {
    async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(CertificateParams::new(vec!["ca".into()]).unwrap(), key);
        Self::with(authority.unwrap(), None).await
    }

    /// `trusted`: the authority that the client believes in, if it is another.
    async fn with(authority: CertifiedIssuer<'static, KeyPair>, trusted: Option<String>) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        let credentials = tempfile::tempdir().unwrap();
        std::fs::write(credentials.path().join("ca.crt"), trusted.unwrap_or(authority.pem())).unwrap();
        std::fs::write(credentials.path().join("token"), "the-token\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answers, requests) = (Arc::new(Mutex::new(vec![PRESENT])), Arc::new(Mutex::new(Vec::new())));
        let namespace = Arc::new(Mutex::new(NAMESPACE));
        tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&answers),
            Arc::clone(&namespace),
            Arc::clone(&requests),
        ));
        let cluster = Cluster {
            host: "127.0.0.1".into(),
            port,
            credentials: credentials.path().into(),
            daemonset: "weft-system/weft-node".parse().unwrap(),
            seen: AtomicBool::new(false),
        };
        Self { cluster, answers, namespace, requests, _credentials: credentials }
    }

    async fn answers(&self, answers: &[(u16, &'static str)]) {
        *self.answers.lock().await = answers.to_vec();
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answers: Arc<Mutex<Vec<(u16, &'static str)>>>,
    namespace: Arc<Mutex<(u16, &'static str)>>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = tls.accept(tcp).await else { continue };
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let of_namespace = request.starts_with("GET /api/v1/namespaces/weft-system HTTP/1.1");
        requests.lock().await.push(request);
        let mut answers = answers.lock().await;
        let (status, body) = match answers.len() {
            _ if of_namespace => *namespace.lock().await,
            1 => answers[0],
            _ => answers.remove(0),
        };
        if status != 0 {
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(text.as_bytes()).await.unwrap();
        }
        // The client may have gone.
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn only_a_clear_answer_is_an_uninstall() {
    let api = Api::start().await;
    api.cluster.verify().await;
    for (answers, removed) in [
        (&[PRESENT][..], false),
        (&[DELETING], true),
        (&[GONE], true),
        (&[FORBIDDEN], true),
        (&[UNAUTHORIZED], true),
        // The last word counts, and an unclear one is asked again.
        (&[FORBIDDEN, PRESENT], false),
        (&[(503, "busy"), (429, "slow"), GONE], true),
        (&[SILENT, PRESENT], false),
        // Not all refused.
        (&[FORBIDDEN, (500, ""), FORBIDDEN], false),
        (&[(500, "")], false),
        (&[SILENT], false),
        // A 404 of something else, and a 200 of something else.
        (&[(404, "<html>no such page</html>")], false),
        (&[(404, r#"{"kind":"Status","reason":"Other"}"#)], false),
        (&[(200, r#"{"kind":"DaemonSet","metadata":{"name":"other","deletionTimestamp":"x"}}"#)], false),
        (&[(200, "{}")], false),
        (&[(302, "")], false),
    ] {
        api.answers(answers).await;
        assert_eq!(api.cluster.was_removed().await, removed, "{answers:?}");
    }
    let requests = api.requests.lock().await;
    assert!(
        requests[0].starts_with("GET /apis/apps/v1/namespaces/weft-system/daemonsets/weft-node HTTP/1.1")
    );
    assert!(requests[0].contains("authorization: Bearer the-token\r\n"), "{}", requests[0]);
}

/// `kubectl delete namespace`, and `delete -k`, which begins with it: the pods may be told to end while the DaemonSet is still there.
#[tokio::test]
async fn a_namespace_that_is_being_deleted_takes_weft_with_it() {
    let api = Api::start().await;
    api.cluster.verify().await;
    for (namespace, removed) in [
        (NAMESPACE, false),
        (TERMINATING, true),
        // A role of an earlier version, and whatever is no clear answer.
        (FORBIDDEN, false),
        (GONE, false),
        ((503, "busy"), false),
        (DELETING, false),
    ] {
        *api.namespace.lock().await = namespace;
        assert_eq!(api.cluster.was_removed().await, removed, "{namespace:?}");
    }
}

#[tokio::test]
async fn a_daemonset_that_was_never_seen_is_not_missed() {
    let api = Api::start().await;
    for answer in [GONE, FORBIDDEN, DELETING] {
        api.answers(&[answer]).await;
        assert!(!api.cluster.was_removed().await, "{answer:?}");
    }
    assert!(api.requests.lock().await.is_empty(), "nobody was asked");
}

#[tokio::test]
async fn a_server_of_another_authority_and_one_that_does_not_answer_are_not_believed() {
    let issuer = |name: &str| {
        let params = CertificateParams::new(vec![name.into()]).unwrap();
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let api = Api::with(issuer("ca"), Some(issuer("another").pem())).await;
    api.answers(&[GONE]).await;
    api.cluster.seen.store(true, Ordering::Relaxed);
    assert!(!api.cluster.was_removed().await);
    // Accepts, and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = Cluster { port, ..api.cluster };
    assert!(matches!(silent.ask().await, Err(AskError::Late)));
}

/// What the API server's authorizer makes of a request: the API group, the resource, the object.
fn asked_for(request: &str) -> [&str; 3] {
    let path = request.strip_prefix("GET /").and_then(|rest| rest.split(' ').next()).unwrap();
    match path.split('/').collect::<Vec<_>>()[..] {
        ["apis", group, _, "namespaces", "weft-system", resource, name] => [group, resource, name],
        ["api", "v1", "namespaces", name] => ["", "namespaces", name],
        _ => panic!("{path}"),
    }
}

#[tokio::test]
async fn the_charts_rights_are_what_is_asked_for_and_no_more() {
    let api = Api::start().await;
    api.cluster.verify().await;
    assert!(!api.cluster.was_removed().await);
    let requests = api.requests.lock().await;
    let asked: BTreeSet<_> = requests.iter().map(|request| asked_for(request).map(str::to_owned)).collect();

    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/manifests/weft.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let of_node =
        |document: &&str| document.contains("\nkind: Role\n") && document.contains("  name: weft-node\n");
    let role: Vec<_> = manifest.split("\n---\n").filter(of_node).collect();
    let role: Value = serde_yaml_ng::from_str(role[0]).unwrap();
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_sequence().unwrap() {
        let one = |field: &str| match rule[field].as_sequence().map(Vec::as_slice) {
            Some([one]) => one.as_str().unwrap().to_owned(),
            other => panic!("{field}: {other:?}"),
        };
        assert_eq!(one("verbs"), "get");
        granted.insert([one("apiGroups"), one("resources"), one("resourceNames")]);
    }
    assert_eq!(asked, granted);
    // In other roles it has none.
    let bound = manifest.split("\n---\n").filter(|document| document.contains("\nsubjects:\n"));
    assert_eq!(bound.filter(|document| document.contains("\n    name: weft-node\n")).count(), 1);
}
