//! The protobuf wire format, as far as it takes to find fields.

use super::table::Kind;
use crate::error::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// A field as it stands on the wire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) number: u32,
    pub(super) value: Wire<'a>,
}

/// An encoded value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

pub(super) fn malformed() -> ConfigError {
    ConfigError::new("not a valid encoding of the message")
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    prost::encoding::decode_varint(bytes).map_err(|_| malformed())
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n).ok_or_else(malformed)?;
    *bytes = rest;
    Ok(head)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N]> {
    take(bytes, N)?.try_into().map_err(|_| malformed())
}

fn length<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8]> {
    let n = usize::try_from(varint(bytes)?).map_err(|_| malformed())?;
    take(bytes, n)
}

/// The fields of a message. Groups, which Envoy's API does not have, are malformed.
pub(super) fn records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let number = u32::try_from(tag >> 3).map_err(|_| malformed())?;
        let value = match tag & 7 {
            0 => Wire::Varint(varint(&mut bytes)?),
            1 => Wire::Fixed64(array(&mut bytes)?),
            2 => Wire::Bytes(length(&mut bytes)?),
            5 => Wire::Fixed32(array(&mut bytes)?),
            _ => return Err(malformed()),
        };
        records.push(Record { number, value });
    }
    Ok(records)
}

/// The elements in one record of a list: one, or many packed numbers.
pub(super) fn elements<'a>(kind: Kind, value: Wire<'a>, into: &mut Vec<Wire<'a>>) -> Result<()> {
    let Wire::Bytes(mut packed) = value else {
        into.push(value);
        return Ok(());
    };
    match kind {
        Kind::Int | Kind::Uint | Kind::Sint | Kind::Bool => {
            while !packed.is_empty() {
                into.push(Wire::Varint(varint(&mut packed)?));
            }
        }
        Kind::Fixed32 | Kind::Float => {
            while !packed.is_empty() {
                into.push(Wire::Fixed32(array(&mut packed)?));
            }
        }
        Kind::Fixed64 | Kind::Double => {
            while !packed.is_empty() {
                into.push(Wire::Fixed64(array(&mut packed)?));
            }
        }
        _ => into.push(value),
    }
    Ok(())
}

/// What a number, a truth value, a duration or a wrapper of these stands for; `None` is the default.
#[allow(clippy::cast_precision_loss)] // bounds are far below 2^53, or at the end of the range
pub(super) fn number(kind: Kind, value: Option<Wire<'_>>) -> Result<Option<f64>> {
    let inner = |inner: Kind| match value {
        Some(Wire::Bytes(bytes)) => {
            let last = records(bytes)?.into_iter().rfind(|r| r.number == 1);
            number(inner, last.map(|r| r.value))
        }
        _ => Ok(Some(0.0)),
    };
    Ok(Some(match (kind, value) {
        (Kind::String | Kind::Bytes | Kind::Message | Kind::Any | Kind::StringValue, _) => {
            return Ok(None);
        }
        (Kind::UintValue, _) => return inner(Kind::Uint),
        (Kind::IntValue, _) => return inner(Kind::Int),
        (Kind::FloatValue, _) => return inner(Kind::Float),
        (Kind::DoubleValue, _) => return inner(Kind::Double),
        (Kind::BoolValue, _) => return inner(Kind::Bool),
        (Kind::Duration, Some(Wire::Bytes(bytes))) => {
            let parts = records(bytes)?;
            let part = |n| {
                let last = parts.iter().rfind(|r| r.number == n);
                number(Kind::Int, last.map(|r| r.value)).map(Option::unwrap_or_default)
            };
            part(1)? + part(2)? / 1e9
        }
        (_, None) => 0.0,
        (Kind::Int, Some(Wire::Varint(n))) => n.cast_signed() as f64,
        (Kind::Sint, Some(Wire::Varint(n))) => {
            ((n >> 1).cast_signed() ^ -((n & 1).cast_signed())) as f64
        }
        (Kind::Uint | Kind::Bool, Some(Wire::Varint(n))) => n as f64,
        (Kind::Fixed32, Some(Wire::Fixed32(n))) => f64::from(u32::from_le_bytes(n)),
        (Kind::Fixed64, Some(Wire::Fixed64(n))) => u64::from_le_bytes(n) as f64,
        (Kind::Float, Some(Wire::Fixed32(n))) => f64::from(f32::from_le_bytes(n)),
        (Kind::Double, Some(Wire::Fixed64(n))) => f64::from_le_bytes(n),
        _ => return Err(malformed()),
    }))
}

/// The text of a string or bytes field, or of a wrapper.
pub(super) fn text<'a>(kind: Kind, value: Option<Wire<'a>>) -> Result<&'a [u8]> {
    match (kind, value) {
        (Kind::StringValue, Some(Wire::Bytes(bytes))) => {
            let last = records(bytes)?.into_iter().rfind(|r| r.number == 1);
            text(Kind::String, last.map(|r| r.value))
        }
        (_, Some(Wire::Bytes(bytes))) => Ok(bytes),
        (_, None) => Ok(&[]),
        _ => Err(malformed()),
    }
}
