//! Envoy's command line: <https://www.envoyproxy.io/docs/envoy/latest/operations/cli>.

use std::ffi::OsString;
use std::time::Duration;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::server::drain::DrainStrategy;

/// `--mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Mode {
    /// Serve traffic.
    Serve,
    /// Check the configuration and exit.
    Validate,
    /// Start up to the point of serving and exit.
    InitOnly,
}

/// `--drain-strategy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Strategy {
    Gradual,
    Immediate,
}

/// `--local-address-ip-version`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IpVersion {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// The options. Those without a meaning here are kept in [`ignored`](CommandLine::ignored) only.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "fairway",
    about = "An Envoy-compatible L7 proxy",
    disable_version_flag = true
)]
#[allow(missing_docs)] // The help texts are the documentation.
pub struct CommandLine {
    /// Path of the bootstrap file (YAML, JSON, .pb, .pb_text)
    #[arg(short = 'c', long)]
    pub config_path: Option<String>,
    /// Bootstrap as YAML or JSON text; merged over the file's
    #[arg(long)]
    pub config_yaml: Option<String>,
    /// What to do
    #[arg(long, value_enum, default_value = "serve")]
    pub mode: Mode,
    /// Number of workers; 0 or absent: one per core
    #[arg(long)]
    pub concurrency: Option<u32>,
    /// Node's cluster
    #[arg(long)]
    pub service_cluster: Option<String>,
    /// Node's id
    #[arg(long)]
    pub service_node: Option<String>,
    /// Node's zone
    #[arg(long)]
    pub service_zone: Option<String>,
    /// trace, debug, info, warning|warn, error, critical, off
    #[arg(short = 'l', long, default_value = "info")]
    pub log_level: String,
    /// component:level, separated by commas
    #[arg(long)]
    pub component_log_level: Option<String>,
    /// Format of log lines, in spdlog's operators
    #[arg(long)]
    pub log_format: Option<String>,
    /// Escape the message of log lines in C style
    #[arg(long)]
    pub log_format_escaped: bool,
    /// File for the log; default: standard error
    #[arg(long)]
    pub log_path: Option<String>,
    /// Seconds a drain may take
    #[arg(long, default_value_t = 600)]
    pub drain_time_s: u32,
    /// How connections are asked to end over the drain time
    #[arg(long, value_enum, default_value = "gradual")]
    drain_strategy: Strategy,
    /// Allow unknown fields in static configuration
    #[arg(long, alias = "allow-unknown-fields")]
    pub allow_unknown_static_fields: bool,
    /// Refuse unknown fields in dynamic configuration
    #[arg(long)]
    pub reject_unknown_dynamic_fields: bool,
    /// Ignore unknown fields in dynamic configuration without a warning
    #[arg(long)]
    pub ignore_unknown_dynamic_fields: bool,
    /// Do not log the use of deprecated fields
    #[arg(long)]
    pub skip_deprecated_logs: bool,
    /// File to write the admin address to
    #[arg(long)]
    pub admin_address_path: Option<String>,
    /// Milliseconds between flushes of file access logs
    #[arg(long, default_value_t = 10_000)]
    pub file_flush_interval_msec: u32,
    /// Kilobytes that flush a file access log at once
    #[arg(long, default_value_t = 64)]
    pub file_flush_min_size_kb: u32,
    /// Version of the local address in logs and of the node
    #[arg(long, value_enum, default_value = "v4")]
    pub local_address_ip_version: IpVersion,
    /// tag:value for every stat; may be given more than once
    #[arg(long, action = ArgAction::Append)]
    pub stats_tag: Vec<String>,
    /// Print the version
    #[arg(long)]
    pub version: bool,
    /// Print the version of the hot restart protocol
    #[arg(long)]
    pub hot_restart_version: bool,
    /// Accepted, no hot restart here
    #[arg(long)]
    disable_hot_restart: bool,
    /// Accepted, without meaning here
    #[arg(long)]
    parent_shutdown_time_s: Option<u32>,
    #[arg(long, hide = true)]
    use_dynamic_base_id: bool,
    #[arg(long, hide = true)]
    skip_hot_restart_on_no_parent: bool,
    #[arg(long, hide = true)]
    skip_hot_restart_parent_stats: bool,
    #[arg(long, hide = true)]
    base_id: Option<u32>,
    #[arg(long, hide = true)]
    base_id_path: Option<String>,
    #[arg(long, hide = true)]
    restart_epoch: Option<u32>,
    #[arg(long, hide = true)]
    socket_path: Option<String>,
    #[arg(long, hide = true)]
    socket_mode: Option<String>,
    #[arg(long, hide = true)]
    cpuset_threads: bool,
    #[arg(long, hide = true)]
    enable_core_dump: bool,
    #[arg(long, hide = true)]
    enable_mutex_tracing: bool,
    #[arg(long, hide = true)]
    enable_fine_grain_logging: bool,
    #[arg(long, hide = true)]
    log_stacktrace_single_entry: bool,
    #[arg(long, hide = true)]
    disable_extensions: Option<String>,
    #[arg(long, hide = true)]
    bootstrap_version: Option<u32>,
    /// What follows `--`; ignored
    #[arg(last = true, hide = true)]
    rest: Vec<String>,
    /// Options that were given and mean nothing here; to be said once in the log.
    #[arg(skip)]
    pub ignored: Vec<String>,
}

