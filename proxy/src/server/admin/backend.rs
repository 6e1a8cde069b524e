//! What the admin interface needs of the proxy.

use serde_json::Value;

/// The server's state as `/ready` and `/server_info` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerState {
    /// Serving.
    Live,
    /// Health checks are failed, or the server is draining.
    Draining,
    /// Waiting for the first clusters.
    PreInitializing,
    /// Waiting for the first listeners.
    Initializing,
}

impl ServerState {
    /// Envoy's name of the state.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "LIVE",
            Self::Draining => "DRAINING",
            Self::PreInitializing => "PRE_INITIALIZING",
            Self::Initializing => "INITIALIZING",
        }
    }
}

/// The query of `/config_dump`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpRequest {
    /// Only the elements of this repeated field (`dynamic_active_clusters`).
    pub resource: Option<String>,
    /// A field mask.
    pub mask: Option<String>,
    /// Only resources whose name matches.
    pub name_regex: Option<String>,
    /// With endpoints.
    pub include_eds: bool,
}

/// Why the backend refuses a request: the status (400, 404, 503) and the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminError {
    /// The response's status.
    pub status: u16,
    /// The response's text.
    pub message: String,
}

/// The query of `/drain_listeners`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainRequest {
    /// Drain for the drain time before listening ends; without it listening ends at once, and connections
    /// stay.
    pub graceful: bool,
    /// Drain connections but never stop listening.
    pub skip_exit: bool,
    /// Only listeners with `traffic_direction: INBOUND`.
    pub inbound_only: bool,
}

/// One change of `/logging`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogChange {
    /// All loggers.
    All(String),
    /// Loggers by name.
    Named(Vec<(String, String)>),
}

/// A cluster in `/clusters`.
#[derive(Debug, Clone, Default)]
pub struct ClusterStatus {
    /// The name.
    pub name: String,
    /// `alt_stat_name`, or else the name.
    pub observability_name: String,
    /// Limits of default and high priority: connections, pending requests, requests, retries.
    pub limits: [[u32; 4]; 2],
    /// Whether CDS brought it.
    pub added_via_api: bool,
    /// EDS service name, if any.
    pub eds_service_name: String,
    /// The endpoints.
    pub hosts: Vec<HostStatus>,
}

/// An endpoint in `/clusters`.
#[derive(Debug, Clone, Default)]
pub struct HostStatus {
    /// `ip:port` or a path.
    pub address: String,
    /// Name and value, as in `cx_active`, sorted by name.
    pub stats: Vec<(String, u64)>,
    /// Empty if the endpoint has no name.
    pub hostname: String,
    /// `healthy`, or flags such as `/failed_active_hc`.
    pub health_flags: String,
    /// Load balancing weight.
    pub weight: u32,
    /// Region, zone, sub-zone.
    pub locality: [String; 3],
    /// Whether it is a canary.
    pub canary: bool,
    /// 0 is the highest.
    pub priority: u32,
}

/// A listener in `/listeners`.
#[derive(Debug, Clone, Default)]
pub struct ListenerStatus {
    /// The name.
    pub name: String,
    /// `ip:port` or a path each; the first is the listener's own, the others are additional ones.
    pub addresses: Vec<String>,
}

/// What the admin interface shows and does. Methods return quickly; they run on the control runtime.
pub trait AdminBackend: Send + Sync {
    /// The server's state.
    fn state(&self) -> ServerState;
    /// Brings up to date the stats that nothing else keeps (`server.*`).
    fn update_stats(&self);
    /// The JSON of `/server_info`.
    fn server_info(&self) -> Value;
    /// The JSON of `/config_dump`.
    ///
    /// # Errors
    /// The request names an unknown resource, or a mask or regex that is not valid.
    fn config_dump(&self, request: &DumpRequest) -> Result<Value, AdminError>;
    /// Every cluster.
    fn clusters(&self) -> Vec<ClusterStatus>;
    /// Every listener.
    fn listeners(&self) -> Vec<ListenerStatus>;
    /// Starts to drain.
    fn drain_listeners(&self, request: DrainRequest);
    /// Fails (false) or passes (true) health checks.
    fn health_check(&self, ok: bool);
    /// Ends the process.
    fn quit(&self);
    /// Loggers and their levels, in the order to print.
    fn loggers(&self) -> Vec<(String, String)>;
    /// Changes log levels; the level is one Envoy knows.
    ///
    /// # Errors
    /// Such as `error: unknown logger name`; nothing was changed.
    fn set_log_level(&self, change: &LogChange) -> Result<(), String>;
    /// The JSON of `/memory`.
    fn memory(&self) -> Value;
    /// The JSON of `/init_dump`.
    fn init_dump(&self) -> Value;
    /// The JSON of `/certs`.
    fn certs(&self) -> Value;
    /// The JSON of `/runtime`.
    fn runtime(&self) -> Value;
    /// Sets (or with an empty value removes) runtime keys.
    ///
    /// # Errors
    /// There is no admin layer (503), or a value is not valid (400).
    fn runtime_modify(&self, changes: &[(String, String)]) -> Result<(), AdminError>;
    /// Opens access logs anew.
    fn reopen_logs(&self);
}
