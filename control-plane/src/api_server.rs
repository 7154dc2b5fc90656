//! The client of the Kubernetes API server: which server, how long a silent connection is believed, and what a busy server asks for.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tower::util::{MapRequestLayer, MapResponseLayer};

use crate::settings::Settings;
use crate::token_file::TokenFile;

/// An API server that is not there must not hold up the next attempt.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a connection may be silent before it is taken for dead. A watch ends by itself after `watch`, and nothing else is as
/// quiet: what is silent for a quarter longer has lost its other end.
fn silence_max(watch: Duration) -> Duration {
    watch + watch / 4
}

/// Of the file that is given, else of KUBECONFIG or ~/.kube/config, else of the cluster that this runs in.
pub(crate) async fn client(settings: &Settings) -> anyhow::Result<Client> {
    let mut config = match &settings.kubeconfig {
        Some(file) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(file)?, &KubeConfigOptions::default())
                .await?
        }
        None => Config::infer().await?,
    };
    config.connect_timeout = Some(CONNECT_WAIT_MAX);
    config.read_timeout = Some(silence_max(settings.watch_time));
    tracing::info!(server = %config.cluster_url, "Kubernetes API server");
    let token = match (&config.auth_info.token, config.auth_info.token_file.take()) {
        (None, Some(file)) => {
            Some(TokenFile::open(file.clone().into()).with_context(|| format!("the token in {file}"))?)
        }
        _ => None,
    };
    let show = move |request: Request<Body>| match &token {
        Some(token) => token.shown(request),
        None => request,
    };
    let client = ClientBuilder::try_from(config)?.with_layer(&MapResponseLayer::new(with_retry_after));
    Ok(client.with_layer(&MapRequestLayer::new(show)).build())
}

type Answer<B> = Response<Either<Full<Bytes>, B>>;

/// A busy API server says in a header how long to stay away, and the library reads bodies only: the header's word is put there.
/// What is a Status already is passed on.
fn with_retry_after<B>(answer: Response<B>) -> Answer<B> {
    let busy = matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let text = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let is_status = text(header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with("application/json"));
    let seconds = text(header::RETRY_AFTER).and_then(|after| after.trim().parse::<u32>().ok());
    let Some(seconds) = seconds.filter(|_| busy && !is_status) else { return answer.map(Either::Right) };
    let code = answer.status();
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": if code == StatusCode::TOO_MANY_REQUESTS { "TooManyRequests" } else { "ServiceUnavailable" },
        "message": format!("the API server is busy and asks to stay away for {seconds} s"),
        "code": code.as_u16(),
        "details": { "retryAfterSeconds": seconds },
    });
    let mut told = Response::new(Either::Left(Full::new(Bytes::from(status.to_string()))));
    *told.status_mut() = code;
    told.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    told
}

/// The body that the library's own stack answers with.
const _: fn(Response<Box<DynBody>>) -> Answer<Box<DynBody>> = with_retry_after;

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(status: u16, kind: &str, after: Option<&str>) -> String {
        let mut answer = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
        if let Some(after) = after {
            answer = answer.header(header::RETRY_AFTER, after);
        }
        let told = with_retry_after(answer.body(Full::new(Bytes::from("as it was"))).unwrap());
        assert_eq!(told.status(), status);
        String::from_utf8(told.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn what_a_busy_server_asks_for_is_in_the_status() {
        for (status, reason) in [(429, "TooManyRequests"), (503, "ServiceUnavailable")] {
            let text = read(status, "text/plain", Some("7")).await;
            let status: kube::core::Status = serde_json::from_str(&text).unwrap();
            assert_eq!((status.details.unwrap().retry_after_seconds, status.reason.as_str()), (7, reason));
        }
        for (status, kind, after) in [
            (200, "text/plain", Some("7")),
            (500, "text/plain", Some("7")),
            (429, "application/json", Some("7")),
            (429, "text/plain", None),
            (429, "text/plain", Some("Wed, 21 Oct 2026 07:28:00 GMT")),
        ] {
            assert_eq!(read(status, kind, after).await, "as it was", "{status} {kind} {after:?}");
        }
    }
}
