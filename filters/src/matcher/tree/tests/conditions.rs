//! Conditions, and the one input that they take.

use super::*;

#[test]
fn conditions_take_everything_and_nothing_else() {
    let all = extension("xds.type.matcher.v3.HttpAttributesCelMatchInput", json!({}));
    let yes = json!({"cel_expr_parsed": {"expr": {"const_expr": {"bool_value": true}}}});
    let condition = |expression: &Json| {
        let kind = "xds.type.matcher.v3.CelMatcher";
        extension(kind, json!({"expr_match": expression}))
    };
    let single = |input: &Json, test: Json| {
        list(json!({"single_predicate": {"input": input, "custom_match": test}}))
    };
    assert!(compile(&single(&all, condition(&yes)), Place::Request).is_ok());
    let path = "matcher_list.matchers[0].predicate.single_predicate";
    for (matcher, wanted) in [
        (
            single(&network("SourceIPInput"), condition(&yes)),
            format!("{path}: the matcher takes another input"),
        ),
        (
            single(&all, condition(&json!({"cel_expr_string": "true"}))),
            format!("{path}.custom_match.typed_config.expr_match: a parsed expression is required"),
        ),
        (
            single(&all, condition(&json!({"parsed_expr": {"expr": {}}}))),
            format!(
                "{path}.custom_match.typed_config.expr_match.parsed_expr.expr: empty expression"
            ),
        ),
        (
            exact(&all, &[("x", to("y"))]),
            "matcher_tree.input: takes text".to_owned(),
        ),
    ] {
        assert_eq!(error(&matcher, Place::Request), wanted);
    }
}
