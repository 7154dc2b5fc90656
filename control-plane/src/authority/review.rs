//! ServiceAccount tokens of a cluster, judged by its API server: a bound token of Weft's node agent names the node it was made for.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use tokio::sync::Semaphore;

use super::authenticate::{Authenticate, NotVouched};

/// The token must have been made for this reader.
const AUDIENCE: &str = "weft-control";
/// The ServiceAccount of the node agents.
const SERVICE_ACCOUNT: &str = "weft-node";
/// Where the API server says which node the token's pod runs on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Of one review, the wait for a place included.
const REVIEW_WAIT_MAX: Duration = Duration::from_secs(8);
/// Reviews at the same time: all nodes may come at once, the API server has other work too.
const REVIEWS_UNDER_WAY_MAX: usize = 32;

pub(crate) struct TokenReviews {
    reviews: Api<TokenReview>,
    user: String,
    under_way: Semaphore,
}

impl TokenReviews {
    /// `namespace`: Weft's own.
    pub(crate) fn new(client: kube::Client, namespace: &str) -> Self {
        Self {
            reviews: Api::all(client),
            user: format!("system:serviceaccount:{namespace}:{SERVICE_ACCOUNT}"),
            under_way: Semaphore::new(REVIEWS_UNDER_WAY_MAX),
        }
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, NotVouched> {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let _place = self.under_way.acquire().await;
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        // The error may not quote the request: only its kind is told.
        let answer = answer.map_err(|error| NotVouched::Unavailable(kind_of(&error)))?;
        answer.status.ok_or_else(|| NotVouched::Unavailable("the API server's review says nothing".into()))
    }
}

/// What went wrong with a request, without its content.
pub(super) fn kind_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("the API server answered {} {}", status.code, status.reason),
        kube::Error::Service(_) | kube::Error::HyperError(_) => "the API server cannot be reached".into(),
        _ => "the API server's answer cannot be used".into(),
    }
}

#[tonic::async_trait]
impl Authenticate for TokenReviews {
    async fn node(&self, token: &str) -> Result<Arc<str>, NotVouched> {
        let review = tokio::time::timeout(REVIEW_WAIT_MAX, self.review(token)).await;
        let review =
            review.map_err(|_| NotVouched::Unavailable("the API server did not answer in time".into()))?;
        node_of(&review?, &self.user)
    }

    /// Told at the next renewal: an API server that is away must not end the sessions of nodes.
    fn vouches_for(&self, _node: &str) -> bool {
        true
    }
}

/// The node of a reviewed token, if it is one of the node agents'.
fn node_of(review: &TokenReviewStatus, user: &str) -> Result<Arc<str>, NotVouched> {
    let refused = |reason: String| Err(NotVouched::Refused(reason));
    if review.authenticated != Some(true) {
        return refused("the API server does not know the token, or it is for another audience".into());
    }
    // A server that does not know audiences answers without any: then the token was not checked for ours.
    if !review.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return refused(format!("the token is not for the audience {AUDIENCE}"));
    }
    let found = review.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    if found != user {
        return refused(format!("the token is of {found:?} and not of {user:?}"));
    }
    let extra = review.user.as_ref().and_then(|user| user.extra.as_ref());
    match extra.and_then(|extra| extra.get(NODE_NAME)).map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.as_str().into()),
        _ => refused("the token names no node: it is not bound to a pod that runs on one".into()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::UserInfo;

    use super::*;

    const USER: &str = "system:serviceaccount:weft-system:weft-node";

    fn review(change: impl FnOnce(&mut TokenReviewStatus)) -> Result<Arc<str>, NotVouched> {
        let extra = [(NODE_NAME.to_owned(), vec!["node-1".to_owned()])].into();
        let user = UserInfo { username: Some(USER.into()), extra: Some(extra), ..UserInfo::default() };
        let mut status = TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.into()]),
            user: Some(user),
            error: None,
        };
        change(&mut status);
        node_of(&status, USER)
    }

    #[test]
    fn a_bound_token_of_the_node_agent_names_its_node_and_nothing_else_does() {
        assert_eq!(review(|_| ()).as_deref(), Ok("node-1"));
        let user = |change: fn(&mut UserInfo)| review(|status| change(status.user.as_mut().unwrap()));
        for (what, answer) in [
            ("not authenticated", review(|status| status.authenticated = Some(false))),
            ("nothing said", review(|status| status.authenticated = None)),
            ("no audience", review(|status| status.audiences = None)),
            ("another audience", review(|status| status.audiences = Some(vec!["https://kubernetes".into()]))),
            ("no user", review(|status| status.user = None)),
            ("another account", user(|u| u.username = Some("system:serviceaccount:shop:weft-node".into()))),
            ("no node claim", user(|u| u.extra = None)),
            ("an empty claim", user(|u| u.extra = Some([(NODE_NAME.into(), vec![String::new()])].into()))),
            (
                "two nodes",
                user(|u| u.extra = Some([(NODE_NAME.into(), vec!["a".into(), "b".into()])].into())),
            ),
        ] {
            assert!(matches!(answer, Err(NotVouched::Refused(_))), "{what}: {answer:?}");
        }
    }
}
