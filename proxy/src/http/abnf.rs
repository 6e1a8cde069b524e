//! Grammars in ABNF (RFC 5234), as far as the RFCs of HTTP use it: a second opinion for tests of what reads messages.

use std::collections::{BTreeSet, HashMap};

/// What a rule stands for.
enum Expression {
    Any(Vec<Expression>),
    All(Vec<Expression>),
    Repeat(Box<Expression>, usize, usize),
    Bytes(u8, u8),
    Text(Vec<u8>),
    Rule(String),
}

/// Rules by name.
pub(crate) struct Grammar(HashMap<String, Expression>);

/// Of RFC 5234 (appendix B.1), 9110 (5.1, 5.5, 5.6.2, 8.6) and 9112 (2.1, 3, 4, 5). Line folding is left out, and a target is
/// any visible ASCII, as to Envoy. Names of rules are in lower case.
pub(crate) const HTTP: &str = r##"
alpha = %x41-5a / %x61-7a
digit = %x30-39
vchar = %x21-7e
obs-text = %x80-ff
crlf = %x0d %x0a
sp = %x20
htab = %x09
ows = *( sp / htab )
tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~" / digit / alpha
token = 1*tchar
field-vchar = vchar / obs-text
field-value = *field-content
field-content = field-vchar [ 1*( sp / htab / field-vchar ) field-vchar ]
content-length = 1*digit
field-line = token ":" ows field-value ows
request-line = token sp 1*vchar sp http-version
http-version = %x48.54.54.50 "/" digit "." digit
status-line = http-version sp 3digit [ sp *( htab / sp / vchar / obs-text ) ]
request-head = request-line crlf *( field-line crlf ) crlf
response-head = status-line crlf *( field-line crlf ) crlf
"##;

impl Grammar {
    /// Reads rules, one a line.
    pub(crate) fn new(rules: &str) -> Self {
        let lines = rules.lines().filter_map(|line| line.split_once(" = "));
        Self(
            lines
                .map(|(name, rule)| {
                    let mut rest = rule;
                    let expression = any(&mut rest);
                    assert!(rest.is_empty(), "{name}: {rest}");
                    (name.to_owned(), expression)
                })
                .collect(),
        )
    }

    /// Whether `rule` stands for `input`.
    pub(crate) fn matches(&self, rule: &str, input: &[u8]) -> bool {
        self.ends(&self.0[rule], input, 0).contains(&input.len())
    }

    /// Where an expression that begins at `at` may end.
    fn ends(&self, expression: &Expression, input: &[u8], at: usize) -> BTreeSet<usize> {
        match expression {
            Expression::Any(of) => of.iter().flat_map(|e| self.ends(e, input, at)).collect(),
            Expression::All(of) => of.iter().fold(BTreeSet::from([at]), |starts, e| {
                starts
                    .iter()
                    .flat_map(|at| self.ends(e, input, *at))
                    .collect()
            }),
            Expression::Repeat(of, least, most) => {
                let (mut all, mut last) = (BTreeSet::new(), BTreeSet::from([at]));
                for count in 0.. {
                    if count >= *least {
                        all.extend(&last);
                    }
                    last = last
                        .iter()
                        .flat_map(|at| self.ends(of, input, *at))
                        .collect();
                    last.retain(|end| !all.contains(end));
                    if last.is_empty() || count == *most {
                        break;
                    }
                }
                all
            }
            Expression::Bytes(low, high) => match input.get(at) {
                Some(byte) if (low..=high).contains(&byte) => BTreeSet::from([at + 1]),
                _ => BTreeSet::new(),
            },
            Expression::Text(text) => match input.get(at..at + text.len()) {
                Some(part) if part.eq_ignore_ascii_case(text) => BTreeSet::from([at + text.len()]),
                _ => BTreeSet::new(),
            },
            Expression::Rule(name) => self.ends(&self.0[name], input, at),
        }
    }
}

fn any(rest: &mut &str) -> Expression {
    let mut of = vec![all(rest)];
    while let Some(more) = rest.strip_prefix("/ ") {
        *rest = more;
        of.push(all(rest));
    }
    Expression::Any(of)
}

fn all(rest: &mut &str) -> Expression {
    let mut of = Vec::new();
    while !rest.is_empty() && !rest.starts_with(['/', ')', ']']) {
        of.push(repeat(rest));
        *rest = rest.trim_start();
    }
    Expression::All(of)
}

fn repeat(rest: &mut &str) -> Expression {
    let least = number(rest);
    let bounds = match (least, rest.strip_prefix('*')) {
        (least, Some(more)) => {
            *rest = more;
            Some((least.unwrap_or(0), number(rest).unwrap_or(usize::MAX)))
        }
        (Some(exactly), None) => Some((exactly, exactly)),
        (None, None) => None,
    };
    let one = one(rest);
    match bounds {
        Some((least, most)) => Expression::Repeat(Box::new(one), least, most),
        None => one,
    }
}

fn number(rest: &mut &str) -> Option<usize> {
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    let (digits, more) = rest.split_at(end);
    *rest = more;
    digits.parse().ok()
}

fn one(rest: &mut &str) -> Expression {
    if let Some(more) = rest.strip_prefix('"') {
        let (text, more) = more.split_once('"').unwrap();
        *rest = more;
        return Expression::Text(text.into());
    }
    for (open, close) in [("( ", ")"), ("[ ", "]")] {
        if let Some(more) = rest.strip_prefix(open) {
            *rest = more;
            let inner = any(rest);
            *rest = rest.strip_prefix(close).unwrap();
            return match close {
                "]" => Expression::Repeat(Box::new(inner), 0, 1),
                _ => inner,
            };
        }
    }
    let end = rest.find([' ', ')', ']']).unwrap_or(rest.len());
    let (word, more) = rest.split_at(end);
    *rest = more;
    let Some(bytes) = word.strip_prefix("%x") else {
        return Expression::Rule(word.into());
    };
    let byte = |text| u8::from_str_radix(text, 16).unwrap();
    match bytes.split_once('-') {
        Some((low, high)) => Expression::Bytes(byte(low), byte(high)),
        None => {
            let sequence = bytes
                .split('.')
                .map(|b| Expression::Bytes(byte(b), byte(b)));
            Expression::All(sequence.collect())
        }
    }
}
