//! The process's log: Envoy's components, levels and line format (spdlog's operators) over `tracing`.
//!
//! Levels are answered to `tracing` once per call site and cached there, so a disabled line costs a load on the
//! request path; a change of levels has the cache rebuilt. Times are UTC.
//! See <https://www.envoyproxy.io/docs/envoy/latest/operations/cli#cmdoption-log-format>.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Envoy's default for `--log-format`.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

/// A level, as Envoy names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// `trace`
    Trace,
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `warning`, also `warn`
    Warning,
    /// `error`
    Error,
    /// `critical`: nothing here logs above `error`, so as quiet as `off`
    Critical,
    /// `off`
    Off,
}

impl Level {
    const ALL: [Self; 7] = [
        Self::Trace,
        Self::Debug,
        Self::Info,
        Self::Warning,
        Self::Error,
        Self::Critical,
        Self::Off,
    ];

    /// The level of that name; none if Envoy has none.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "warn" => Some(Self::Warning),
            _ => Self::ALL.into_iter().find(|l| l.name() == name),
        }
    }

    /// Envoy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }

    fn of(level: tracing::Level) -> Self {
        match level {
            tracing::Level::TRACE => Self::Trace,
            tracing::Level::DEBUG => Self::Debug,
            tracing::Level::INFO => Self::Info,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::ERROR => Self::Error,
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warning => LevelFilter::WARN,
            Self::Error => LevelFilter::ERROR,
            Self::Critical | Self::Off => LevelFilter::OFF,
        }
    }
}

/// Envoy's components. Those no code here logs under are accepted and silent.
const COMPONENTS: &[&str] = &[
    "admin",
    "alternate_protocols_cache",
    "assert",
    "aws",
    "backtrace",
    "basic_auth",
    "cache_filter",
    "client",
    "compression",
    "config",
    "conn_handler",
    "connection",
    "credential_injector",
    "decompression",
    "dns",
    "dubbo",
    "dynamic_modules",
    "envoy_bug",
    "ext_authz",
    "ext_proc",
    "file",
    "filter",
    "forward_proxy",
    "geolocation",
    "golang",
    "grpc",
    "happy_eyeballs",
    "hc",
    "health_checker",
    "http",
    "http2",
    "hystrix",
    "init",
    "io",
    "jwt",
    "kafka",
    "key_value_store",
    "lua",
    "main",
    "matcher",
    "misc",
    "mongo",
    "multi_connection",
    "oauth2",
    "pool",
    "quic",
    "quic_stream",
    "rate_limit_quota",
    "rbac",
    "rds",
    "redis",
    "rocketmq",
    "router",
    "runtime",
    "secret",
    "stats",
    "tap",
    "testing",
    "thrift",
    "tracing",
    "udp",
    "upstream",
    "wasm",
    "websocket",
];

/// Module prefixes and their components; the first that fits counts.
const TARGETS: &[(&str, &str)] = &[
    ("fairway::server::admin", "admin"),
    ("fairway::server::listener", "conn_handler"),
    ("fairway::server::worker", "conn_handler"),
    ("fairway::server", "main"),
    ("fairway::bootstrap", "main"),
    ("fairway::http::h2", "http2"),
    ("fairway::http", "http"),
    ("fairway::router", "router"),
    ("fairway::upstream", "upstream"),
    ("fairway::telemetry", "stats"),
    ("fairway::transport", "connection"),
    ("fairway::config", "config"),
    ("fairway", "main"),
    ("xds_client", "config"),
    ("filters", "filter"),
    ("h2", "http2"),
    ("hickory", "dns"),
    ("hyper", "http"),
    ("tonic", "grpc"),
    ("pingora", "connection"),
];

fn index(component: &str) -> Option<usize> {
    COMPONENTS.binary_search(&component).ok()
}

