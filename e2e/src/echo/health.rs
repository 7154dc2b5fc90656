//! The health service that kubelet's gRPC probes ask: the echo application serves as long as it runs.

use tonic::{Request, Response, Status};

#[allow(clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications, reason = "generated")]
mod generated {
    tonic::include_proto!("grpc.health.v1");
}
use generated::health_check_response::ServingStatus;
use generated::health_server::{Health, HealthServer};
use generated::{HealthCheckRequest, HealthCheckResponse};

/// Paths of its methods begin with this.
pub(super) const PATH: &str = "/grpc.health.v1.Health/";

#[derive(Debug)]
pub(super) struct Service;

pub(super) fn service() -> HealthServer<Service> {
    HealthServer::new(Service)
}

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving.into() }))
    }
}
