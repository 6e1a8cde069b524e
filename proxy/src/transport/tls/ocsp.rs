//! OCSP staples: what of an `OCSPResponse` (RFC 6960) decides whether it is served. Its signature is the client's to
//! check.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xds_client::error::ConfigError;

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const TIME: u8 = 0x18;
/// `[0]`, with something inside.
const EXPLICIT_0: u8 = 0xa0;
/// `id-pkix-ocsp-basic`.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 48, 1, 1];

/// A staple as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Staple {
    pub(super) der: Vec<u8>,
    /// Without one it is out of date at once, as in Envoy.
    next_update: Option<SystemTime>,
}

/// The elements of a DER structure, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (head, rest) = self.0.split_at_checked(2)?;
        let (tag, first) = (*head.first()?, *head.get(1)?);
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.next().filter(|(tag, _)| *tag == wanted).map(|n| n.1)
    }

    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }
}

/// What of a response is looked at.
struct Response<'a> {
    serial: &'a [u8],
    next_update: Option<SystemTime>,
}

impl Staple {
    /// Reads the response for the certificate with this serial number.
    ///
    /// # Errors
    /// It is none, not a successful one, not about exactly one certificate, or about another.
    pub(super) fn load(der: Vec<u8>, serial: &[u8]) -> Result<Self, ConfigError> {
        let response = read(&der)?;
        let plain = |number: &[u8]| -> Vec<u8> {
            let leading = number.iter().take_while(|b| **b == 0).count();
            number.get(leading..).unwrap_or_default().to_vec()
        };
        if plain(response.serial) != plain(serial) {
            return Err(ConfigError::new(
                "OCSP response does not match its TLS certificate",
            ));
        }
        let next_update = response.next_update;
        Ok(Self { der, next_update })
    }

    /// Whether it may still be served.
    pub(super) fn is_current(&self, now: SystemTime) -> bool {
        self.next_update.is_some_and(|until| now <= until)
    }
}

fn read(der: &[u8]) -> Result<Response<'_>, ConfigError> {
    let malformed = || ConfigError::new("is no OCSP response");
    let mut outer = Der(der);
    let mut response = Der(outer.expect(SEQUENCE).ok_or_else(malformed)?);
    if !outer.0.is_empty() {
        return Err(malformed());
    }
    if response.expect(ENUMERATED).ok_or_else(malformed)? != [0] {
        return Err(ConfigError::new("OCSP response was unsuccessful"));
    }
    let single = basic(&mut response).ok_or_else(malformed)?;
    let mut responses = Der(single);
    let mut single = Der(responses.expect(SEQUENCE).ok_or_else(malformed)?);
    if !responses.0.is_empty() {
        return Err(ConfigError::new(
            "OCSP Response must be for one certificate only",
        ));
    }
    one(&mut single).ok_or_else(malformed)
}

/// The list of single responses in a basic response.
fn basic<'a>(response: &mut Der<'a>) -> Option<&'a [u8]> {
    let bytes = Der(response.expect(EXPLICIT_0)?).expect(SEQUENCE)?;
    let mut bytes = Der(bytes);
    (bytes.expect(OBJECT)? == BASIC).then_some(())?;
    let basic = Der(bytes.expect(OCTET_STRING)?).expect(SEQUENCE)?;
    let mut data = Der(Der(basic).expect(SEQUENCE)?);
    if data.peek() == Some(EXPLICIT_0) {
        data.next()?; // version
    }
    data.next()?; // responder
    data.expect(TIME)?; // produced at
    data.expect(SEQUENCE)
}

fn one<'a>(single: &mut Der<'a>) -> Option<Response<'a>> {
    let mut id = Der(single.expect(SEQUENCE)?);
    id.expect(SEQUENCE)?; // hash algorithm
    id.expect(OCTET_STRING)?; // issuer's name
    id.expect(OCTET_STRING)?; // issuer's key
    let serial = id.expect(INTEGER)?;
    single.next()?; // status
    time(single.expect(TIME)?)?; // this update
    let next_update = match single.peek() {
        Some(EXPLICIT_0) => Some(time(Der(single.expect(EXPLICIT_0)?).expect(TIME)?)?),
        _ => None,
    };
    Some(Response {
        serial,
        next_update,
    })
}

