//! The gRPC service that signs: a node's certificate for a good token, a pod's for the node that it runs on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use weft_proto::identity::{NamespacedName, NodeId, PodUid, SpiffeId};
use weft_proto::v1::certificates_server::Certificates;
use weft_proto::v1::{SignNodeRequest, SignRequest, SignResponse};

use super::authenticate::bearer;
use super::{AuthorityError, Signed};
use crate::caller::Caller;
use crate::index::Index;
use crate::source::object::Pod;
use crate::world::World;

pub struct CertificateService(pub Arc<World>);

/// Why a pod's certificate is refused. One answer to the caller for all: it learns nothing about other nodes' pods.
fn granted(index: &Index, node: &str, pod: Option<&Pod>) -> Result<SpiffeId, &'static str> {
    let pod = pod.ok_or("the pod is not known")?;
    if pod.node.as_deref() != Some(node) {
        return Err("the pod is not on the caller's node");
    }
    if pod.terminal {
        return Err("the pod has ended");
    }
    if !index.is_enrolled(pod) {
        return Err("the pod is not enrolled");
    }
    SpiffeId::new(index.trust_domain().clone(), &pod.id.namespace, &pod.service_account)
        .map_err(|_| "the service account's name is not valid")
}

fn not_signed(error: &AuthorityError) -> Status {
    match error {
        AuthorityError::Csr(_) => Status::invalid_argument(error.to_string()),
        _ => Status::internal("signing failed"),
    }
}

fn response(signed: Signed) -> Response<SignResponse> {
    Response::new(SignResponse {
        chain_der: signed.chain_der,
        not_before_unix_s: signed.not_before.unix_timestamp(),
        not_after_unix_s: signed.not_after.unix_timestamp(),
    })
}

impl CertificateService {
    async fn node_certificate(
        &self,
        caller: &Caller,
        request: Request<SignNodeRequest>,
    ) -> Result<(NodeId, Signed), Status> {
        let world = &self.0;
        let node = world.authenticate.node(bearer(request.metadata())?).await?;
        let shown = caller.certificate();
        if shown.is_some_and(|shown| *shown.node() != node) {
            return Err(Status::permission_denied("the token is another node's than the certificate"));
        }
        let domain = world.index.read().trust_domain().clone();
        let id = NodeId::new(domain, &node)
            .map_err(|_| Status::permission_denied("the token names no node that could be one"))?;
        let signed = world
            .authority
            .sign_node(&request.into_inner().csr_der, &id)
            .map_err(|error| not_signed(&error))?;
        if let Some(shown) = shown {
            shown.prolong(signed.not_after.unix_timestamp());
        }
        Ok((id, signed))
    }

    /// As the index has it; if it has none, as the API server has it, where there is one and the request says where to look.
    async fn pod(
        &self,
        node: &Arc<str>,
        uid: &PodUid,
        request: &SignRequest,
    ) -> Result<Option<Arc<Pod>>, Status> {
        let known = self.0.index.read().pod_by_uid(uid).cloned();
        let Some(live) =
            self.0.live_pods.as_ref().filter(|_| known.is_none() && !request.pod_name.is_empty())
        else {
            return Ok(known);
        };
        let id = NamespacedName::new(&request.pod_namespace, &request.pod_name)
            .map_err(|_| Status::invalid_argument("pod_namespace and pod_name name no pod"))?;
        let found = live.pod(node, &id).await?.filter(|pod| pod.uid == *uid);
        tracing::info!(%node, pod_uid = %uid, pod = %id, found = found.is_some(), "pod looked up for a certificate");
        Ok(found)
    }

    async fn pod_certificate(
        &self,
        caller: &Caller,
        request: SignRequest,
    ) -> Result<Signed, (Status, Option<String>)> {
        let world = &self.0;
        let plain = |status: Status| (status, None);
        let node = caller.node(world).map_err(plain)?.node();
        let uid: PodUid = request
            .pod_uid
            .parse()
            .map_err(|_| plain(Status::invalid_argument("pod_uid is not a pod UID")))?;
        let pod = self.pod(node, &uid, &request).await.map_err(plain)?;
        let identity = granted(&world.index.read(), node, pod.as_deref()).map_err(|reason| {
            (Status::permission_denied("no certificate for this pod on this node"), Some(reason.to_owned()))
        })?;
        let signed = world
            .authority
            .sign(&request.csr_der, &identity)
            .map_err(|error| (not_signed(&error), Some(error.to_string())))?;
        tracing::info!(%node, pod_uid = %uid, %identity, not_after = %signed.not_after, "certificate signed");
        Ok(signed)
    }
}

#[tonic::async_trait]
impl Certificates for CertificateService {
    async fn sign_node(&self, request: Request<SignNodeRequest>) -> Result<Response<SignResponse>, Status> {
        let (world, caller) = (&self.0, Caller::of(&request)?);
        match self.node_certificate(&caller, request).await {
            Ok((id, signed)) => {
                world.metrics.node_certificates_signed.fetch_add(1, Ordering::Relaxed);
                tracing::info!(peer = %caller.peer, %id, not_after = %signed.not_after, "node certificate signed");
                Ok(response(signed))
            }
            Err(status) => {
                world.metrics.node_certificates_refused.fetch_add(1, Ordering::Relaxed);
                if world.refusals_logged.admit() {
                    let (code, reason) = (status.code(), status.message());
                    tracing::warn!(peer = %caller.peer, ?code, reason, "node certificate refused");
                }
                Err(status)
            }
        }
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let (world, caller) = (&self.0, Caller::of(&request)?);
        let request = request.into_inner();
        let pod_uid: String = request.pod_uid.chars().filter(|c| !c.is_control()).take(64).collect();
        match self.pod_certificate(&caller, request).await {
            Ok(signed) => {
                world.metrics.certificates_signed.fetch_add(1, Ordering::Relaxed);
                Ok(response(signed))
            }
            Err((status, reason)) => {
                world.metrics.certificates_refused.fetch_add(1, Ordering::Relaxed);
                if world.refusals_logged.admit() {
                    let node = caller.certificate().map_or("", |shown| shown.node());
                    let reason = reason.as_deref().unwrap_or(status.message());
                    tracing::warn!(peer = %caller.peer, node, pod_uid, reason, "certificate refused");
                }
                Err(status)
            }
        }
    }
}
