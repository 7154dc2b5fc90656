//! A delta on the wire: a `v1::Delta` whose resources were encoded before, once for all nodes; and the gRPC service that sends it.
//!
//! The generated service would encode each resource anew for each node.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use weft_proto::v1;

use super::service::DiscoveryService;

const SUBSCRIBE: &str = "/weft.v1.Discovery/Subscribe";

/// Field by field a `v1::Delta`: a test compares.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Delta {
    #[prost(uint64, tag = "1")]
    pub(super) nonce: u64,
    #[prost(uint64, tag = "2")]
    pub(super) revision: u64,
    /// Each a `v1::Resource`.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub(super) upserts: Vec<Bytes>,
    #[prost(message, repeated, tag = "4")]
    pub(super) removals: Vec<v1::ResourceKey>,
    #[prost(bool, tag = "5")]
    pub(super) more: bool,
}

#[derive(Debug, Clone, Copy)]
struct Deltas;

impl Codec for Deltas {
    type Encode = Delta;
    type Decode = v1::NodeMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Deltas {
    type Item = Delta;
    type Error = Status;

    fn encode(&mut self, delta: Delta, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        delta.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Deltas {
    type Item = v1::NodeMessage;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<v1::NodeMessage>, Status> {
        let message = v1::NodeMessage::decode(from);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

/// `weft.v1.Discovery` as a service of the listener.
#[derive(Clone)]
pub struct DiscoveryServer {
    service: Arc<DiscoveryService>,
    message_bytes_max: usize,
}

impl DiscoveryServer {
    /// `message_bytes_max`: of what a node says.
    pub fn new(service: DiscoveryService, message_bytes_max: usize) -> Self {
        Self { service: Arc::new(service), message_bytes_max }
    }
}

impl NamedService for DiscoveryServer {
    const NAME: &'static str = v1::discovery_server::SERVICE_NAME;
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl tonic::codegen::Service<http::Request<Body>> for DiscoveryServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if request.uri().path() != SUBSCRIBE {
            return Box::pin(async { Ok(Status::unimplemented("there is no such method").into_http()) });
        }
        let method = Subscribe(self.service.clone());
        let mut grpc = Grpc::new(Deltas).max_decoding_message_size(self.message_bytes_max);
        Box::pin(async move { Ok(grpc.streaming(method, request).await) })
    }
}

struct Subscribe(Arc<DiscoveryService>);

impl StreamingService<v1::NodeMessage> for Subscribe {
    type Response = Delta;
    type ResponseStream = super::service::Stream;
    type Future = Answer<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<v1::NodeMessage>>) -> Self::Future {
        let answer = self.0.subscribe(request);
        Box::pin(std::future::ready(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delta_reads_as_the_protocol_has_it() {
        let key = v1::ResourceKey { kind: v1::Kind::Service.into(), name: "shop/backend".into() };
        let resource = v1::Resource { key: Some(key.clone()), version: 7, body: None };
        let encoded: Bytes = resource.encode_to_vec().into();
        let delta =
            Delta { nonce: 1, revision: 2, upserts: vec![encoded], removals: vec![key.clone()], more: true };
        let read = v1::Delta::decode(delta.encode_to_vec().as_slice()).unwrap();
        let expected =
            v1::Delta { nonce: 1, revision: 2, upserts: vec![resource], removals: vec![key], more: true };
        assert_eq!(read, expected);
    }
}
