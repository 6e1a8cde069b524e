//! The process's log: Envoy's components, levels and line format (spdlog's operators) over `tracing`.
//!
//! Levels are answered to `tracing` once per call site and cached there, so a disabled line costs a load on the
//! request path; a change of levels has the cache rebuilt. Times are UTC.
//! See <https://www.envoyproxy.io/docs/envoy/latest/operations/cli#cmdoption-log-format>.

mod components;
mod format;
mod level;

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

use components::{COMPONENTS, component, index};
pub(crate) use format::civil;
use format::{Part, Record, pattern};
pub use level::Level;

/// Envoy's default for `--log-format`.
pub const DEFAULT_FORMAT: &str = "[%Y-%m-%d %T.%e][%t][%l][%n] [%g:%#] %v";

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

#[cfg(test)]
mod tests {
    use super::*;

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
