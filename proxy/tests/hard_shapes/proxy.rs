//! The binary, on a configuration with one listener for each shape.

use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::Backends;
use crate::plan::{BUFFER_LIMIT, Plan, Shape};
use crate::services::Services;

const TYPE: &str = "type.googleapis.com/envoy.extensions.";

/// A running proxy. Killed when dropped.
pub struct Proxy {
    process: Child,
    admin: u16,
    ports: Vec<(Shape, u16)>,
    log: PathBuf,
    errors: PathBuf,
}

/// Ports that are free now, asked for together so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|l| l.local_addr().unwrap().port())
        .collect()
}

impl Proxy {
    pub async fn start(backends: &Backends, services: &Services) -> Self {
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("hard_shapes.{}.{number}", std::process::id());
        let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&home).unwrap();
        let mut free = free_ports(Shape::ALL.len() + 1);
        let admin = free.pop().unwrap();
        let ports: Vec<(Shape, u16)> = Shape::ALL.into_iter().zip(free).collect();
        let log = home.join("access.log");
        let listeners: Vec<Value> = ports
            .iter()
            .map(|(shape, port)| listener(*shape, *port, log.to_str().unwrap()))
            .collect();
        let config = json!({
            "admin": {"address": address(admin)},
            "static_resources": {
                "listeners": listeners,
                "clusters": [
                    cluster("up1", backends.http1, false),
                    cluster("up2", backends.http2, true),
                    cluster("services", services.port, true),
                ],
            },
        });
        let path = home.join("bootstrap.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let errors = home.join("stderr");
        let process = Command::new(env!("CARGO_BIN_EXE_fairway"))
            .arg("-c")
            .arg(&path)
            .args(["--concurrency", "1", "--file-flush-interval-msec", "20"])
            .args(["--disable-hot-restart", "-l", "warning"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let mut proxy = Self {
            process,
            admin,
            ports,
            log,
            errors,
        };
        let until = Instant::now() + Duration::from_secs(30);
        while !proxy
            .get("/ready")
            .await
            .is_some_and(|a| a.contains("LIVE"))
        {
            let left = proxy.process.try_wait().unwrap();
            assert!(left.is_none(), "left at start: {}", proxy.said());
            assert!(Instant::now() < until, "not ready: {}", proxy.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy
    }

    pub fn port(&self, plan: &Plan) -> u16 {
        let found = self.ports.iter().find(|(shape, _)| *shape == plan.shape);
        found.unwrap().1
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap_or_default()
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// The sum of a connection manager's number over all listeners.
    pub async fn counter(&self, name: &str) -> u64 {
        let stats = self.get("/stats?filter=^http\\.").await.unwrap();
        let end = format!(".{name}: ");
        stats
            .lines()
            .filter(|line| !line.starts_with("http.admin."))
            .filter_map(|line| line.split_once(&end)?.1.trim().parse::<u64>().ok())
            .sum()
    }

    /// Waits until no stream is left.
    pub async fn settle(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let active = self.counter("downstream_rq_active").await;
            if active == 0 {
                break;
            }
            assert!(Instant::now() < until, "{active} streams never end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Several flush intervals of the access log.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    pub fn log_lines(&self) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().count() as u64
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> usize {
        let mut statm = String::new();
        std::fs::File::open(format!("/proc/{}/statm", self.process.id()))
            .and_then(|mut file| file.read_to_string(&mut statm))
            .unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    /// Ends the process and looks at what it has said.
    pub fn stop(mut self) {
        let left = self.process.try_wait().unwrap();
        assert!(left.is_none(), "left early: {}", self.said());
        let said = self.said();
        assert!(!said.contains("panicked"), "{said}");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn cluster(name: &str, port: u16, http2: bool) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [
            {"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]},
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{TYPE}upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        });
    }
    cluster
}

fn filter(name: &str, version: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("{TYPE}filters.http.{version}"));
    json!({"name": format!("envoy.filters.http.{name}"), "typed_config": config})
}

fn filters(shape: Shape) -> Vec<Value> {
    let service = || json!({"envoy_grpc": {"cluster_name": "services"}, "timeout": "30s"});
    let buffer = filter(
        "buffer",
        "buffer.v3.Buffer",
        json!({"max_request_bytes": BUFFER_LIMIT}),
    );
    let gzip = filter(
        "compressor",
        "compressor.v3.Compressor",
        json!({"compressor_library": {"name": "gzip", "typed_config": {
            "@type": format!("{TYPE}compression.gzip.compressor.v3.Gzip")}}}),
    );
    let authz = filter(
        "ext_authz",
        "ext_authz.v3.ExtAuthz",
        json!({"grpc_service": service(), "transport_api_version": "V3",
            "status_on_error": {"code": "InternalServerError"},
            "with_request_body": {"max_request_bytes": 65536, "allow_partial_message": true}}),
    );
    let duplex = filter(
        "ext_proc",
        "ext_proc.v3.ExternalProcessor",
        json!({"grpc_service": service(), "message_timeout": "30s", "processing_mode": {
            "request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND",
            "response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND"}}),
    );
    match shape {
        Shape::Buffer => vec![buffer],
        Shape::Gzip => vec![gzip],
        Shape::Authz => vec![authz],
        Shape::Duplex => vec![duplex],
        Shape::All => vec![gzip, authz, duplex],
    }
}

fn listener(shape: Shape, port: u16, log: &str) -> Value {
    let mut filters = filters(shape);
    filters.push(filter("router", "router.v3.Router", json!({})));
    let route = |version: &str| {
        json!({
            "match": {"prefix": "/", "headers": [{"name": "x-up", "string_match": {"exact": version}}]},
            "route": {"cluster": format!("up{version}"), "timeout": "40s"},
        })
    };
    let routes = ["1", "2"].map(route);
    let manager = json!({
        "@type": format!("{TYPE}filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": shape.name(),
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": filters,
        "access_log": [{"name": "file", "typed_config": {
            "@type": format!("{TYPE}access_loggers.file.v3.FileAccessLog"), "path": log}}],
    });
    json!({"name": shape.name(), "address": address(port), "filter_chains": [
        {"filters": [{"name": "http", "typed_config": manager}]}]})
}