/// The component of a `tracing` target: a component's own name, or by module.
fn component(target: &str) -> &'static str {
    let named = index(target).and_then(|i| COMPONENTS.get(i));
    let by_module = || {
        let fits = TARGETS
            .iter()
            .find(|(prefix, _)| target.starts_with(prefix));
        fits.map_or("misc", |(_, name)| name)
    };
    named.copied().unwrap_or_else(by_module)
}

/// How the log is set up, from the command line.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// `--log-level`; empty: info.
    pub level: String,
    /// `--component-log-level`.
    pub component_levels: Option<String>,
    /// `--log-format`.
    pub format: Option<String>,
    /// `--log-format-escaped`.
    pub escaped: bool,
    /// `--log-path`.
    pub path: Option<String>,
}

struct Inner {
    levels: Vec<AtomicU8>,
    pattern: Vec<Part>,
    escaped: bool,
    path: Option<String>,
    /// None: standard error.
    file: Option<Mutex<File>>,
}

impl Inner {
    fn new(options: &LogOptions) -> Result<Self, String> {
        let level = match options.level.as_str() {
            "" => Level::Info,
            name => Level::parse(name)
                .ok_or_else(|| format!("error: invalid log level specified '{name}'"))?,
        };
        let file = options.path.as_deref().map(|path| {
            open(path).map_err(|e| format!("Failed to open log-file '{path}'. e.what(): {e}"))
        });
        let inner = Self {
            levels: COMPONENTS
                .iter()
                .map(|_| AtomicU8::new(level as u8))
                .collect(),
            pattern: pattern(options.format.as_deref().unwrap_or(DEFAULT_FORMAT)),
            escaped: options.escaped,
            path: options.path.clone(),
            file: file.transpose()?.map(Mutex::new),
        };
        let list = options.component_levels.as_deref().unwrap_or_default();
        for pair in list.split(',').filter(|p| !p.is_empty()) {
            let (name, level) = pair.split_once(':').ok_or_else(|| {
                format!("error: component log level not correctly specified '{pair}'")
            })?;
            let level = Level::parse(level)
                .ok_or_else(|| format!("error: invalid log level specified '{level}'"))?;
            if !inner.store(name, level) {
                return Err(format!("error: invalid component specified '{name}'"));
            }
        }
        Ok(inner)
    }

    fn level(&self, component: &str) -> Level {
        let stored = index(component).and_then(|i| self.levels.get(i));
        stored.map_or(Level::Info, read)
    }

