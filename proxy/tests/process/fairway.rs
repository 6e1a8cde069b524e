//! A running Fairway.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Far above anything that is waited for; it only keeps a broken build from hanging.
pub const LONG: Duration = Duration::from_secs(30);

pub const BINARY: &str = env!("CARGO_BIN_EXE_fairway");

/// A directory of one test, removed at its end.
pub struct Home(PathBuf);

impl Home {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fairway-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file; one that is there is replaced in one step.
    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        let new = self.path(&format!("{name}.new"));
        std::fs::write(&new, content).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Polls until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The process; killed at the end of its test if it still runs.
pub struct Fairway {
    child: Child,
    pub admin: SocketAddr,
    pub log: PathBuf,
}

impl Fairway {
    /// Starts it on a bootstrap with an admin interface on port 0, and waits until it is ready.
    pub fn start(home: &Home, bootstrap: &str, args: &[&str]) -> Self {
        let fairway = Self::spawn(home, bootstrap, args);
        until("ready", || fairway.get("/ready").0 == 200);
        fairway
    }

    /// Starts it, and waits for its admin interface alone.
    pub fn spawn(home: &Home, bootstrap: &str, args: &[&str]) -> Self {
        let config = home.write("bootstrap.yaml", bootstrap);
        let (address, log) = (home.path("admin-address"), home.path("log"));
        let mut child = Command::new(BINARY)
            .args([
                Path::new("-c"),
                &config,
                Path::new("--admin-address-path"),
                &address,
            ])
            .args(["--concurrency", "2", "-l", "info"])
            .args([Path::new("--log-path"), &log])
            .args(args)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut admin = None;
        until("the admin interface", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!(
                    "left at start with {status}: {}",
                    std::fs::read_to_string(&log).unwrap_or_default()
                );
            }
            let text = std::fs::read_to_string(&address).unwrap_or_default();
            admin = text.parse().ok();
            admin.is_some()
        });
        Self {
            child,
            admin: admin.unwrap(),
            log,
        }
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        self.ask("GET", path)
    }

    pub fn post(&self, path: &str) -> (u16, String) {
        self.ask("POST", path)
    }

    fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let answer = || -> std::io::Result<String> {
            let mut io = TcpStream::connect(self.admin)?;
            // HTTP/1.0: the body is not in chunks.
            write!(io, "{method} {path} HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            io.read_to_string(&mut text)?;
            Ok(text)
        };
        let Ok(text) = answer() else {
            return (0, String::new());
        };
        let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    }

    /// Where the listener of that name listens; none if there is no such listener.
    pub fn find_listener(&self, name: &str) -> Option<SocketAddr> {
        let (_, list) = self.get("/listeners");
        let line = list
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix("::"));
        line.map(|address| address.parse().unwrap())
    }

    pub fn listener(&self, name: &str) -> SocketAddr {
        self.find_listener(name).unwrap()
    }

    /// The value of a counter or gauge.
    pub fn stat(&self, name: &str) -> Option<u64> {
        let (_, all) = self.get("/stats");
        let line = all
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|value| value.parse().ok())
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill")
            .args([format!("-{name}"), pid])
            .status();
        assert!(status.unwrap().success());
    }

    pub fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn wait(&mut self) -> ExitStatus {
        until("the end of the process", || self.has_exited());
        self.child.wait().unwrap()
    }
}

impl Drop for Fairway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(30).collect();
            eprintln!("the log's end, last line first:\n{}", tail.join("\n"));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A bootstrap with an admin interface, a listener `main` on port 0 and a cluster `up`; `drop` log lines go to
/// `log`.
pub fn bootstrap(home: &Home, up: SocketAddr) -> String {
    format!(
        r#"
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}
static_resources:
  listeners:
  - {listener}
  clusters:
  - {cluster}
"#,
        listener = untyped(&listener("main", 0, "up", Some(&home.path("access.log")))),
        cluster = untyped(&cluster("up", up)),
    )
}

/// A resource as it stands among static ones: without its type in front.
pub fn untyped(resource: &str) -> String {
    let (_, rest) = resource.split_once(',').unwrap();
    format!("{{{rest}")
}

/// A listener with one route to a cluster, as JSON.
pub fn listener(name: &str, port: u16, cluster: &str, log: Option<&Path>) -> String {
    let routes = format!(
        r#""route_config": {{"name": "local", "virtual_hosts": [{{"name": "all", "domains": ["*"],
        "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "{cluster}"}}}}]}}]}}"#
    );
    listener_with(name, port, &routes, log)
}

/// A listener whose connection manager takes its routes as `routes` says.
pub fn listener_with(name: &str, port: u16, routes: &str, log: Option<&Path>) -> String {
    let log = log.map_or(String::new(), |path| {
        format!(
            r#""access_log": [{{"name": "file", "typed_config": {{
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "{}", "log_format": {{"text_format_source": {{"inline_string": "%REQ(:PATH)%\n"}}}}}}}}],"#,
            path.display()
        )
    });
    let text = format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", "name": "{name}",
        "address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
        "filter_chains": [{{"filters": [{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "{name}", {log} {routes}, "http_filters": [{{"name": "envoy.filters.http.router", "typed_config": {{
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}]}}]}}"#
    );
    text.replace('\n', " ")
}

/// A static cluster with one endpoint, as JSON.
pub fn cluster(name: &str, up: SocketAddr) -> String {
    format!(
        r#"{{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "{name}", "connect_timeout": "5s",
        "load_assignment": {assignment}}}"#,
        assignment = assignment(name, &[up])
    )
    .replace('\n', " ")
}

/// Endpoints, as JSON.
pub fn assignment(name: &str, endpoints: &[SocketAddr]) -> String {
    let all: Vec<String> = endpoints
        .iter()
        .map(|e| {
            format!(
                r#"{{"endpoint": {{"address": {{"socket_address": {{"address": "{}", "port_value": {}}}}}}}}}"#,
                e.ip(),
                e.port()
            )
        })
        .collect();
    format!(
        r#"{{"cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{}]}}]}}"#,
        all.join(", ")
    )
}
