//! From the syntax tree to what is evaluated.

use std::borrow::Cow;
use std::cmp::Ordering;

use envoy_types::pb::google::api::expr::v1alpha1::{
    Constant, Expr,
    constant::ConstantKind,
    expr::{Call, CreateStruct, ExprKind, Select, create_struct::entry::KeyKind},
};
use xds_client::error::{At, ConfigError};

use super::attributes::Group;
use super::value::Value;
use super::{Arithmetic, Conversion, Expression, Node, Part};
use crate::matcher::regex::build;

type Result<T> = std::result::Result<T, ConfigError>;

impl Expression {
    /// Compiles a syntax tree.
    ///
    /// # Errors
    /// What Envoy refuses (comprehensions, functions that are unknown or have other numbers of arguments, patterns
    /// that are none) and what is not supported: times and durations, messages, patterns that are calculated, and
    /// the attributes of responses and upstreams.
    pub fn compile(proto: &Expr) -> Result<Self> {
        node(proto).map(Self)
    }
}

fn boxed(proto: Option<&Expr>) -> Result<Box<Node>> {
    let proto = proto.ok_or_else(|| ConfigError::new("an operand is missing"))?;
    node(proto).map(Box::new)
}

fn node(proto: &Expr) -> Result<Node> {
    match &proto.expr_kind {
        None => Err(ConfigError::new("empty expression")),
        Some(ExprKind::ConstExpr(constant)) => value(constant).map(Node::Constant).at("const_expr"),
        Some(ExprKind::IdentExpr(ident)) => match Group::named(&ident.name) {
            Some(group) => Ok(Node::Group(group)),
            None if Group::UNSUPPORTED.contains(&ident.name.as_str()) => {
                Err(unsupported(&ident.name).at("ident_expr"))
            }
            None => Ok(Node::Unknown),
        },
        Some(ExprKind::SelectExpr(select)) => self::select(select).at("select_expr"),
        Some(ExprKind::CallExpr(call)) => self::call(call).at("call_expr"),
        Some(ExprKind::ListExpr(list)) if list.optional_indices.is_empty() => {
            let elements = list.elements.iter().map(node).collect::<Result<_>>();
            elements.map(Node::List).at("list_expr")
        }
        Some(ExprKind::ListExpr(_)) => Err(unsupported("optional elements").at("list_expr")),
        Some(ExprKind::StructExpr(map)) => self::map(map).at("struct_expr"),
        Some(ExprKind::ComprehensionExpr(_)) => {
            Err(unsupported("comprehension").at("comprehension_expr"))
        }
    }
}

fn unsupported(what: &str) -> ConfigError {
    ConfigError::new(format!("{what} is not supported"))
}

fn value(constant: &Constant) -> Result<Value<'static>> {
    Ok(match &constant.constant_kind {
        None => return Err(ConfigError::new("empty constant")),
        Some(ConstantKind::NullValue(_)) => Value::Null,
        Some(ConstantKind::BoolValue(b)) => Value::Bool(*b),
        Some(ConstantKind::Int64Value(n)) => Value::Int(*n),
        Some(ConstantKind::Uint64Value(n)) => Value::Uint(*n),
        Some(ConstantKind::DoubleValue(n)) => Value::Double(*n),
        Some(ConstantKind::StringValue(text)) => Value::Text(Cow::Owned(text.clone().into_bytes())),
        Some(ConstantKind::BytesValue(bytes)) => Value::Bytes(Cow::Owned(bytes.clone())),
        #[allow(deprecated)] // and refused
        Some(ConstantKind::DurationValue(_) | ConstantKind::TimestampValue(_)) => {
            return Err(unsupported("time"));
        }
    })
}

fn select(proto: &Select) -> Result<Node> {
    let operand = boxed(proto.operand.as_deref())?;
    known(&operand, &proto.field)?;
    let field = proto.field.clone();
    Ok(match proto.test_only {
        true => Node::Has(operand, field),
        false => Node::Select(operand, field),
    })
}

/// Refuses an attribute that Envoy would know.
fn known(operand: &Node, field: &str) -> Result<()> {
    match operand {
        Node::Group(group) if group.unsupported().contains(&field) => Err(unsupported(field)),
        _ => Ok(()),
    }
}

