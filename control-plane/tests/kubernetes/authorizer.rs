//! What somebody asks leave for, as the API server's authorizer is asked: requests, and what it wants besides while it serves them (to
//! create what an apply finds absent, to attest a signer's bundle), which no audit log has.
//!
//! A webhook before RBAC that has no opinion, so that RBAC decides.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use parking_lot::Mutex;

const NO_OPINION: &str =
    r#"{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","status":{"allowed":false}}"#;

/// One question about an object or a kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub(super) verb: String,
    pub(super) group: String,
    /// With its subresource.
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// Each once, by the user who asked.
type Asked = Arc<Mutex<BTreeSet<(String, Question)>>>;

pub(super) struct Authorizer {
    asked: Asked,
    _directory: tempfile::TempDir,
    /// For the API server.
    pub(super) arguments: Vec<String>,
}

impl Authorizer {
    pub(super) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let shared = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                let service = hyper::service::service_fn(move |request| answer(Arc::clone(&shared), request));
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("authorizer");
        std::fs::write(&kubeconfig, kubeconfig_of(address)).unwrap();
        let arguments = arguments(&kubeconfig);
        Self { asked, _directory: directory, arguments }
    }

    /// What is asked from now on counts.
    pub(super) fn begin(&self) {
        self.asked.lock().clear();
    }

    pub(super) fn asked_by(&self, user: &str) -> Vec<Question> {
        let asked = self.asked.lock();
        asked.iter().filter(|(by, _)| by == user).map(|(_, question)| question.clone()).collect()
    }
}

fn kubeconfig_of(address: std::net::SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test}}}}]\n"
    )
}

/// Nothing is answered from a cache: each question comes.
fn arguments(kubeconfig: &Path) -> Vec<String> {
    vec![
        "--authorization-mode=Webhook,RBAC".into(),
        "--authorization-webhook-version=v1".into(),
        format!("--authorization-webhook-config-file={}", kubeconfig.display()),
        "--authorization-webhook-cache-unauthorized-ttl=0s".into(),
    ]
}

async fn answer(asked: Asked, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: SubjectAccessReview = serde_json::from_slice(&body).unwrap();
    // Without: a path that is no object's, as of the API's description.
    if let (Some(user), Some(of)) = (review.spec.user, review.spec.resource_attributes) {
        let resource = of.resource.unwrap_or_default();
        let question = Question {
            verb: of.verb.unwrap_or_default(),
            group: of.group.unwrap_or_default(),
            resource: of.subresource.map_or(resource.clone(), |sub| format!("{resource}/{sub}")),
            namespace: of.namespace.unwrap_or_default(),
            name: of.name.unwrap_or_default(),
        };
        asked.lock().insert((user, question));
    }
    let answer = Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::new(NO_OPINION.into())).unwrap())
}
