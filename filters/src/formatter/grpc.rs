//! `%GRPC_STATUS%`: how a gRPC call ended.

use std::borrow::Cow;

use tonic::Code;
use xds_client::error::ConfigError;

use super::FormatContext;
use super::facts::owned;
use crate::grpc::status_of;

/// How a status is printed.
#[derive(Debug, Clone, Copy)]
pub(super) enum GrpcStatus {
    Camel,
    Snake,
    Number,
}

impl GrpcStatus {
    /// Compiles an operator; `None` if it is not one of these.
    ///
    /// # Errors
    /// An unknown form.
    pub(super) fn compile(name: &str, argument: Option<&str>) -> Result<Option<Self>, ConfigError> {
        Ok(Some(match (name, argument.unwrap_or("CAMEL_STRING")) {
            ("GRPC_STATUS_NUMBER", _) | ("GRPC_STATUS", "NUMBER") => Self::Number,
            ("GRPC_STATUS", "CAMEL_STRING") => Self::Camel,
            ("GRPC_STATUS", "SNAKE_STRING") => Self::Snake,
            ("GRPC_STATUS", other) => {
                let text =
                    format!("GRPC_STATUS knows CAMEL_STRING, SNAKE_STRING and NUMBER, not {other}");
                return Err(ConfigError::new(text));
            }
            _ => return Ok(None),
        }))
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Self::Number)
    }

    pub(super) fn value<'a>(self, cx: &FormatContext<'a>) -> Option<Cow<'a, [u8]>> {
        if !cx.request?.is_grpc() {
            return None;
        }
        let number = status_of(cx.trailers, cx.response, cx.info.response_code)?;
        match self {
            Self::Number => owned(number.to_string()),
            Self::Camel | Self::Snake => {
                let Some((camel, snake)) = names(number) else {
                    return owned(number.to_string());
                };
                let name = if matches!(self, Self::Camel) {
                    camel
                } else {
                    snake
                };
                Some(Cow::Borrowed(name.as_bytes()))
            }
        }
    }
}

/// A status's names.
fn names(number: u32) -> Option<(&'static str, &'static str)> {
    let number = i32::try_from(number).ok().filter(|n| *n <= 16)?;
    Some(match Code::from(number) {
        Code::Ok => ("OK", "OK"),
        Code::Cancelled => ("Canceled", "CANCELLED"),
        Code::Unknown => ("Unknown", "UNKNOWN"),
        Code::InvalidArgument => ("InvalidArgument", "INVALID_ARGUMENT"),
        Code::DeadlineExceeded => ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
        Code::NotFound => ("NotFound", "NOT_FOUND"),
        Code::AlreadyExists => ("AlreadyExists", "ALREADY_EXISTS"),
        Code::PermissionDenied => ("PermissionDenied", "PERMISSION_DENIED"),
        Code::ResourceExhausted => ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
        Code::FailedPrecondition => ("FailedPrecondition", "FAILED_PRECONDITION"),
        Code::Aborted => ("Aborted", "ABORTED"),
        Code::OutOfRange => ("OutOfRange", "OUT_OF_RANGE"),
        Code::Unimplemented => ("Unimplemented", "UNIMPLEMENTED"),
        Code::Internal => ("Internal", "INTERNAL"),
        Code::Unavailable => ("Unavailable", "UNAVAILABLE"),
        Code::DataLoss => ("DataLoss", "DATA_LOSS"),
        Code::Unauthenticated => ("Unauthenticated", "UNAUTHENTICATED"),
    })
}
