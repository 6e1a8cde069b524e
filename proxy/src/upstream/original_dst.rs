//! Clusters of type ORIGINAL_DST: the host is where the downstream connection was meant to go, made when it is first
//! asked for (Envoy: "Original destination").

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::r#type::metadata::v3::{MetadataKey, metadata_key::path_segment};
use filters::head::RequestHead;
use filters::matcher::header::HeaderRef;
use filters::matcher::metadata::lookup;
use filters::stream::{Address, DynamicMetadata, StreamInfo};
use serde_json::Value;
use xds_client::duration;
use xds_client::error::{At, ConfigError};

use super::cluster::ClusterConfig;
use super::host::{Health, Host};

/// The filter state that says where to go before anything else does.
const OVERRIDE: &str = "envoy.network.transport_socket.original_dst_address";

/// The most hosts of a cluster. Whoever says where to go may be anybody.
const MAX_HOSTS: usize = 1 << 16;

/// How such a cluster finds its hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalDst {
    header: Option<HeaderRef>,
    metadata: Option<(Box<str>, Vec<Box<str>>)>,
    port: Option<u16>,
    /// How long a host stays that nobody uses; up to twice this.
    cleanup: Duration,
}

/// Where a request or connection is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// There.
    To(SocketAddr),
    /// What says so is no address.
    Invalid,
    /// Nobody has said.
    Unknown,
}

fn path(key: &MetadataKey) -> Result<(Box<str>, Vec<Box<str>>), ConfigError> {
    let segments = key.path.iter().map(|segment| match &segment.segment {
        Some(path_segment::Segment::Key(key)) => Ok(key.as_str().into()),
        Some(path_segment::Segment::Index(_)) => Err(ConfigError::unsupported("index").at("path")),
        None => Err(ConfigError::new("value is required").at("path")),
    });
    Ok((
        key.key.as_str().into(),
        segments.collect::<Result<Vec<Box<str>>, _>>()?,
    ))
}

impl OriginalDst {
    /// Compiles what `proto` says of it.
    ///
    /// # Errors
    /// What is wrong, by field.
    pub fn compile(proto: &pb::Cluster) -> Result<Self, ConfigError> {
        use pb::cluster::{LbConfig, LbPolicy};
        if LbPolicy::try_from(proto.lb_policy) != Ok(LbPolicy::ClusterProvided) {
            let error = "only CLUSTER_PROVIDED is allowed with cluster type ORIGINAL_DST";
            return Err(ConfigError::new(error).at("lb_policy"));
        }
        if proto.load_assignment.is_some() {
            let error = "ORIGINAL_DST clusters must have no load assignment configured";
            return Err(ConfigError::new(error).at("load_assignment"));
        }
        let config = match &proto.lb_config {
            Some(LbConfig::OriginalDstLbConfig(config)) => config.clone(),
            _ => pb::cluster::OriginalDstLbConfig::default(),
        };
        let step = "original_dst_lb_config";
        if !config.use_http_header && !config.http_header_name.is_empty() {
            let error = ConfigError::new("needs use_http_header");
            return Err(error.at("http_header_name").at(step));
        }
        let header = match config.http_header_name.as_str() {
            "" => "x-envoy-original-dst-host",
            name => name,
        };
        let header = config.use_http_header.then(|| HeaderRef::parse(header));
        let port = config.upstream_port_override.as_ref();
        let port = port.map(|port| u16::try_from(port.value)).transpose();
        let metadata = config.metadata_key.as_ref().map(path).transpose();
        let cleanup = duration::of_field(proto.cleanup_interval.as_ref(), "cleanup_interval")?;
        Ok(Self {
            header: header.transpose().at("http_header_name").at(step)?,
            metadata: metadata.at("metadata_key").at(step)?,
            port: port.map_err(|_| {
                let error = ConfigError::new("must be at most 65535");
                error.at("upstream_port_override").at(step)
            })?,
            cleanup: cleanup.unwrap_or(Duration::from_secs(5)),
        })
    }

    /// Where a request with `head`, or a connection, is to go.
    pub fn destination(&self, head: Option<&RequestHead>, info: &StreamInfo) -> Destination {
        let found = self.find(head, info);
        match (found, self.port) {
            (Destination::To(mut address), Some(port)) => {
                address.set_port(port);
                Destination::To(address)
            }
            _ => found,
        }
    }