/// `YYYYMMDDHHMMSSZ`, the one form that DER allows here.
fn time(text: &[u8]) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z").filter(|d| d.len() == 14)?;
    let number = |from: usize, to: usize| -> Option<u64> {
        let part = digits.get(from..to)?;
        let digit = |n: u64, b: &u8| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0'));
        part.iter().try_fold(0, digit)
    };
    let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
    let (hour, minute, second) = (number(8, 10)?, number(10, 12)?, number(12, 14)?);
    let within = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !within || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970 by a calendar whose year begins in March, so that leap days come last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, &content].concat()
    }

    fn single(serial: &[u8], next: Option<&[u8]>) -> Vec<u8> {
        let id = tlv(
            SEQUENCE,
            &[
                &tlv(SEQUENCE, &[&tlv(OBJECT, &[&[1]])]),
                &tlv(OCTET_STRING, &[b"name"]),
                &tlv(OCTET_STRING, &[b"key"]),
                &tlv(INTEGER, &[serial]),
            ],
        );
        let next = next.map_or(Vec::new(), |t| tlv(EXPLICIT_0, &[&tlv(TIME, &[t])]));
        tlv(
            SEQUENCE,
            &[&id, &[0x80, 0], &tlv(TIME, &[b"20260101000000Z"]), &next],
        )
    }

    fn response(status: u8, singles: &[&[u8]]) -> Vec<u8> {
        let data = tlv(
            SEQUENCE,
            &[
                &tlv(0xa2, &[&tlv(OCTET_STRING, &[b"key"])]),
                &tlv(TIME, &[b"20260101000000Z"]),
                &tlv(SEQUENCE, singles),
            ],
        );
        let basic = tlv(SEQUENCE, &[&data]);
        let bytes = tlv(
            SEQUENCE,
            &[&tlv(OBJECT, &[BASIC]), &tlv(OCTET_STRING, &[&basic])],
        );
        tlv(
            SEQUENCE,
            &[&[ENUMERATED, 1, status], &tlv(EXPLICIT_0, &[&bytes])],
        )
    }

    #[test]
    fn a_response_is_about_its_certificate_and_ends() {
        let der = response(0, &[&single(&[0, 0xab], Some(b"20260301000000Z"))]);
        let staple = Staple::load(der.clone(), &[0xab]).unwrap();
        let at = |text| time(text).unwrap();
        assert!(staple.is_current(at(b"20260228235959Z")));
        assert!(!staple.is_current(at(b"20260301000001Z")));
        let error = |der, serial: &[u8]| Staple::load(der, serial).unwrap_err().to_string();
        assert!(error(der.clone(), &[0xac]).contains("does not match"));
        assert!(error(response(1, &[]), &[1]).contains("unsuccessful"));
        let one = single(&[1], None);
        assert!(error(response(0, &[&one, &one]), &[1]).contains("one certificate"));
        assert!(
            !Staple::load(response(0, &[&one]), &[1])
                .unwrap()
                .is_current(UNIX_EPOCH)
        );
        for end in 0..der.len() {
            assert!(Staple::load(der[..end].to_vec(), &[0xab]).is_err(), "{end}");
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let seconds = |text: &[u8]| {
            let since = time(text)?.duration_since(UNIX_EPOCH).ok()?;
            Some(since.as_secs())
        };
        assert_eq!(seconds(b"19700101000000Z"), Some(0));
        assert_eq!(seconds(b"20000229123456Z"), Some(951_827_696));
        assert_eq!(seconds(b"20261121202300Z"), Some(1_795_292_580));
        for bad in [
            &b"20261321202300Z"[..],
            b"20261121202300",
            b"2026112120230xZ",
            b"",
        ] {
            assert_eq!(seconds(bad), None);
        }
    }
}
