//! The syntax of one operator: `NAME(ARGUMENT):LENGTH`, and which operators take an argument or a length.

use xds_client::error::ConfigError;

/// An operator as it is written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written<'a> {
    pub(super) name: &'a str,
    /// Empty parentheses are none.
    pub(super) argument: Option<&'a str>,
    pub(super) limit: Option<usize>,
}

#[derive(PartialEq, Eq)]
enum Argument {
    Never,
    Maybe,
    Always,
}

impl<'a> Written<'a> {
    /// Reads what follows an operator's first `%`; the rest is what follows its last one.
    ///
    /// # Errors
    /// It is no operator, or has what this one does not take.
    pub(super) fn parse(text: &'a str) -> Result<(Self, &'a str), ConfigError> {
        let bad = || ConfigError::new(format!("incorrect format operator: %{text}"));
        let end = text
            .find(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
            .ok_or_else(bad)?;
        let (name, rest) = text.split_at(end);
        let (argument, (limit, rest)) = match rest.strip_prefix('(') {
            None => (None, length(rest).ok_or_else(bad)?),
            Some(inside) => {
                // An argument ends where an operator can: it may have parentheses and percent signs of its own.
                let mut ends = inside.match_indices(')').map(|(at, _)| at);
                let (at, after) = ends
                    .find_map(|at| Some((at, length(inside.get(at + 1..)?)?)))
                    .ok_or_else(bad)?;
                (inside.get(..at).filter(|a| !a.is_empty()), after)
            }
        };
        let written = Self {
            name,
            argument,
            limit,
        };
        written.check()?;
        Ok((written, rest))
    }

    /// An operator of a `COALESCE`.
    ///
    /// # Errors
    /// It has what this operator does not take.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let (argument, limited) = rules(self.name);
        let name = self.name;
        if argument == Argument::Never && self.argument.is_some() {
            return Err(ConfigError::new(format!("{name} takes no argument")));
        }
        if argument == Argument::Always && self.argument.is_none() {
            return Err(ConfigError::new(format!("{name} requires an argument")));
        }
        if !limited && self.limit.is_some() {
            return Err(ConfigError::new(format!("{name} takes no length")));
        }
        Ok(())
    }
}

/// `%`, or a length and `%`: the length and what follows.
fn length(text: &str) -> Option<(Option<usize>, &str)> {
    match text.strip_prefix(':') {
        None => Some((None, text.strip_prefix('%')?)),
        Some(after) => {
            let (digits, rest) = after.split_once('%')?;
            let number = digits.bytes().all(|b| b.is_ascii_digit());
            Some((Some(number.then(|| digits.parse().ok())??), rest))
        }
    }
}

/// What an operator takes; unknown ones are refused elsewhere.
fn rules(name: &str) -> (Argument, bool) {
    match name {
        "REQ"
        | "REQUEST_HEADER"
        | "RESP"
        | "RESPONSE_HEADER"
        | "TRAILER"
        | "RESPONSE_TRAILER"
        | "REQ_WITHOUT_QUERY"
        | "DYNAMIC_METADATA"
        | "METADATA"
        | "FILTER_STATE"
        | "UPSTREAM_FILTER_STATE"
        | "ENVIRONMENT"
        | "QUERY_PARAM"
        | "COALESCE"
        | "CEL"
        | "TYPED_CEL" => (Argument::Always, true),
        "QUERY_PARAMS" | "PATH" => (Argument::Maybe, true),
        "CLUSTER_METADATA" | "UPSTREAM_METADATA" | "COMMON_DURATION" => (Argument::Always, false),
        "RESPONSE_CODE_DETAILS" | "GRPC_STATUS" | "REQUESTED_SERVER_NAME" => {
            (Argument::Maybe, false)
        }
        _ if name.ends_with("_WITHOUT_PORT")
            || name.ends_with("_V_START")
            || name.ends_with("_V_END")
            || name.contains("_TIME") =>
        {
            (Argument::Maybe, false)
        }
        _ => (Argument::Never, false),
    }
}