    fn store(&self, component: &str, level: Level) -> bool {
        match index(component).and_then(|i| self.levels.get(i)) {
            Some(slot) => {
                slot.store(level as u8, Relaxed);
                true
            }
            None => false,
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        Level::of(*metadata.level()) >= self.level(component(metadata.target()))
    }

    fn write(&self, line: &str) {
        // Nobody is left to tell of a log that cannot be written.
        let _ = match &self.file {
            Some(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write_all(line.as_bytes())
            }
            None => io::stderr().lock().write_all(line.as_bytes()),
        };
    }
}

fn read(level: &AtomicU8) -> Level {
    let found = Level::ALL.get(usize::from(level.load(Relaxed)));
    found.copied().unwrap_or(Level::Info)
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// Reads and changes the levels of the running log.
#[derive(Clone)]
pub struct LogHandle(Arc<Inner>);

impl LogHandle {
    /// Sets the process's log up.
    ///
    /// # Errors
    /// An unknown level or component, a log file that cannot be opened, or a log that is set up already.
    pub fn init(options: &LogOptions) -> Result<Self, String> {
        let inner = Arc::new(Inner::new(options)?);
        tracing_subscriber::registry()
            .with(Output(inner.clone()))
            .try_init()
            .map_err(|e| e.to_string())?;
        Ok(Self(inner))
    }

    /// Every component and its level, by name.
    pub fn loggers(&self) -> Vec<(String, Level)> {
        let all = COMPONENTS.iter().zip(&self.0.levels);
        all.map(|(name, level)| ((*name).to_owned(), read(level)))
            .collect()
    }

    /// Sets every component's level.
    pub fn set_all(&self, level: Level) {
        for slot in &self.0.levels {
            slot.store(level as u8, Relaxed);
        }
        tracing::callsite::rebuild_interest_cache();
    }

    /// Sets one component's level.
    ///
    /// # Errors
    /// There is no such component; Envoy's text.
    pub fn set(&self, component: &str, level: Level) -> Result<(), String> {
        if !self.0.store(component, level) {
            return Err("error: unknown logger name".to_owned());
        }
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }

    /// Opens the log file anew, as after its rotation; nothing without `--log-path`.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        if let (Some(path), Some(file)) = (&self.0.path, &self.0.file) {
            let new = open(path)?;
            *file.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(())
    }
}

struct Output(Arc<Inner>);

impl<S: Subscriber> Layer<S> for Output {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        match self.0.enabled(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.0.enabled(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let lowest = self.0.levels.iter().map(read).min();
        lowest.map(Level::filter)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let meta = event.metadata();
        let record = Record {
            now: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_nanos(),
            level: Level::of(*meta.level()),
            component: component(meta.target()),
            file: meta.file().unwrap_or_default(),
            line: meta.line().unwrap_or_default(),
            message: text.message + &text.fields,
        };
        let mut out = record.format(&self.0.pattern, self.0.escaped);
        out.push('\n');
        self.0.write(&out);
    }
}

/// The message, and ` name=value` for each further field.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            // Where `log` puts its metadata.
            name if name.starts_with("log.") => Ok(()),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[derive(Debug, PartialEq)]
enum Part {
    Literal(String),
    Operator(char),
}

/// Splits a format in spdlog's operators; one that is unknown stays as it is.
fn pattern(format: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut literal = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        match (c, c == '%') {
            (_, true) => match chars.next() {
                Some('%') => literal.push('%'),
                Some(op) if "YmdHMSefFTDzElLntPgsv#@_jCy".contains(op) => {
                    if !literal.is_empty() {
                        parts.push(Part::Literal(std::mem::take(&mut literal)));
                    }
                    parts.push(Part::Operator(op));
                }
                // Colour ranges and the function's name: nothing to print.
                Some('^' | '$' | '!') => {}
                Some(other) => literal.extend(['%', other]),
                None => literal.push('%'),
            },
            (c, false) => literal.push(c),
        }
    }
    if !literal.is_empty() {
        parts.push(Part::Literal(literal));
    }
    parts
}

struct Record {
    /// Nanoseconds since 1970, UTC.
    now: u128,
    level: Level,
    component: &'static str,
    file: &'static str,
    line: u32,
    message: String,
}

impl Record {
    fn format(&self, pattern: &[Part], escaped: bool) -> String {
        let seconds = (self.now / 1_000_000_000) as u64;
        let nanos = (self.now % 1_000_000_000) as u32;
        let (year, month, day) = civil(seconds / 86_400);
        let (h, m, s) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let mut out = String::with_capacity(128 + self.message.len());
        for part in pattern {
            let op = match part {
                Part::Literal(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::Operator(op) => op,
            };
            let base = self.file.rsplit('/').next().unwrap_or_default();
            let _ = match op {
                'Y' => write!(out, "{year}"),
                'C' | 'y' => write!(out, "{:02}", year % 100),
                'm' => write!(out, "{month:02}"),
                'd' => write!(out, "{day:02}"),
                'D' => write!(out, "{month:02}/{day:02}/{:02}", year % 100),
                'H' => write!(out, "{h:02}"),
                'M' => write!(out, "{m:02}"),
                'S' => write!(out, "{s:02}"),
                'T' => write!(out, "{h:02}:{m:02}:{s:02}"),
                'e' => write!(out, "{:03}", nanos / 1_000_000),
                'f' => write!(out, "{:06}", nanos / 1000),
                'F' => write!(out, "{nanos:09}"),
                'z' => out.write_str("+00:00"),
                'E' => write!(out, "{seconds}"),
                'l' => out.write_str(self.level.name()),
                'L' => self
                    .level
                    .name()
                    .chars()
                    .take(1)
                    .try_for_each(|c| out.write_char(c.to_ascii_uppercase())),
                'n' => out.write_str(self.component),
                't' => THREAD.with(|id| out.write_str(id)),
                'P' => write!(out, "{}", std::process::id()),
                'g' => out.write_str(self.file),
                's' => out.write_str(base),
                '#' => write!(out, "{}", self.line),
                '@' => write!(out, "{base}:{}", self.line),
                'j' => {
                    let quoted = serde_json::Value::from(self.message.as_str()).to_string();
                    out.write_str(quoted.trim_matches('"'))
                }
                '_' => out.write_str(&self.message.replace('\n', "\\n")),
                _ if escaped => write!(out, "{}", self.message.escape_debug()),
                _ => out.write_str(&self.message),
            };
        }
        out
    }
}

thread_local! {
    /// The kernel's number of this thread, read once: `/proc/thread-self` leads to `PID/task/TID`.
    static THREAD: String = std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| std::process::id().to_string());
}

/// Year, month and day of a number of days since 1970-01-01 (proleptic Gregorian, years from 1 March).
pub(crate) fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    (year, month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            now: 1_709_210_096_123_456_789,
            level: Level::Warning,
            component: "main",
            file: "proxy/src/main.rs",
            line: 7,
            message: "a\nb".into(),
        }
    }

    #[test]
    fn formats() {
        let id = THREAD.with(String::clone);
        let format = |f: &str, escaped| record().format(&pattern(f), escaped);
        assert_eq!(
            format(DEFAULT_FORMAT, true),
            format!("[2024-02-29 12:34:56.123][{id}][warning][main] [proxy/src/main.rs:7] a\\nb")
        );
        assert_eq!(
            format("%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v\tthread=%t", false),
            format!(
                "2024-02-29T12:34:56.123456Z\twarning\tenvoy main proxy/src/main.rs:7\ta\nb\tthread={id}"
            )
        );
        assert_eq!(
            format("%L %% %Q %j %@ %^%", false),
            "W % %Q a\\nb main.rs:7 %"
        );
    }

    #[test]
    fn levels_by_component() {
        assert!(COMPONENTS.is_sorted());
        let options = |levels: &str| LogOptions {
            level: "warn".into(),
            component_levels: Some(levels.into()),
            ..Default::default()
        };
        let inner = Inner::new(&options("misc:error,http2:trace")).unwrap();
        let handle = LogHandle(Arc::new(inner));
        assert_eq!(handle.0.level("main"), Level::Warning);
        assert_eq!(handle.0.level("misc"), Level::Error);
        assert_eq!(component("fairway::http::h2::codec"), "http2");
        assert_eq!(component("lua"), "lua");
        assert_eq!(component("other"), "misc");
        assert!(handle.set("nope", Level::Off).is_err());
        handle.set_all(Level::Critical);
        assert!(handle.loggers().iter().all(|(_, l)| *l == Level::Critical));
        assert!(Inner::new(&options("nope:info")).is_err());
        assert!(Inner::new(&options("misc:loud")).is_err());
    }

    #[test]
    fn writes_what_is_enabled_and_reopens() {
        let path = std::env::temp_dir().join(format!("fairway-log-{}", std::process::id()));
        let options = LogOptions {
            format: Some("%l %n %v".into()),
            path: Some(path.to_string_lossy().into_owned()),
            ..Default::default()
        };
        let handle = LogHandle(Arc::new(Inner::new(&options).unwrap()));
        let subscriber = tracing_subscriber::registry().with(Output(handle.0.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let log = || {
                tracing::info!(target: "http", code = 3, "hello");
                tracing::debug!(target: "http", "quiet");
            };
            log();
            std::fs::remove_file(&path).unwrap();
            handle.reopen().unwrap();
            handle.set("http", Level::Debug).unwrap();
            log();
        });
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text, "info http hello code=3\ndebug http quiet\n");
    }
}
