//! Texts that an answer may be and texts that it may not: objects, reasoning, formats of the content, and schemas of every shape.

use super::*;

#[test]
fn tgis_form_answers_in_an_object_where_nothing_has_to_be_called() {
    let model = model(Spelled::Letters);
    let format = format(ToolFormat::Tgi, None);
    let accepts = |choice: ToolChoice, text: &str| {
        model.accepts(model.compile(&format, &tools(choice, true), None), text)
    };
    let answer = r#"{"function": {"_name": "no_tool", "content": "Hi."}}"#;
    assert!(accepts(ToolChoice::Auto, answer));
    assert!(!accepts(ToolChoice::Required, answer));
    assert!(!accepts(ToolChoice::Auto, "Hi."));
    let recorded = r#"{ "function": { "_name": "get","city" : "Rome"} }"#;
    assert!(accepts(ToolChoice::Auto, recorded));
    let twice = r#"{"function":  {"_name": "get", "city": "Rome"}}"#;
    assert!(!accepts(ToolChoice::Auto, twice));
}

#[test]
fn the_answer_begins_behind_the_reasoning() {
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS {
            let what = format!("{kind:?} {spelled:?}");
            let format = format(kind, Some(THINKING));
            let required = model.compile(&format, &tools(ToolChoice::Required, true), None);
            let accepts = |text: &str| model.accepts(required.for_another_sequence(), text);
            let call = written(kind, &[ROME]);
            assert!(accepts(&format!("I call.\n</think>\n\n{call}")), "{what}");
            assert!(accepts(&format!("</think>{call}")), "{what}");
            assert!(!accepts("I call."), "{what}");
            assert!(!accepts("I call.</think>No."), "{what}");
            let mut constraint = required.for_another_sequence();
            let read = model.walk(&mut constraint, &format, "Hm.\n</think>\n\n", 3);
            assert_eq!(read.reasoning, "Hm.", "{what}");
            if read.ended {
                assert_calls_fit(&read, &what);
            }
            if kind.syntax().after_text || kind == ToolFormat::Llama {
                let auto = model.compile(&format, &tools(ToolChoice::Auto, true), None);
                let accepts = |text: &str| model.accepts(auto.for_another_sequence(), text);
                assert!(accepts("Hm.</think>\n\nHello."), "{what}");
                assert!(accepts(&format!("Hm.</think>\n\n{call}")), "{what}");
                assert!(
                    !accepts(&format!("Hm.</think>\n\n{}", call.replace("Rome", "Bonn"))),
                    "{what}"
                );
            }
        }
    }
}

#[test]
fn the_model_may_think_or_not_where_the_prompt_leaves_it_open() {
    let reasoning = ReasoningFormat {
        opened_by_prompt: false,
        ..THINKING
    };
    for spelled in SPELLINGS {
        let model = model(spelled);
        let format = MessageFormat {
            reasoning: Some(reasoning),
            calls: None,
        };
        let grammar = Grammar::JsonObject;
        let compiled = model
            .grammars
            .compile_answer(&format, None, Some(&grammar))
            .unwrap();
        let accepts = |text: &str| model.accepts(compiled.for_another_sequence(), text);
        assert!(accepts("{}"), "{spelled:?}");
        assert!(
            accepts("<think>\nHm {}.\n</think>\n\n{\"a\": 1}"),
            "{spelled:?}"
        );
        assert!(!accepts("<think>\nHm {}."), "{spelled:?}");
        assert!(!accepts("Hm"), "{spelled:?}");
    }
}

#[test]
fn content_follows_a_format_of_its_own_beside_calls() {
    let color = Grammar::JsonSchema(json!({"properties": {"color": {"enum": ["red"]}}, "required": ["color"], "type": "object"}).to_string());
    for spelled in SPELLINGS {
        let model = model(spelled);
        for kind in FORMATS {
            let what = format!("{kind:?} {spelled:?}");
            let format = format(kind, None);
            let auto = model.compile(&format, &tools(ToolChoice::Auto, true), Some(&color));
            let accepts = |text: &str| model.accepts(auto.for_another_sequence(), text);
            assert!(accepts(r#"{"color":"red"}"#), "{what}");
            assert!(accepts(&written(kind, &[ROME])), "{what}");
            assert!(!accepts("Hello"), "{what}");
            assert!(!accepts(r#"{"color":"blue"}"#), "{what}");
        }
    }
}

#[test]
fn schemas_of_every_shape_are_held_to_in_every_form() {
    let model = model(Spelled::Special);
    let point =
        json!({"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]});
    let name =
        json!({"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]});
    for (schema, fitting, others) in [
        (
            json!({"$ref": "#/definitions/P", "definitions": {"P": point}}),
            &[r#"{"x":1}"#][..],
            &[r#"{"x":"a"}"#, r#"{"x":1,"y":2}"#][..],
        ),
        (
            json!({"anyOf": [point, {"$ref": "#/$defs/N"}], "$defs": {"N": name}}),
            &[r#"{"x":1}"#, r#"{"s":"a"}"#],
            &[r#"{"s":1}"#, "{}"],
        ),
        (
            json!({"type": "object", "properties": {"list": {"$ref": "#/$defs/L"}}, "required": ["list"],
                "$defs": {"L": {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/L"}]}}}}),
            &[r#"{"list":[1,[2,[]]]}"#],
            &[r#"{"list":["a"]}"#],
        ),
        (
            json!({"type": "object"}),
            &["{}", r#"{"a":[1,{"b":null}]}"#],
            &[],
        ),
        (
            json!({"type": "object", "properties": {"a": {}}, "additionalProperties": {"type": "integer"}}),
            &[r#"{"a":"b","c":1}"#],
            &[r#"{"a":"b","c":"d"}"#],
        ),
        (json!(true), &[r#"{"a":1}"#], &[]),
    ] {
        for kind in FORMATS {
            let what = format!("{kind:?}, {schema}");
            let tools = ToolUse {
                tools: vec![tool("get", &schema)],
                choice: ToolChoice::Required,
                parallel: false,
                prompt: None,
            };
            let required = model.compile(&format(kind, None), &tools, None);
            let accepts = |arguments: &str| {
                let text = written(kind, &[("get", arguments)]);
                model.accepts(required.for_another_sequence(), &text)
            };
            for arguments in fitting {
                assert!(accepts(arguments), "{what}: {arguments}");
            }
            for arguments in others {
                assert!(!accepts(arguments), "{what}: {arguments}");
            }
        }
    }
}

#[test]
fn mistakes_name_the_tool() {
    let model = model(Spelled::Letters);
    let refused = |kind: ToolFormat, parameters: Value| {
        let tools = ToolUse {
            tools: vec![
                tool("fine", &json!({"type": "object"})),
                tool("odd", &parameters),
            ],
            choice: ToolChoice::Auto,
            parallel: true,
            prompt: None,
        };
        let compiled = model
            .grammars
            .compile_answer(&format(kind, None), Some(&tools), None);
        compiled.unwrap_err().to_string()
    };
    for kind in FORMATS {
        for parameters in [
            json!({"type": "array"}),
            json!("text"),
            json!({"properties": {"a": {"$ref": "#/nowhere"}}}),
            json!({"properties": {"a": {"type": "string", "pattern": "("}}}),
        ] {
            let error = refused(kind, parameters.clone());
            assert!(
                error.starts_with("tool `odd`: "),
                "{kind:?} {parameters}: {error}"
            );
        }
    }
}
