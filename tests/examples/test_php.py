"""The scanner finds functions where strings, comments and heredocs try to hide them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneworthy.examples.php import Function, functions

DOC = "/**\n     * Get it.\n     *\n     * @return  int\n     */"


def only(body: str) -> Function:
    found = list(functions(f"<?php\nclass A\n{{\n    {DOC}\n    {body}\n}}\n"))
    assert len(found) == 1
    return found[0]


def test_code_and_docblock_stand_at_the_left_margin() -> None:
    found = only("public static function &get(int $a = 1): ?int\n    {\n        return $a;\n    }")
    assert found.name == "get"
    assert found.code == "public static function &get(int $a = 1): ?int\n{\n    return $a;\n}"
    assert found.docblock == "/**\n * Get it.\n *\n * @return  int\n */"


@pytest.mark.parametrize(
    "line",
    [
        "$a = '}';",
        '$a = "}";',
        r"$a = 'it\'s }';",
        r'$a = "\"}";',
        '$a = "{$b["}"]} }";',
        "$a = \"${b} { {$c->d('}')} {\";",
        "// }",
        "# }",
        "/* } */",
        "/** } */",
        "$f = function () { return [1, (2)]; };",
        "#[Pure]\n        $a = 1;",
        "$a = <<<EOT\n        }\n        EOT;",
        "$a = <<<'EOT'\n} EOTX\nEOT;",
        '$a = <<<"EOT"\n{{{\n  EOT . "}";',
        "$a = `}`;",
        "?> } <?php",
    ],
)
def test_a_brace_that_is_no_code_does_not_count(line: str) -> None:
    found = only(f"function get()\n    {{\n        {line}\n        return 1;\n    }}")
    assert found.code.endswith("\n    return 1;\n}")


@pytest.mark.parametrize(
    "source",
    [
        f"<?php {DOC} function get();",
        f"<?php {DOC} abstract public function get(): int;",
        f"<?php {DOC} $f = function () {{ }};",
        f"<?php {DOC} public $a = 1; function get() {{ }}",
        f"<?php {DOC} class A {{ function get() {{ }} }}",
        f"<?php {DOC} #[A] function get() {{ }}",
        f"<?php {DOC} function () {{ }}",
        f"<?php {DOC} function get() {{",
        f"<?php {DOC} function get( }}",
        f"<?php {DOC}",
        f"<?php $a = '{DOC} function get() {{ }}';",
        f"<?php // {DOC.splitlines()[0]} function get() {{ }}",
        "<?php /* Get it. */ function get() { }",
        "<?php /**/ function get() { }",
        f"{DOC} function get() {{ }}",
        "",
    ],
)
def test_what_is_not_a_documented_function_with_a_body(source: str) -> None:
    assert list(functions(source)) == []


def test_functions_side_by_side_and_inside_each_other() -> None:
    source = (
        "<html><?php /** A. */ function a() { /** B. */ function b() { return '{'; } } ?>\n"
        "<p>{</p><?php\n/** C. */\nfinal protected function c() { }"
    )
    assert [(f.name, f.docblock) for f in functions(source)] == [
        ("a", "/** A. */"),
        ("b", "/** B. */"),
        ("c", "/** C. */"),
    ]


@given(st.text(alphabet="<?ph*/ {}()'\"#;$=EOT\n\\function a", max_size=200))
def test_any_text_ends_and_what_is_found_is_balanced(text: str) -> None:
    for function in functions("<?php /** */ " + text):
        assert function.code.endswith("}")


@given(st.text(max_size=60).filter(lambda t: "*/" not in t and "\r" not in t))
def test_a_string_of_any_text_hides_nothing_of_the_function(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    source = f"<?php /** Doc. */ function a() {{ $x = '{quoted}'; return 1; }} /** No. */"
    (found,) = functions(source)
    assert found.code.endswith("return 1; }")