    fn find(&self, head: Option<&RequestHead>, info: &StreamInfo) -> Destination {
        if let Some(address) = info.filter_state.address(OVERRIDE) {
            return Destination::To(address);
        }
        let mut invalid = false;
        let mut parse = |text: &str| {
            let address = text.parse().ok();
            invalid |= address.is_none();
            address
        };
        let told = self.metadata.as_ref().and_then(|(namespace, path)| {
            let of = |m: &DynamicMetadata| text_at(m, namespace, path);
            let notes = info.connection.notes.as_ref().map(|notes| notes.borrow());
            let text = of(&info.dynamic_metadata).or_else(|| of(&notes?.dynamic_metadata));
            parse(&text?)
        });
        let told = told.or_else(|| {
            let value = self.header.as_ref()?.first_in_request(head?)?;
            parse(std::str::from_utf8(value).unwrap_or_default())
        });
        let restored = || {
            let connection = &info.connection;
            let local = connection.local_restored.then_some(&connection.local);
            local.and_then(Address::ip)
        };
        match told.or_else(restored) {
            Some(address) => Destination::To(address),
            None if invalid => Destination::Invalid,
            None => Destination::Unknown,
        }
    }
}

/// The text at a path; of a list the first entry, as in Envoy.
fn text_at(metadata: &DynamicMetadata, namespace: &str, path: &[Box<str>]) -> Option<String> {
    let value = lookup(metadata.get(namespace)?, path)?;
    let value = match value {
        Value::Array(list) => list.first()?,
        value => value,
    };
    value.as_str().map(str::to_owned)
}

/// The hosts that were asked for, by address. Shared by the workers, so that the numbers of a host are those of all:
/// a lock, taken once for each choice, and never for longer than a look-up.
#[derive(Debug)]
pub struct OriginalHosts(Mutex<Known>);

#[derive(Debug)]
struct Known {
    // Not the fast hasher: addresses may be an attacker's.
    hosts: HashMap<SocketAddr, Entry>,
    swept: Instant,
}

#[derive(Debug)]
struct Entry {
    host: Arc<Host>,
    /// Chosen since the last sweep.
    used: bool,
}

impl Default for OriginalHosts {
    fn default() -> Self {
        Self(Mutex::new(Known {
            hosts: HashMap::new(),
            swept: Instant::now(),
        }))
    }
}

impl OriginalHosts {
    /// The host at `address`; `None` if there are too many. Whether it is new comes with it.
    pub fn at(&self, address: SocketAddr, config: &ClusterConfig) -> Option<(Arc<Host>, bool)> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = known.hosts.get_mut(&address) {
            entry.used = true;
            return Some((entry.host.clone(), false));
        }
        if known.hosts.len() >= MAX_HOSTS {
            return None;
        }
        let transport = config.transport.clone();
        let at = Address::Ip(address);
        let host = Host::new(at, "".into(), transport, 1, Health::Healthy);
        let entry = Entry {
            host: host.clone(),
            used: true,
        };
        known.hosts.insert(address, entry);
        Some((host, true))
    }

    /// Forgets the hosts that were not chosen between the last two sweeps and have no connection. Gives how many.
    pub fn sweep(&self, settings: &OriginalDst) -> usize {
        // Another worker sweeps, or chooses: there is time.
        let Ok(mut known) = self.0.try_lock() else {
            return 0;
        };
        known.sweep(settings.cleanup)
    }

    /// The hosts of now.
    pub fn all(&self) -> Vec<Arc<Host>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = known.hosts.values();
        hosts.map(|entry| entry.host.clone()).collect()
    }

    /// None of them is used any longer.
    pub fn retire(&self) {
        self.all().iter().for_each(|host| host.set_removed());
    }
}

