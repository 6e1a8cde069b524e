//! `%COALESCE({"operators": [...]})%`: the first of several operators that has a value.

use serde::Deserialize;
use xds_client::error::{At, ConfigError};

use super::operators::Operator;
use super::syntax::Written;

/// How many operators there may be.
const MOST: usize = 32;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    operators: Vec<Given>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Given {
    Name(String),
    Whole {
        command: String,
        #[serde(default)]
        param: Option<String>,
        #[serde(default)]
        max_length: Option<usize>,
    },
}

/// Compiles the operators with their lengths.
///
/// # Errors
/// Not JSON of that form, none or more than 32 operators, or a bad one; they cannot be nested.
pub(super) fn compile(argument: &str) -> Result<Vec<(Operator, Option<usize>)>, ConfigError> {
    let bad = |text: String| ConfigError::new(text).at("COALESCE");
    let config: Config = serde_json::from_str(argument).map_err(|e| bad(e.to_string()))?;
    if config.operators.is_empty() || config.operators.len() > MOST {
        return Err(bad(format!("takes 1 to {MOST} operators")));
    }
    let compile = |given: &Given| {
        let (name, argument, limit) = match given {
            Given::Name(name) => (name, None, None),
            Given::Whole {
                command,
                param,
                max_length,
            } => (command, param.as_deref(), *max_length),
        };
        if name == "COALESCE" {
            return Err(ConfigError::new("cannot be nested"));
        }
        let argument = argument.filter(|a| !a.is_empty());
        let written = Written {
            name,
            argument,
            limit: None,
        };
        written.check()?;
        Ok((Operator::compile(name, argument)?, limit))
    };
    let all = config.operators.iter().map(compile);
    all.collect::<Result<_, _>>().at("COALESCE")
}
