//! An API server for unit tests: answers by a function, and remembers what it was asked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::Cluster;

/// Each request as `GET /api/v1/nodes`, without its query.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// To be called where tasks can be spawned. `answer` is given the method and the path; None: there is no such thing; a value with a
/// `code`: that error.
pub(super) fn cluster(
    answer: impl Fn(&str, &str) -> Option<Value> + Send + Sync + 'static,
) -> (Cluster, Asked) {
    let asked = Asked::default();
    let noted = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let (method, path) = (request.method().as_str(), request.uri().path());
        noted.lock().unwrap().push(format!("{method} {path}"));
        let found = answer(method, path);
        let body = found.unwrap_or_else(|| json!({"code": 404, "reason": "NotFound", "message": path}));
        let code = body["code"].as_u64().map_or(200, |code| u16::try_from(code).unwrap());
        let body = Body::from(body.to_string().into_bytes());
        async move { Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap()) }
    });
    (Cluster { client: Client::new(service, "default"), server: "https://fake/".to_owned() }, asked)
}

/// What a path is about: an API group, and whether it is a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    pub(super) group: &'a str,
    pub(super) namespace: Option<&'a str>,
    pub(super) resource: &'a str,
    pub(super) name: Option<&'a str>,
}

/// None: not of an object or a list of them.
pub(super) fn place(path: &str) -> Option<Place<'_>> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (group, rest) = match segments.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        _ => (None, rest),
    };
    let resource = *rest.first()?;
    Some(Place { group, namespace, resource, name: rest.get(1).copied() })
}

/// What a cluster without anything answers, to a user who may do everything.
pub(super) fn bare(method: &str, path: &str) -> Option<Value> {
    match (method, place(path)) {
        (_, None) if path == "/version" => {
            Some(json!({"major": "1", "minor": "36", "gitVersion": "", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}))
        }
        ("POST", Some(Place { resource: "selfsubjectaccessreviews", .. })) => {
            Some(json!({"metadata": {}, "spec": {}, "status": {"allowed": true}}))
        }
        ("GET", Some(Place { name: None, .. })) => Some(json!({"metadata": {}, "items": []})),
        _ => None,
    }
}
