"""What the router's chat templates are compared with is what transformers renders today."""

import chat_template_cases as cases


def test_expected_renderings_are_those_of_transformers() -> None:
    expected = cases.load("rendered.json")
    rendered = cases.rendered()
    assert rendered["expressions"] == expected["expressions"]
    assert rendered["templates"] == expected["templates"]


def test_the_file_is_as_the_script_writes_it() -> None:
    assert cases.as_text(cases.load("rendered.json")) == cases.RENDERED.read_text(encoding="utf-8")


def test_the_cases_are_many_and_templates_refuse_some() -> None:
    templates = cases.load("rendered.json")["templates"]
    renderings = [rendering for of_template in templates.values() for rendering in of_template.values()]
    assert len(templates) >= 45
    assert all(len(of_template) == len(cases.load("conversations.json")) for of_template in templates.values())
    assert sum("text" in rendering for rendering in renderings) > 1200
    assert sum("error" in rendering for rendering in renderings) > 200


def test_every_known_difference_is_an_expression_that_is_compared() -> None:
    known = (cases.FOLDER / "differences.txt").read_text(encoding="utf-8").splitlines()
    known = [line for line in known if line and not line.startswith("# ")]
    assert known
    assert set(known) <= set(cases.expressions())
