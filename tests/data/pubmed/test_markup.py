"""Markup to text: no letter or digit is lost, made up or run into a number that is not there."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.pubmed.markup import readable

MML = 'xmlns:mml="http://www.w3.org/1998/Math/MathML"'


def text_of(inner):
    """What becomes of an AbstractText; the prefix mml stays, as expat leaves it."""
    element = ElementTree.fromstring(f"<AbstractText {MML}>{inner}</AbstractText>")
    for each in element.iter():
        each.tag = each.tag.replace("{http://www.w3.org/1998/Math/MathML}", "mml:")
    return readable(element)


def math(inner):
    prefixed = re.sub("<(/?)(?=[a-z])", r"<\1mml:", inner)
    return text_of(f"<mml:math>{prefixed}</mml:math>")


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("", ""),
        (" a\n\tb\u00a0\u2009c\u2028 ", "a b c"),
        ("a\u200bb", "a\u200bb"),  # no white space: kept
        ("<i>Leptochrysa</i> <b>sp. nov.</b>", "Leptochrysa sp. nov."),
        ("<b>Background:</b>Text", "Background:Text"),
        ("0.4-<u>&lt;</u>4.5", "0.4-<4.5"),
        ("&lt;i&gt;x&lt;/i&gt;", "<i>x</i>"),  # escaped in the source: text
        ("H<sub>2</sub>O", "H2O"),
        ("CD4<sup>+</sup> T", "CD4+ T"),
        ("Ca<sup>2+</sup> uptake", "Ca2+ uptake"),
        ("p53<sup>-/-</sup>", "p53-/-"),
        ("<sup>14</sup>C", "14C"),
        ("r<sup>2</sup>&lt;0.25", "r2<0.25"),
        ("10<sup>5</sup> cells", "10^5 cells"),
        ("10<sup>-5</sup>", "10^-5"),
        ("10<sup>\u22125</sup> m", "10^\u22125 m"),
        ("10 <sup>5</sup>", "10 5"),
        ("10<sup><i>5</i></sup>", "10^5"),
        ("<b>10</b><sup>5</sup>", "10^5"),
        ("10<b><sup>5</sup></b>", "10^5"),
        ("<b>1</b>0", "10"),
        ("log<sub>10</sub>2", "log10 2"),
        ("5<sub>1</sub>", "5 1"),
        ("10<sub>-1</sub>", "10-1"),
        ("x<sub>1</sub><sup>2</sup>", "x1^2"),
        ("x<sup>2</sup>3", "x2 3"),
        ("10<sup>5</sup>20", "10^5 20"),
        ("1<sup></sup>2", "1 2"),
        ("in 2019<sup>12,13</sup>", "in 2019^12,13"),
        ("<DispFormula>E=m</DispFormula>", "E=m"),
        ("a<!-- note -->b", "ab"),
    ],
)
def test_inline_markup(inner, expected):
    assert text_of(inner) == expected


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("<mi>p</mi><mo>&lt;</mo><mn>0.05</mn>", "p<0.05"),
        ("<mrow>\n <mi>p</mi>\n <mo>=</mo>\n <mn>1</mn>\n</mrow>", "p=1"),
        ("<mi>sin</mi><mi>x</mi>", "sin x"),
        ("<mn>2</mn><mi>x</mi>", "2x"),
        ("<mn>2</mn><mn>3</mn>", "2 3"),
        ("<mn>2</mn><mo>&#x2062;</mo><mi>x</mi>", "2x"),
        ("<msup><mi>x</mi><mn>2</mn></msup>", "x^2"),
        ("<msup><mn>10</mn><mrow><mo>-</mo><mn>5</mn></mrow></msup>", "10^-5"),
        ("<msup><mi>x</mi><mrow><mi>n</mi><mo>+</mo><mn>1</mn></mrow></msup>", "x^(n+1)"),
        ("<msup><mi>Ca</mi><mrow><mn>2</mn><mo>+</mo></mrow></msup>", "Ca^2+"),
        ("<msup><mi>x</mi><mrow/></msup>", "x"),
        ("<msub><mi>E</mi><mn>11</mn></msub>", "E11"),
        ("<msub><mi>x</mi><mi>i</mi></msub>", "x i"),
        ("<msubsup><mi>x</mi><mn>1</mn><mn>2</mn></msubsup>", "x1^2"),
        ("<mfrac><mn>1</mn><mn>2</mn></mfrac>", "1/2"),
        ("<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mi>c</mi></mfrac>", "(a+b)/c"),
        ("<msqrt><mi>x</mi></msqrt>", "√x"),
        ("<msqrt><mi>x</mi><mo>+</mo><mn>1</mn></msqrt>", "√(x+1)"),
        ("<mroot><mi>x</mi><mn>3</mn></mroot>", "3√x"),
        ("<mover><mi>x</mi><mo>¯</mo></mover>", "x¯"),
        ("<mover><mo>→</mo><mi>k</mi></mover>", "→^k"),
        ("<munderover><mo>∑</mo><mrow><mi>i</mi><mo>=</mo><mn>1</mn></mrow><mi>n</mi></munderover>",
         "∑(i=1)^n"),
        ("<mfenced><mi>a</mi><mi>b</mi></mfenced>", "(a,b)"),
        ('<mfenced open="[" close="]" separators=";"><mi>a</mi><mi>b</mi></mfenced>', "[a;b]"),
        ('<mfenced separators=""><mi>a</mi><mn>1</mn></mfenced>', "(a1)"),
        ("<mtable><mtr><mtd><mi>a</mi></mtd><mtd><mi>b</mi></mtd></mtr>"
         "<mtr><mtd><mi>c</mi></mtd><mtd><mi>d</mi></mtd></mtr></mtable>", "a, b; c, d"),
        ("<mmultiscripts><mi>C</mi><mprescripts/><none/><mn>14</mn></mmultiscripts>", "14C"),
        ("<mi>x</mi><mtext> if </mtext><mi>y</mi>", "x if y"),
        ("<mi>x</mi><mspace/><mn>1</mn>", "x 1"),
        ("<semantics><mi>x</mi><annotation>TeX x</annotation></semantics>", "x"),
        ("<mstyle><mpadded><mi>q</mi></mpadded></mstyle>", "q"),
        ("<unknown>stray<mi>x</mi>tail</unknown>", "stray x tail"),
        ("<msup><mi>x</mi></msup>", "x"),  # a child is missing
        ("<msqrt>3</msqrt>", "3"),  # no token in it
    ],
)  # fmt: skip
def test_formulas(inner, expected):
    assert math(inner) == expected


AB = "<mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mfrac", ["", "a+b", "(a+b)/(a+b)", "a+b a+b a+b"]),
        ("mroot", ["", "a+b", "a+b√(a+b)", "a+b a+b a+b"]),
        ("msup", ["", "a+b", "a+b^(a+b)", "a+b a+b a+b"]),
        ("mover", ["", "a+b", "a+b^(a+b)", "a+b a+b a+b"]),
        ("msub", ["", "a+b", "a+b(a+b)", "a+b a+b a+b"]),
        ("munder", ["", "a+b", "a+b(a+b)", "a+b a+b a+b"]),
        ("msubsup", ["", "a+b", "a+b a+b", "a+b(a+b)^(a+b)"]),
        ("munderover", ["", "a+b", "a+b a+b", "a+b(a+b)^(a+b)"]),
    ],
)
def test_each_shape_has_its_number_of_children(name, expected):
    """One child too few or too many: the children in reading order."""
    for n, text in enumerate(expected):
        assert math(f"<{name}>{AB * n}</{name}>") == text


def test_a_formula_in_a_sentence():
    index = "<mml:math><mml:msub><mml:mi/><mml:mn>2</mml:mn></mml:msub></mml:math>"
    assert text_of(f"MoS{index} film") == "MoS2 film"
    assert text_of("the<mml:math><mml:mi>E</mml:mi></mml:math>and") == "the E and"
    assert text_of("<mml:math><mml:mi>p</mml:mi></mml:math>-values") == "p-values"
    assert text_of("x<sup><mml:math><mml:mn>2</mml:mn></mml:math></sup>") == "x2"
    assert text_of('a<math xmlns=""><mi>α</mi></math>.') == "a α."


def tree(leaves, tags):
    """Inner XML of text and nested tags."""
    return st.recursive(
        leaves,
        lambda inner: (
            st.builds(
                lambda tag, parts: f"<{tag}>{''.join(parts)}</{tag}>",
                st.sampled_from(tags),
                st.lists(inner, max_size=4),
            )
            | st.lists(inner, max_size=4).map("".join)
        ),
        max_leaves=12,
    )


def word_characters(text):
    return re.findall(r"\w", text)


@settings(derandomize=True, deadline=None)
@given(tree(st.text("a1é٣²β-−+ \n^.,", max_size=4), ["b", "i", "u", "sup", "sub"]))
def test_no_word_character_is_lost_or_made_up(inner):
    element = ElementTree.fromstring(f"<t>{inner}</t>")
    got, plain = readable(element), "".join(element.itertext())
    assert word_characters(got) == word_characters(plain)
    assert got == " ".join(got.split())
    # beside white space, ^ and space are all that may have come in
    added = len(re.sub(r"[\s^]", "", got)) - len(re.sub(r"[\s^]", "", plain))
    assert added == 0


@settings(derandomize=True, deadline=None)
@given(tree(st.text("a1 ", max_size=3), ["b", "sup", "sub"]))
def test_no_number_crosses_the_edge_of_a_script(inner):
    """Each run of digits of the text is in one stretch of the source, between two edges."""
    bare = re.sub(r"</?b>", "", inner)
    stretches = re.split(r"</?su[pb]>", bare)
    in_source = sorted(run for stretch in stretches for run in re.findall(r"\d+", stretch))
    got = readable(ElementTree.fromstring(f"<t>{inner}</t>"))
    assert sorted(re.findall(r"\d+", got)) == in_source


TOKENS = st.builds(
    lambda tag, text: f"<{tag}>{text}</{tag}>",
    st.sampled_from(["mi", "mn", "mo", "mtext"]),
    st.text("xβ12+=(", max_size=3),
)
MATH_TAGS = (
    "mrow msup msub msubsup mfrac msqrt mroot mover munder munderover mfenced mtable mtr mtd "
    "mstyle mmultiscripts mx"
).split()


@settings(derandomize=True, deadline=None)
@given(tree(TOKENS | st.text("y3 ", max_size=3), MATH_TAGS))
def test_formulas_lose_nothing(inner):
    """In any order: the index of a root comes before it."""
    inner = inner.replace("<mmultiscripts>", "<mmultiscripts><mi>b</mi><mprescripts/>")
    element = ElementTree.fromstring(f"<t><math>{inner}</math></t>")
    plain = "".join(element.itertext())
    assert sorted(word_characters(readable(element))) == sorted(word_characters(plain))


def test_a_million_empty_tags_take_linear_time():
    assert text_of("a" + "<sup/><i/>" * 50_000 + "b") == "ab"


def test_deep_formulas_take_linear_time():
    assert math("<mrow>a" * 150 + "</mrow>" * 150).split() == ["a"] * 150


def test_markup_nested_beyond_measure_is_refused():
    inner = "x"
    with pytest.raises(RecursionError):
        element = ElementTree.fromstring("<t>" + "<b>" * 5000 + inner + "</b>" * 5000 + "</t>")
        readable(element)
