//! `%FILTER_STATE%`: an object in one of its forms.

use std::borrow::Cow;

use xds_client::error::ConfigError;

use crate::stream::FilterObject;

/// Which form is told.
#[derive(Debug, Clone)]
pub(super) enum Form {
    /// As protobuf's JSON; not every kind of object has such a form.
    Typed,
    Plain,
    /// One of its fields.
    Field(Box<str>),
}

impl Form {
    /// Compiles what follows the key.
    pub(super) fn compile(text: &str) -> Result<Self, ConfigError> {
        match (text, text.strip_prefix("FIELD:")) {
            ("TYPED", _) => Ok(Self::Typed),
            ("PLAIN", _) => Ok(Self::Plain),
            (_, Some(name)) if !name.is_empty() => Ok(Self::Field(name.into())),
            _ => Err(ConfigError::new(
                "%FILTER_STATE% knows PLAIN, TYPED and FIELD:name only",
            )),
        }
    }

    /// The object in this form, if it has it.
    pub(super) fn of<'a>(&self, object: &'a FilterObject) -> Option<Cow<'a, [u8]>> {
        let text = match (self, object) {
            (Self::Field(name), _) => Cow::Borrowed(object.field(name)?),
            (Self::Typed, FilterObject::Text(text)) => serde_json::to_string(&**text).ok()?.into(),
            // 64 bits are more than JSON's numbers hold.
            (Self::Typed, FilterObject::Number(number)) => format!("\"{number}\"").into(),
            (Self::Plain, _) | (_, FilterObject::Flag(_) | FilterObject::Fields(_)) => {
                object.text()?
            }
            (Self::Typed, _) => return None,
        };
        Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_have_the_forms_of_their_kinds() {
        let forms = |object: FilterObject| {
            ["PLAIN", "TYPED", "FIELD:a"].map(|form| {
                let form = Form::compile(form).unwrap();
                let told = form.of(&object).unwrap_or(Cow::Borrowed(b"-"));
                String::from_utf8(told.into_owned()).unwrap()
            })
        };
        let text = FilterObject::Text("a\"b".into());
        assert_eq!(forms(text), ["a\"b", r#""a\"b""#, "-"]);
        assert_eq!(forms(FilterObject::Name("a,b".into())), ["a,b", "-", "-"]);
        let protocols = FilterObject::Protocols(["h2".into()].into());
        assert_eq!(forms(protocols), ["-", "-", "-"]);
        let address = FilterObject::Address("10.0.0.1:80".parse().unwrap());
        assert_eq!(forms(address), ["10.0.0.1:80", "-", "-"]);
        assert_eq!(forms(FilterObject::Flag(true)), ["true", "true", "-"]);
        assert_eq!(forms(FilterObject::Number(300)), ["300", "\"300\"", "-"]);
        let fields = [("a".to_owned(), "x".to_owned())].into();
        let whole = r#"{"a":"x"}"#;
        let fields = FilterObject::Fields(std::sync::Arc::new(fields));
        assert_eq!(forms(fields), [whole, whole, "x"]);
        for bad in ["", "plain", "FIELD", "FIELD:"] {
            assert!(Form::compile(bad).is_err(), "{bad}");
        }
    }
}