fn map(proto: &CreateStruct) -> Result<Node> {
    if !proto.message_name.is_empty() {
        return Err(unsupported("a message"));
    }
    let entry =
        |entry: &envoy_types::pb::google::api::expr::v1alpha1::expr::create_struct::Entry| match (
            &entry.key_kind,
            &entry.value,
        ) {
            (Some(KeyKind::MapKey(key)), Some(value)) if !entry.optional_entry => {
                Ok((node(key)?, node(value)?))
            }
            _ => Err(ConfigError::new("a key and a value are required")),
        };
    let entries = proto.entries.iter().map(entry).collect::<Result<_>>();
    entries.map(Node::Map)
}

fn call(proto: &Call) -> Result<Node> {
    // A receiver is the first argument: where it may stand in front, it may stand inside, too.
    let operands = proto.target.as_deref().into_iter().chain(&proto.args);
    let mut operands = operands.map(node).collect::<Result<Vec<_>>>()?.into_iter();
    let (a, b, c) = (operands.next(), operands.next(), operands.next());
    let operands = (a, b, c, operands.next());
    let name = proto.function.as_str();
    let (a, b) = match operands {
        (Some(condition), Some(yes), Some(no), None) if name == "_?_:_" => {
            return Ok(Node::If(condition.into(), yes.into(), no.into()));
        }
        (Some(a), None, None, None) => return unary(name, a),
        (Some(a), Some(b), None, None) => (a, b),
        _ => return Err(unsupported_call(name)),
    };
    let calculated = |how| move |a, b| Node::Arithmetic(how, a, b);
    let part = |part| move |a, b| Node::Part(part, a, b);
    let (a, b) = (Box::new(a), Box::new(b));
    Ok(match name {
        "_&&_" => Node::And(a, b),
        "_||_" => Node::Or(a, b),
        "_==_" | "_!=_" if matches!((&*a, &*b), (Node::Group(_), _) | (_, Node::Group(_))) => {
            return Err(unsupported("a comparison of all attributes"));
        }
        "_==_" => Node::Equal(a, b),
        "_!=_" => Node::Not(Box::new(Node::Equal(a, b))),
        "_<_" => Node::Order(a, b, Ordering::is_lt),
        "_<=_" => Node::Order(a, b, Ordering::is_le),
        "_>_" => Node::Order(a, b, Ordering::is_gt),
        "_>=_" => Node::Order(a, b, Ordering::is_ge),
        "_+_" => calculated(Arithmetic::Add)(a, b),
        "_-_" => calculated(Arithmetic::Subtract)(a, b),
        "_*_" => calculated(Arithmetic::Multiply)(a, b),
        "_/_" => calculated(Arithmetic::Divide)(a, b),
        "_%_" => calculated(Arithmetic::Remainder)(a, b),
        "@in" | "_in_" | "in" => Node::In(a, b),
        "contains" => part(Part::Anywhere)(a, b),
        "startsWith" => part(Part::Start)(a, b),
        "endsWith" => part(Part::End)(a, b),
        "matches" => match *b {
            Node::Constant(Value::Text(pattern)) => {
                Node::Matches(a, build(&String::from_utf8_lossy(&pattern))?)
            }
            _ => return Err(unsupported("a pattern that is no constant")),
        },
        "_[_]" => index(a, b)?,
        _ => return Err(unsupported_call(name)),
    })
}

fn unsupported_call(name: &str) -> ConfigError {
    ConfigError::new(format!(
        "{name} is no function for this number of arguments, or not supported"
    ))
    .at("function")
}

fn unary(name: &str, operand: Node) -> Result<Node> {
    let operand = Box::new(operand);
    Ok(match name {
        "!_" => Node::Not(operand),
        "-_" => Node::Negate(operand),
        "size" => Node::Size(operand),
        "int" => Node::Convert(Conversion::Int, operand),
        "uint" => Node::Convert(Conversion::Uint, operand),
        "double" => Node::Convert(Conversion::Double, operand),
        "bytes" => Node::Convert(Conversion::Bytes, operand),
        "dyn" => Node::Convert(Conversion::None, operand),
        _ => return Err(unsupported_call(name)),
    })
}

fn index(operand: Box<Node>, key: Box<Node>) -> Result<Node> {
    if let Node::Group(group) = &*operand
        && group.is_fixed()
    {
        // What would be looked up must be known, for some of it Envoy has and we have not.
        let Node::Constant(Value::Text(name)) = &*key else {
            return Err(unsupported("an attribute's name that is no constant"));
        };
        known(&operand, &String::from_utf8_lossy(name))?;
    }
    Ok(Node::Index(operand, key))
}
