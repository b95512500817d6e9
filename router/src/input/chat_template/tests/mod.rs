//! Templates against what transformers renders, and against their limits.

mod fuzz;
mod rendered;

use super::*;

fn templates(source: &str) -> ChatTemplates {
    let template = NamedTemplate {
        name: "default".into(),
        source: source.into(),
    };
    let special = [
        ("bos_token".to_owned(), "<s>".to_owned()),
        ("eos_token".to_owned(), "</s>".to_owned()),
    ];
    ChatTemplates::new(&[template], &special)
}

fn chat(json: &str, continue_final: Option<&str>) -> Chat {
    Chat {
        messages: serde_json::from_str(json).unwrap(),
        continue_final: continue_final.map(str::to_owned),
        variables: Vec::new(),
        tools: None,
        reasoning_budget: None,
    }
}

fn render(source: &str) -> Result<String, ValidationError> {
    templates(source).render(&chat("[]", None))
}

fn error(source: &str) -> String {
    render(source).unwrap_err().to_string()
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn the_final_assistant_message_is_left_open_and_trimmed() {
    let messages =
        r#"[{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is "}]"#;
    let rendered = templates(CHATML).render(&chat(messages, Some("The answer is ")));
    assert_eq!(
        rendered.unwrap(),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nThe answer is"
    );
}

#[test]
fn a_template_may_refuse_a_chat_in_its_own_words() {
    let text = error("{{ raise_exception('roles must alternate') }}");
    assert_eq!(text, "chat template: roles must alternate");
    let text = error("{{ raise_exception('') }}");
    assert_eq!(text, "chat template: the template refuses the conversation");
}

#[test]
fn an_endless_template_runs_out_of_fuel() {
    let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}";
    assert!(error(nested).contains("fuel"), "{}", error(nested));
}

#[test]
fn a_template_that_writes_too_much_is_stopped() {
    let long = "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}";
    assert!(error(long).contains("too long"), "{}", error(long));
}

#[test]
fn a_template_that_does_not_compile_refuses_chats_only() {
    assert!(error("{% if %}").contains("does not compile"));
    assert_eq!(
        ChatTemplates::new(&[], &[]).render(&chat("[]", None)),
        Err(ValidationError::NoChatTemplate)
    );
}

#[test]
fn the_time_is_told_in_the_asked_format() {
    let year: u32 = render("{{ strftime_now('%Y') }}").unwrap().parse().unwrap();
    assert!(year > 2024);
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap().len(), 11);
}

#[test]
fn clients_variables_do_not_replace_the_messages() {
    let mut given = chat(r#"[{"role": "user", "content": "a"}]"#, None);
    given.variables = vec![
        ("messages".into(), Value::from("b")),
        ("enable_thinking".into(), Value::from(false)),
    ];
    let rendered = templates("{{ messages[0].content }}{{ enable_thinking }}").render(&given);
    assert_eq!(rendered.unwrap(), "aFalse");
}

#[test]
fn generation_tags_keep_their_whitespace_control() {
    let source = "a {%- generation -%} b {%- endgeneration %} c{% set generation = 1 %}";
    assert_eq!(render(source).unwrap(), "ab c");
}

#[test]
fn a_set_in_a_generation_block_ends_with_it() {
    let source = "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a is defined }}";
    assert_eq!(render(source).unwrap(), "1False");
}

#[test]
fn lists_and_texts_without_end_are_refused_before_they_fill_the_memory() {
    for source in [
        "{{ ([0] * 99999999) | join }}",
        "{{ ([0] * 99999999) | tojson }}",
        "{{ [0] * 99999999 }}",
        "{{ ([0] * 99999999)[::-1] }}",
        "{{ ([0] * 99999999) | sort }}",
        "{{ ([0] * 99999999) | map('string') | list }}",
        "{{ [1] | slice(99999999) | list }}",
        "{{ [1] | batch(99999999, 0) | list }}",
        "{{ ('x' * 99999999).split('x') }}",
        "{{ ('x' * 9999999).split('x') }}",
        "{{ ('x' * 9999999).replace('x', 'xxx') }}",
    ] {
        assert!(error(source).contains("more than"), "{source}");
    }
}

#[test]
fn endless_recursion_is_refused() {
    let source = "{% macro a(n) %}{{ a(n + 1) }}{% endmacro %}{{ a(0) }}";
    assert!(error(source).contains("recursion"), "{}", error(source));
}

#[test]
fn tools_choose_the_template_that_is_made_for_them() {
    let template = |name: &str, source: &str| NamedTemplate {
        name: name.into(),
        source: source.into(),
    };
    let both = [
        template("default", "plain"),
        template("tool_use", "tools: {{ tools | length }}"),
    ];
    let mut with_tools = chat("[]", None);
    with_tools.variables = vec![("tools".into(), Value::from(vec![1, 2]))];
    assert_eq!(
        ChatTemplates::new(&both, &[]).render(&with_tools).unwrap(),
        "tools: 2"
    );
    assert_eq!(
        ChatTemplates::new(&both[..1], &[])
            .render(&with_tools)
            .unwrap(),
        "plain"
    );
    assert_eq!(
        ChatTemplates::new(&both, &[])
            .render(&chat("[]", None))
            .unwrap(),
        "plain"
    );
}

#[test]
fn a_final_message_that_the_template_drops_cannot_be_continued() {
    let messages = r#"[{"role": "assistant", "content": "a"}]"#;
    let result = templates("a").render(&chat(messages, Some("a")));
    assert!(result.unwrap_err().to_string().contains("not part of"));
}

#[test]
fn files_cannot_be_included() {
    assert!(error("{% include '/etc/passwd' %}").contains("/etc/passwd"));
}
