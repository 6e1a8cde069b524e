//! `/server_info`: `envoy.admin.v3.ServerInfo`, with the options that are at their defaults too.

use serde_json::{Value, json};
use xds_client::json::{Pool, PrintOptions};

use super::admin::AdminBackend;
use super::admin_backend::Backend;
use crate::bootstrap::command_line::{CommandLine, IpVersion};
use crate::bootstrap::logging::DEFAULT_FORMAT;
use crate::server::drain::DrainStrategy;

/// The page's JSON.
pub(super) fn server_info(backend: &Backend) -> Value {
    let up = format!("{}s", backend.started.elapsed().as_secs());
    let node = Pool::load().map_or(Value::Null, |pool| {
        pool.print_message(&backend.settings.node, PrintOptions::default())
    });
    json!({
        "version": CommandLine::build(),
        "state": backend.state().name(),
        "uptime_current_epoch": up,
        "uptime_all_epochs": up,
        "hot_restart_version": "disabled",
        "command_line_options": options(&backend.line, backend.settings.concurrency),
        "node": node,
    })
}

fn options(line: &CommandLine, concurrency: usize) -> Value {
    let text = |option: &Option<String>| option.clone().unwrap_or_default();
    let gradual = line.drain_strategy() == DrainStrategy::Gradual;
    json!({
        "base_id": "0",
        "concurrency": concurrency,
        "config_path": text(&line.config_path),
        "config_yaml": text(&line.config_yaml),
        "allow_unknown_static_fields": line.allow_unknown_static_fields,
        "reject_unknown_dynamic_fields": line.reject_unknown_dynamic_fields,
        "ignore_unknown_dynamic_fields": line.ignore_unknown_dynamic_fields,
        "skip_deprecated_logs": line.skip_deprecated_logs,
        "admin_address_path": text(&line.admin_address_path),
        "local_address_ip_version": match line.local_address_ip_version {
            IpVersion::V4 => "v4",
            IpVersion::V6 => "v6",
        },
        "log_level": line.log_level,
        "component_log_level": text(&line.component_log_level),
        "log_format": line.log_format.as_deref().unwrap_or(DEFAULT_FORMAT),
        "log_format_escaped": line.log_format_escaped,
        "log_path": text(&line.log_path),
        "service_cluster": text(&line.service_cluster),
        "service_node": text(&line.service_node),
        "service_zone": text(&line.service_zone),
        "file_flush_interval": format!("{}s", f64::from(line.file_flush_interval_msec) / 1000.0),
        "file_flush_min_size": line.file_flush_min_size_kb,
        "drain_time": format!("{}s", line.drain_time_s),
        "drain_strategy": if gradual { "Gradual" } else { "Immediate" },
        // Only this mode lasts long enough to be asked.
        "mode": "Serve",
        "disable_hot_restart": true,
        "restart_epoch": 0,
        "stats_tag": line.stats_tag,
    })
}
