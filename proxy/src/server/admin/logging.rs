//! `/logging`: shows and changes log levels.

use std::fmt::Write as _;

use super::backend::{AdminBackend, LogChange};
use super::page::{Page, Query};

const LEVELS: [&str; 7] = [
    "trace", "debug", "info", "warning", "error", "critical", "off",
];

/// Reads the query; none if it changes nothing.
fn change(query: &Query) -> Result<Option<LogChange>, &'static str> {
    let (name, value) = match query.0.as_slice() {
        [] => return Ok(None),
        [one] => one,
        _ => return Err("error: invalid number of parameters"),
    };
    let known = |level: &str| match LEVELS.contains(&level) {
        true => Ok(level.to_owned()),
        false => Err("error: unknown logger level"),
    };
    let pair = |text: &str| match text.split_once(':') {
        Some((name, level)) if !name.is_empty() && !level.is_empty() => {
            Ok((name.to_owned(), known(level)?))
        }
        _ => Err("error: empty logger name or empty logger level"),
    };
    match name.as_str() {
        "level" | "paths" | "group" if value.is_empty() => Ok(None),
        "level" => Ok(Some(LogChange::All(known(value)?))),
        "paths" => {
            let list: Result<_, _> = value.split(',').map(pair).collect();
            Ok(Some(LogChange::Named(list?)))
        }
        // A group is a logger here: there is none below it.
        "group" => Ok(Some(LogChange::Named(vec![pair(value)?]))),
        _ => Ok(Some(LogChange::Named(vec![(name.clone(), known(value)?)]))),
    }
}

pub(super) fn page(backend: &dyn AdminBackend, query: &Query) -> Page {
    let changed = change(query)
        .map_err(str::to_owned)
        .and_then(|change| match change {
            Some(change) => backend.set_log_level(&change),
            None => Ok(()),
        });
    let mut out = match &changed {
        Ok(()) => String::new(),
        Err(error) => format!(
            "{error}\n\nusage: /logging?<name>=<level> (change single level)\n\
             usage: /logging?paths=name1:level1,name2:level2,... (change multiple levels)\n\
             usage: /logging?level=<level> (change all levels)\n\
             usage: /logging?group=<group_name>:<level> (change group of loggers)\n\
             levels: {} \n",
            LEVELS.join(" ")
        ),
    };
    out.push_str("active loggers:\n");
    for (name, level) in backend.loggers() {
        let _ = writeln!(out, "  {name}: {level}");
    }
    out.push('\n');
    match changed {
        Ok(()) => Page::text(out),
        Err(_) => Page::error(400, out),
    }
}
