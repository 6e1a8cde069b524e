//! How the management server is reached.

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};

use super::{Config, Transport};

/// Lazy: connects with the first request, and again after a failure.
pub(super) fn connect(config: &Config, transport: Transport) -> Option<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", config.authority))
        .ok()?
        .connect_timeout(config.connect_timeout);
    Some(match transport {
        Transport::Tcp(address) => {
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                let address = address.clone();
                async move {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    std::io::Result::Ok(TokioIo::new(stream))
                }
            }))
        }
        Transport::Secure(connector) => {
            let origin = format!("https://{}", config.authority).parse().ok()?;
            let connect = move |_| {
                let connecting = connector.connect();
                async move { connecting.await.map(TokioIo::new) }
            };
            endpoint
                .origin(origin)
                .connect_with_connector_lazy(tower::service_fn(connect))
        }
        Transport::Unix(path) => {
            endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
        }
    })
}