/// Options that are accepted and do nothing.
const WITHOUT_MEANING: &[&str] = &[
    "parent_shutdown_time_s",
    "use_dynamic_base_id",
    "skip_hot_restart_on_no_parent",
    "skip_hot_restart_parent_stats",
    "base_id",
    "base_id_path",
    "restart_epoch",
    "socket_path",
    "socket_mode",
    "cpuset_threads",
    "enable_core_dump",
    "enable_mutex_tracing",
    "enable_fine_grain_logging",
    "log_stacktrace_single_entry",
    "disable_extensions",
    "bootstrap_version",
];

impl CommandLine {
    /// Reads the arguments, the program's name first.
    ///
    /// # Errors
    /// An unknown option, or one with a bad or missing value; `--help` comes this way too.
    pub fn parse_from_args(
        args: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Result<Self, clap::Error> {
        let command = Self::command().args_override_self(true);
        let matches = command.try_get_matches_from(args.into_iter().map(Into::into))?;
        let mut line = Self::from_arg_matches(&matches)?;
        line.ignored = WITHOUT_MEANING
            .iter()
            .filter(|id| matches.value_source(id) == Some(clap::parser::ValueSource::CommandLine))
            .map(|id| format!("--{}", id.replace('_', "-")))
            .collect();
        Ok(line)
    }

    /// The drain strategy.
    pub fn drain_strategy(&self) -> DrainStrategy {
        match self.drain_strategy {
            Strategy::Gradual => DrainStrategy::Gradual,
            Strategy::Immediate => DrainStrategy::Immediate,
        }
    }

    /// The drain time.
    pub fn drain_time(&self) -> Duration {
        Duration::from_secs(self.drain_time_s.into())
    }

    /// The names and values of `--stats-tag`.
    ///
    /// # Errors
    /// One that is not `name:value`, or whose name is more than letters, digits and underscores.
    pub fn stats_tags(&self) -> Result<Vec<(String, String)>, String> {
        let plain = |name: &str| {
            let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !name.is_empty() && name.chars().all(allowed)
        };
        let split = |tag: &String| match tag.split_once(':') {
            Some((name, value)) if plain(name) && !value.is_empty() => {
                Ok((name.to_owned(), value.to_owned()))
            }
            _ => Err(format!("error: misformatted stats-tag '{tag}'")),
        };
        self.stats_tag.iter().map(split).collect()
    }

    /// Number of workers: what was asked for, or one per core.
    pub fn workers(&self) -> usize {
        match self.concurrency {
            Some(n) if n > 0 => usize::try_from(n).unwrap_or(usize::MAX),
            _ => std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// The text of `--version`, in Envoy's shape.
    pub fn version_text() -> String {
        format!("\nfairway  version: {}\n", Self::build())
    }

    /// Revision, version, its cleanness, kind of build and TLS library, as Envoy puts them together.
    pub fn build() -> String {
        let kind = if cfg!(debug_assertions) {
            "DEBUG"
        } else {
            "RELEASE"
        };
        format!("0/{}/Clean/{kind}/rustls", env!("CARGO_PKG_VERSION"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> CommandLine {
        CommandLine::parse_from_args(std::iter::once("fairway").chain(args.split_whitespace()))
            .unwrap()
    }

    #[test]
    fn takes_what_istios_agent_passes() {
        let line = parse(
            "-c etc/istio/proxy/envoy-rev.json --drain-time-s 45 --drain-strategy immediate \
             --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
             --allow-unknown-static-fields -l warning --component-log-level misc:error \
             --skip-deprecated-logs --concurrency 2 --enable-core-dump",
        );
        assert_eq!(
            line.config_path.as_deref(),
            Some("etc/istio/proxy/envoy-rev.json")
        );
        assert_eq!(line.drain_time(), Duration::from_secs(45));
        assert_eq!(line.drain_strategy(), DrainStrategy::Immediate);
        assert_eq!(line.workers(), 2);
        assert!(line.allow_unknown_static_fields);
        assert_eq!(line.log_level, "warning");
        assert_eq!(line.ignored, ["--enable-core-dump"]);
    }

    #[test]
    fn what_follows_two_dashes_is_ignored() {
        let line = parse("--mode=validate --drain-time-s=3 --base-id 7 -- -z --ever");
        assert_eq!(line.mode, Mode::Validate);
        assert_eq!(line.drain_time_s, 3);
        assert_eq!(line.ignored, ["--base-id"]);
    }

    #[test]
    fn stats_tags_have_a_name_and_a_value() {
        let line = parse("--stats-tag a:1 --stats-tag b:2:3");
        let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(line.stats_tags(), Ok(vec![tag("a", "1"), tag("b", "2:3")]));
        assert!(parse("--stats-tag a").stats_tags().is_err());
        assert!(parse("--stats-tag a-b:c").stats_tags().is_err());
    }

    #[test]
    fn a_bad_value_is_an_error() {
        let bad = |args: &[&str]| CommandLine::parse_from_args(args.iter().copied()).is_err();
        assert!(bad(&["fairway", "--mode", "dance"]));
        assert!(bad(&["fairway", "--concurrency", "many"]));
        assert!(bad(&["fairway", "-c"]));
        assert!(bad(&["fairway", "--ever"]));
    }
}
