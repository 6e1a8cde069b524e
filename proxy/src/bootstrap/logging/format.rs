//! The format of a log line, in spdlog's operators.

use std::fmt::Write as _;

use super::level::Level;

#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Literal(String),
    Operator(char),
}

/// Splits a format in spdlog's operators; one that is unknown stays as it is.
pub(super) fn pattern(format: &str) -> Vec<Part> {
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

pub(super) struct Record {
    /// Nanoseconds since 1970, UTC.
    pub(super) now: u128,
    pub(super) level: Level,
    pub(super) component: &'static str,
    pub(super) file: &'static str,
    pub(super) line: u32,
    pub(super) message: String,
}

impl Record {
    pub(super) fn format(&self, pattern: &[Part], escaped: bool) -> String {
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
    use crate::bootstrap::logging::DEFAULT_FORMAT;

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
}
