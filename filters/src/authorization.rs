//! The client of an authorization service (`envoy.service.auth.v3`), for requests and for connections.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::auth::v3 as auth;
use tonic::metadata::AsciiMetadataValue;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use crate::grpc::GrpcChannel;
use crate::registry::GrpcConnector;
use crate::stream::Address;

/// Envoy's default for a service without `timeout`.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The way to an authorization service.
pub struct Authorizer {
    channel: GrpcChannel,
    timeout: Duration,
    /// The same as the service is told it.
    timeout_header: Option<AsciiMetadataValue>,
}

/// A deadline in gRPC's form, which has eight digits at most.
fn timeout_header(timeout: Duration) -> Option<AsciiMetadataValue> {
    let millis = timeout.as_millis().min(99_999_999);
    let text = (millis > 0).then(|| format!("{millis}m"))?;
    AsciiMetadataValue::try_from(text).ok()
}

impl Authorizer {
    /// Compiles the field `grpc_service` of a filter.
    ///
    /// # Errors
    /// What is wrong or unsupported there.
    pub fn compile(
        service: &core::GrpcService,
        grpc: &dyn GrpcConnector,
    ) -> Result<Self, ConfigError> {
        let timeout = duration::of_field(service.timeout.as_ref(), "grpc_service.timeout")?;
        let timeout = timeout.unwrap_or(TIMEOUT);
        Ok(Self {
            channel: grpc.channel(service).at("grpc_service")?,
            timeout,
            timeout_header: timeout_header(timeout),
        })
    }

    /// Asks the service. None: it has not answered, or not in time.
    pub async fn check(&self, request: auth::CheckRequest) -> Option<auth::CheckResponse> {
        let mut request = tonic::Request::new(request);
        if let Some(timeout) = &self.timeout_header {
            request
                .metadata_mut()
                .insert("grpc-timeout", timeout.clone());
        }
        let mut client = auth::authorization_client::AuthorizationClient::new(self.channel.clone());
        let answer = client.check(request);
        let answer = match self.timeout.is_zero() {
            true => answer.await.ok(),
            false => tokio::time::timeout(self.timeout, answer).await.ok()?.ok(),
        };
        answer.map(tonic::Response::into_inner)
    }
}

/// One side of a connection, as the service is told it.
pub fn peer(address: &Address) -> auth::attribute_context::Peer {
    auth::attribute_context::Peer {
        address: Some(address.to_proto()),
        ..auth::attribute_context::Peer::default()
    }
}
