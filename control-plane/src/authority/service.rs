//! The gRPC service that signs. A certificate is granted only for a live, enrolled pod on the caller's own node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use weft_proto::identity::{PodUid, SpiffeId};
use weft_proto::v1::certificates_server::Certificates;
use weft_proto::v1::{SignRequest, SignResponse};

use super::{AuthorityError, authenticate};
use crate::index::Index;
use crate::world::World;

pub struct CertificateService(pub Arc<World>);

/// Why a pod's certificate is refused. One answer to the caller for all: it learns nothing about other nodes' pods.
fn granted(index: &Index, node: &str, uid: &PodUid) -> Result<SpiffeId, &'static str> {
    let pod = index.pod_by_uid(uid).ok_or("the pod is not known")?;
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

#[tonic::async_trait]
impl Certificates for CertificateService {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let world = &self.0;
        let refuse = |status: Status| {
            world.metrics.certificates_refused.fetch_add(1, Ordering::Relaxed);
            status
        };
        let node = authenticate(&world.index.read(), request.metadata()).ok_or_else(|| {
            tracing::warn!(peer = ?request.remote_addr(), "certificate request without a valid join token");
            refuse(Status::unauthenticated("no valid join token"))
        })?;
        let request = request.into_inner();
        let uid: PodUid = request
            .pod_uid
            .parse()
            .map_err(|_| refuse(Status::invalid_argument("pod_uid is not a pod UID")))?;
        let identity = granted(&world.index.read(), &node, &uid).map_err(|reason| {
            tracing::warn!(%node, pod_uid = %uid, reason, "certificate refused");
            refuse(Status::permission_denied("no certificate for this pod on this node"))
        })?;
        let signed = world.authority.sign(&request.csr_der, &identity).map_err(|error| {
            tracing::warn!(%node, pod_uid = %uid, %error, "certificate refused");
            refuse(match error {
                AuthorityError::Csr(_) => Status::invalid_argument(error.to_string()),
                _ => Status::internal("signing failed"),
            })
        })?;
        world.metrics.certificates_signed.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%node, pod_uid = %uid, %identity, not_after = %signed.not_after, "certificate signed");
        Ok(Response::new(SignResponse {
            chain_der: signed.chain_der,
            not_before_unix_s: signed.not_before.unix_timestamp(),
            not_after_unix_s: signed.not_after.unix_timestamp(),
        }))
    }
}
