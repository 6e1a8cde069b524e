//! Both protocols against a real tonic server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::pin::Pin;
use std::time::Duration;

use d::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3 as d;
use tokio::sync::mpsc;
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, UnboundedReceiverStream},
};
use tonic::{Request, Response, Status, Streaming};
use xds_client::ads::{self, Config, Protocol, Transport};
use xds_client::any::pack;
use xds_client::error::ConfigError;
use xds_client::subscription::{Event, Rejected, Resource, ResourceHandler};

const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

type Answers<T> = mpsc::UnboundedSender<Result<T, Status>>;

/// Hands each stream to the test: its requests and where answers go.
struct Server {
    delta: mpsc::UnboundedSender<(
        Streaming<d::DeltaDiscoveryRequest>,
        Answers<d::DeltaDiscoveryResponse>,
    )>,
    sotw: mpsc::UnboundedSender<(
        Streaming<d::DiscoveryRequest>,
        Answers<d::DiscoveryResponse>,
    )>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Server {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<d::DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<d::DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        r: Request<Streaming<d::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.sotw.send((r.into_inner(), tx)).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }

    async fn delta_aggregated_resources(
        &self,
        r: Request<Streaming<d::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (tx, rx) = mpsc::unbounded_channel();
        self.delta.send((r.into_inner(), tx)).unwrap();
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(rx))))
    }
}

struct Recorder(mpsc::UnboundedSender<(Vec<String>, Vec<String>)>);

impl ResourceHandler for Recorder {
    fn apply(
        &mut self,
        _: &str,
        added: Vec<Resource>,
        removed: Vec<String>,
        _: bool,
    ) -> Vec<Rejected> {
        let names: Vec<_> = added.into_iter().map(|r| r.name).collect();
        self.0.send((names.clone(), removed)).unwrap();
        let bad = names.into_iter().filter(|n| n == "bad");
        bad.map(|name| Rejected {
            name,
            error: ConfigError::new("no").at("f"),
        })
        .collect()
    }
    fn on_event(&mut self, _: Event) {}
}

fn cluster(name: &str) -> envoy_types::pb::google::protobuf::Any {
    pack(&Cluster {
        name: name.into(),
        ..Cluster::default()
    })
}

fn resource(name: &str, version: &str) -> d::Resource {
    d::Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(cluster(name)),
        ..d::Resource::default()
    }
}

#[tokio::test]
async fn delta() {
    let (tx, mut streams) = mpsc::unbounded_channel();
    let (client, mut applied) = start(
        Protocol::Delta,
        Server {
            delta: tx,
            sotw: mpsc::unbounded_channel().0,
        },
    )
    .await;
    client.subscribe(CDS, vec![], Duration::ZERO);
    let (mut requests, answers) = streams.recv().await.unwrap();
    let first = requests.message().await.unwrap().unwrap();
    assert!(first.node.is_some() && first.resource_names_subscribe.is_empty());
    let mut reply = d::DeltaDiscoveryResponse {
        type_url: CDS.into(),
        nonce: "1".into(),
        resources: vec![resource("a", "v1"), resource("bad", "v1")],
        ..d::DeltaDiscoveryResponse::default()
    };
    answers.send(Ok(reply.clone())).unwrap();
    assert_eq!(applied.recv().await.unwrap().0, ["a", "bad"]);
    let nack = requests.message().await.unwrap().unwrap();
    assert!(nack.node.is_none());
    assert_eq!(nack.error_detail.unwrap().message, "bad: f: no");
    // The same bytes are acknowledged and not applied again; a removal is.
    reply.resources = vec![resource("a", "v2"), resource("b", "v1")];
    reply.nonce = "2".into();
    answers.send(Ok(reply.clone())).unwrap();
    assert_eq!(applied.recv().await.unwrap().0, ["b"]);
    let ack = requests.message().await.unwrap().unwrap();
    assert!(ack.error_detail.is_none() && ack.response_nonce == "2");
    reply.resources.clear();
    reply.removed_resources = vec!["b".into()];
    answers.send(Ok(reply.clone())).unwrap();
    assert_eq!(applied.recv().await.unwrap().1, ["b"]);
    requests.message().await.unwrap().unwrap();
    reply.removed_resources.clear();
    reply.resources = vec![resource("c", "1"), resource("c", "1")];
    answers.send(Ok(reply)).unwrap();
    let nack = requests.message().await.unwrap().unwrap();
    assert!(nack.error_detail.unwrap().message.contains("duplicate"));
    drop((requests, answers));
    let (mut requests, _answers) = streams.recv().await.unwrap();
    let again = requests.message().await.unwrap().unwrap();
    assert!(again.node.is_some() && again.response_nonce.is_empty());
    assert_eq!(
        again.initial_resource_versions,
        [("a".to_owned(), "v2".to_owned())].into()
    );
}

#[tokio::test]
async fn state_of_the_world() {
    let (tx, mut streams) = mpsc::unbounded_channel();
    let (client, mut applied) = start(
        Protocol::StateOfTheWorld,
        Server {
            sotw: tx,
            delta: mpsc::unbounded_channel().0,
        },
    )
    .await;
    client.subscribe(CDS, vec![], Duration::ZERO);
    let (mut requests, answers) = streams.recv().await.unwrap();
    requests.message().await.unwrap().unwrap();
    let mut reply = d::DiscoveryResponse {
        type_url: CDS.into(),
        nonce: "1".into(),
        version_info: "v1".into(),
        resources: vec![cluster("a"), cluster("b")],
        ..d::DiscoveryResponse::default()
    };
    answers.send(Ok(reply.clone())).unwrap();
    assert_eq!(applied.recv().await.unwrap().0, ["a", "b"]);
    let ack = requests.message().await.unwrap().unwrap();
    assert_eq!(
        (ack.version_info.as_str(), ack.response_nonce.as_str()),
        ("v1", "1")
    );
    reply.resources = vec![cluster("a"), cluster("bad")];
    (reply.version_info, reply.nonce) = ("v2".into(), "2".into());
    answers.send(Ok(reply)).unwrap();
    assert_eq!(
        applied.recv().await.unwrap(),
        (vec!["bad".into()], vec!["b".into()])
    );
    let nack = requests.message().await.unwrap().unwrap();
    assert_eq!(
        (nack.version_info.as_str(), nack.response_nonce.as_str()),
        ("v1", "2")
    );
    assert!(nack.error_detail.is_some());
    drop((requests, answers));
    let (mut requests, _answers) = streams.recv().await.unwrap();
    let again = requests.message().await.unwrap().unwrap();
    assert!(again.node.is_some() && again.response_nonce.is_empty() && again.version_info == "v1");
}

async fn start(
    protocol: Protocol,
    server: Server,
) -> (
    ads::Handle,
    mpsc::UnboundedReceiver<(Vec<String>, Vec<String>)>,
) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(server))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let (tx, applied) = mpsc::unbounded_channel();
    let (handle, commands) = ads::channel();
    let mut config = Config::ads(protocol, "xds");
    config.backoff_base = Duration::from_millis(1);
    ads::spawn(
        config,
        Node::default(),
        Transport::Tcp(address),
        commands,
        Box::new(Recorder(tx)),
    );
    (handle, applied)
}