impl Known {
    fn sweep(&mut self, cleanup: Duration) -> usize {
        if self.swept.elapsed() < cleanup {
            return 0;
        }
        self.swept = Instant::now();
        let before = self.hosts.len();
        self.hosts.retain(|_, entry| {
            let kept = std::mem::take(&mut entry.used) || entry.host.is_connected();
            if !kept {
                entry.host.set_removed();
            }
            kept
        });
        before - self.hosts.len()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use envoy_types::pb::envoy::r#type::metadata::v3::metadata_key::PathSegment;
    use envoy_types::pb::google::protobuf::{Duration as PbDuration, UInt32Value};
    use filters::stream::{ConnectionNotes, FilterObject, FilterState};
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::http::testing::connection;

    fn proto(config: pb::cluster::OriginalDstLbConfig) -> pb::Cluster {
        pb::Cluster {
            name: "o".into(),
            cluster_discovery_type: Some(pb::cluster::ClusterDiscoveryType::Type(4)),
            lb_policy: pb::cluster::LbPolicy::ClusterProvided.into(),
            lb_config: Some(pb::cluster::LbConfig::OriginalDstLbConfig(config)),
            cleanup_interval: Some(PbDuration {
                seconds: 0,
                nanos: 1,
            }),
            ..Default::default()
        }
    }

    fn all() -> pb::cluster::OriginalDstLbConfig {
        pb::cluster::OriginalDstLbConfig {
            use_http_header: true,
            upstream_port_override: Some(UInt32Value { value: 15008 }),
            metadata_key: Some(MetadataKey {
                key: "ns".into(),
                path: vec![PathSegment {
                    segment: Some(path_segment::Segment::Key("waypoint".into())),
                }],
            }),
            ..Default::default()
        }
    }

    fn info(change: impl FnOnce(&mut filters::stream::ConnectionInfo)) -> StreamInfo {
        let mut connection = connection("192.0.2.1:1", "192.0.2.2:2");
        change(&mut connection);
        StreamInfo::for_connection(Rc::new(connection))
    }

    fn to(text: &str) -> Destination {
        Destination::To(text.parse().unwrap())
    }

    #[test]
    fn each_source_goes_before_the_next() {
        let settings = OriginalDst::compile(&proto(all())).unwrap();
        let mut head = RequestHead::new(Method::GET, "/");
        let at = |head: &RequestHead, info: &StreamInfo| settings.destination(Some(head), info);
        let mut facts = info(|_| {});
        assert_eq!(
            at(&head, &facts),
            Destination::Unknown,
            "a socket's own end"
        );
        facts = info(|c| c.local_restored = true);
        assert_eq!(at(&head, &facts), to("192.0.2.2:15008"));
        let name = "x-envoy-original-dst-host";
        head.headers.insert(name, "192.0.2.3:3".parse().unwrap());
        assert_eq!(at(&head, &facts), to("192.0.2.3:15008"));
        let metadata = |value| {
            let object = json!({ "waypoint": value });
            DynamicMetadata::from([("ns".into(), object.as_object().unwrap().clone())])
        };
        let notes = ConnectionNotes::with(metadata(json!(["192.0.2.4:4", "x"])));
        facts = info(|c| c.notes = Some(notes));
        assert_eq!(at(&head, &facts), to("192.0.2.4:15008"));
        facts.dynamic_metadata = metadata(json!("192.0.2.5:5"));
        assert_eq!(at(&head, &facts), to("192.0.2.5:15008"));
        let mut state = FilterState::default();
        let address = FilterObject::Address("192.0.2.6:6".parse().unwrap());
        state.set(OVERRIDE.into(), address);
        facts.filter_state = state;
        assert_eq!(at(&head, &facts), to("192.0.2.6:15008"));
    }

    #[test]
    fn what_is_no_address_leads_nowhere() {
        let settings = OriginalDst::compile(&proto(all())).unwrap();
        let mut head = RequestHead::new(Method::GET, "/");
        for bad in ["a.test:80", "192.0.2.3", "", "\u{ff}"] {
            let value = http::HeaderValue::from_bytes(bad.as_bytes()).unwrap();
            head.headers.insert("x-envoy-original-dst-host", value);
            let found = settings.destination(Some(&head), &info(|_| {}));
            assert_eq!(found, Destination::Invalid, "{bad}");
        }
    }

    #[test]
    fn wrong_settings_are_refused_by_field() {
        let path = |change: &dyn Fn(&mut pb::Cluster)| {
            let mut cluster = proto(all());
            change(&mut cluster);
            let error = OriginalDst::compile(&cluster).unwrap_err();
            error.path().to_owned()
        };
        assert_eq!(path(&|c| c.lb_policy = 0), "lb_policy");
        assert_eq!(
            path(&|c| c.load_assignment = Some(Default::default())),
            "load_assignment"
        );
        let with = |config: pb::cluster::OriginalDstLbConfig| {
            let error = OriginalDst::compile(&proto(config)).unwrap_err();
            error.path().to_owned()
        };
        let mut config = all();
        config.upstream_port_override = Some(UInt32Value { value: 65_536 });
        assert_eq!(
            with(config),
            "original_dst_lb_config.upstream_port_override"
        );
        let mut config = all();
        config.use_http_header = false;
        config.http_header_name = "x".into();
        assert_eq!(with(config), "original_dst_lb_config.http_header_name");
    }

    #[test]
    fn hosts_stay_while_they_are_used() {
        let settings = OriginalDst::compile(&proto(all())).unwrap();
        let config = ClusterConfig::compile(&proto(all()), &Default::default()).unwrap();
        let hosts = OriginalHosts::default();
        let address = "192.0.2.1:1".parse().unwrap();
        let (host, new) = hosts.at(address, &config).unwrap();
        assert!(new);
        let (again, new) = hosts.at(address, &config).unwrap();
        assert!(Arc::ptr_eq(&host, &again) && !new);
        assert_eq!(hosts.sweep(&settings), 0, "chosen since");
        assert_eq!(hosts.sweep(&settings), 1);
        assert!(host.is_removed() && hosts.all().is_empty());
    }
}
