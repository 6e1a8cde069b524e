//! `%START_TIME(format)%`: the strftime codes that Envoy's users need, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use xds_client::error::ConfigError;

/// Envoy's default.
const DEFAULT: &str = "%Y-%m-%dT%H:%M:%E3SZ";

#[derive(Debug, Clone)]
enum Part {
    Text(Box<str>),
    Code(char),
    /// Fraction digits.
    Fraction(usize),
    /// Seconds with fraction digits.
    Seconds(usize),
}

/// A compiled time format.
#[derive(Debug, Clone)]
pub(super) struct TimeFormat(Vec<Part>);

impl TimeFormat {
    /// A format, or Envoy's default.
    pub(super) fn or_default(format: Option<&str>) -> Result<Self, ConfigError> {
        Self::compile(format.filter(|f| !f.is_empty()).unwrap_or(DEFAULT))
    }

    /// The same in local time, which has to be UTC: tables of time zones are not read.
    pub(super) fn local(format: Option<&str>) -> Result<Self, ConfigError> {
        match local_is_utc() {
            true => Self::or_default(format),
            false => Err(ConfigError::new("local time is supported as UTC only")),
        }
    }

    pub(super) fn compile(format: &str) -> Result<Self, ConfigError> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text).into()));
            }
            let bad = || ConfigError::new(format!("unsupported time format {format:?}"));
            parts.push(match chars.next().ok_or_else(bad)? {
                '%' => Part::Text("%".into()),
                'f' => Part::Fraction(9),
                'E' => match (chars.next(), chars.next()) {
                    (Some(n @ '0'..='9'), Some('S')) => Part::Seconds(n as usize - '0' as usize),
                    (Some('*'), Some('S')) => Part::Seconds(9),
                    _ => return Err(bad()),
                },
                n @ '1'..='9' if chars.next() == Some('f') => {
                    Part::Fraction(n as usize - '0' as usize)
                }
                c if "YmdHMSeyjaAbBTFDsZz".contains(c) => Part::Code(c),
                _ => return Err(bad()),
            });
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.into()));
        }
        Ok(Self(parts))
    }

    pub(super) fn format(&self, time: SystemTime) -> String {
        use std::fmt::Write as _;
        const DAYS: [&str; 7] = [
            "Thursday",
            "Friday",
            "Saturday",
            "Sunday",
            "Monday",
            "Tuesday",
            "Wednesday",
        ];
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let secs = since.as_secs();
        let (days, of_day) = (secs / 86_400, secs % 86_400);
        let (h, min, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        // Civil date from days since 1970 (Hinnant, chrono-compatible low-level date algorithms).
        let z = days + 719_468;
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let d = doy - (153 * mp + 2) / 5 + 1;
        let m = if mp < 10 { mp + 3 } else { mp - 9 };
        let y = yoe + era * 400 + u64::from(m <= 2);
        let leap = u64::from((y % 4 == 0 && y % 100 != 0) || y % 400 == 0);
        let day_of_year = if m > 2 { doy + 60 + leap } else { doy - 305 };
        let nanos = format!("{:09}", since.subsec_nanos());
        let fraction = |n: usize| nanos.get(..n).unwrap_or_default();
        let name = |all: &'static [&'static str], at: u64| {
            usize::try_from(at)
                .ok()
                .and_then(|i| all.get(i))
                .copied()
                .unwrap_or_default()
        };
        let short = |s: &'static str| s.get(..3).unwrap_or(s);
        let (day, month) = (name(&DAYS, days % 7), name(&MONTHS, m - 1));
        let mut out = String::new();
        for part in &self.0 {
            // Writing to a String cannot fail.
            let _ = match part {
                Part::Text(text) => out.write_str(text),
                Part::Fraction(n) => out.write_str(fraction(*n)),
                Part::Seconds(0) => write!(out, "{s:02}"),
                Part::Seconds(n) => write!(out, "{s:02}.{}", fraction(*n)),
                Part::Code(code) => match code {
                    'Y' => write!(out, "{y:04}"),
                    'y' => write!(out, "{:02}", y % 100),
                    'm' => write!(out, "{m:02}"),
                    'd' => write!(out, "{d:02}"),
                    'e' => write!(out, "{d:2}"),
                    'H' => write!(out, "{h:02}"),
                    'M' => write!(out, "{min:02}"),
                    'S' => write!(out, "{s:02}"),
                    'j' => write!(out, "{day_of_year:03}"),
                    'a' => out.write_str(short(day)),
                    'A' => out.write_str(day),
                    'b' => out.write_str(short(month)),
                    'B' => out.write_str(month),
                    'T' => write!(out, "{h:02}:{min:02}:{s:02}"),
                    'F' => write!(out, "{y:04}-{m:02}-{d:02}"),
                    'D' => write!(out, "{m:02}/{d:02}/{:02}", y % 100),
                    's' => write!(out, "{secs}"),
                    'z' => out.write_str("+0000"),
                    _ => out.write_str("UTC"),
                },
            };
        }
        out
    }
}

/// Whether the machine's time zone is UTC, or none is set.
fn local_is_utc() -> bool {
    match std::env::var("TZ") {
        Ok(zone) => matches!(
            zone.trim_start_matches(':'),
            "" | "UTC" | "UTC0" | "Etc/UTC" | "GMT" | "Etc/GMT" | "Zulu"
        ),
        // RFC 9636, 3.3: the last line is the rule for times to come.
        Err(_) => std::fs::read("/etc/localtime").map_or(true, |table| {
            table.ends_with(b"\nUTC0\n") || table.ends_with(b"\nGMT0\n")
        }),
    }
}
