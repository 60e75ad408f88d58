"""The text of a PubMed element: markup unwrapped, formulas on one line, white space evened out.

The tags of `<b> <i> <u> <sup> <sub> <DispFormula>` go, every character between them stays, and
nothing comes in but what keeps numbers apart. The rules:

- Every run of white space, Unicode's included, is one space; none at either end. No character is
  replaced by another: the Unicode form is the source's.
- Where the edge of a `<sup>` or `<sub>` would join two digits into another number, one character
  goes between: `^` on the way into a superscript, a space elsewhere. So 10<sup>5</sup> is 10^5 and
  never 105, 10<sup>-5</sup> is 10^-5, and log<sub>10</sub>2 is log10 2; Ca<sup>2+</sup> stays Ca2+.
- MathML is written as one would type it: x^2, (a+b)/c, √x, [a, b; c, d]. Two letters, or two
  digits, of neighbouring tokens are kept apart by a space. Annotations, a second writing of the
  same formula, and the invisible operators U+2061 to U+2064 are left out.

`_` is never added: regular expressions take it for a letter.
"""

import re
from enum import Enum
from xml.etree.ElementTree import Element

NUMBER = re.compile(r"[-+\u2212\u2010\u2011\u2013]?\d")  # what an exponent begins with
SIMPLE = re.compile(r"[-+\u2212]?[\w.]*[-+\u2212*\u2032']?|\W|\([^()]*\)|\[[^\[\]]*\]")
INVISIBLE = dict.fromkeys(range(0x2061, 0x2065))  # function application, times, comma, plus
ANNOTATIONS = ("annotation", "annotation-xml")


class Edge(Enum):
    """A place between two stretches of text where markup began or ended."""

    INTO_SUP = 1
    SCRIPT = 2  # into a subscript, or out of either
    MATH = 3


def readable(element: Element) -> str:
    """The text of an element and all within it, on one line.

    Raises:
        RecursionError: markup nested some hundred levels deep.
    """
    if not len(element):
        return even(element.text or "")
    parts = []
    unwrap(element, parts)
    return even(join(parts))


def even(text: str) -> str:
    """`text` with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def without_brackets(title: str) -> str:
    """A title without the brackets around the whole of it, PubMed's sign of a translated one.

    `[Zinc in rats].` is `Zinc in rats.`; `[18F]FDG in mice.` is left as it is.
    """
    if not title.startswith("["):
        return title
    depth = 0
    for i, c in enumerate(title):
        depth += (c == "[") - (c == "]")
        if depth == 0:
            inner, rest = title[1:i].strip(), title[i + 1 :].strip()
            return inner + rest if rest in ("", ".") else title
    return title


def unwrap(element: Element, parts: list[str | Edge]) -> None:
    """Append the stretches of text of an element, and the edges between them, to `parts`."""
    parts.append(element.text or "")
    for child in element:
        name = local_name(child)
        if name == "math":
            parts += (Edge.MATH, formula(child), Edge.MATH)
        elif name in ("sup", "sub"):
            parts.append(Edge.INTO_SUP if name == "sup" else Edge.SCRIPT)
            unwrap(child, parts)
            parts.append(Edge.SCRIPT)
        else:
            unwrap(child, parts)
        parts.append(child.tail or "")


def join(parts: list[str | Edge]) -> str:
    """Stretches of text as one, kept apart at edges where they would make another number or word.

    One pass over the parts, so that a million empty tags take no longer than as much text.
    """
    out, last, edge = [], "", None
    for part in parts:
        if isinstance(part, Edge):
            edge = part
        elif part:
            out.append(between(last, part, edge))
            out.append(part)
            last, edge = part[-1], None
    return "".join(out)


def between(last: str, part: str, edge: Edge | None) -> str:
    """The character between `last` and the text `part` that follows it, or none."""
    if edge is Edge.INTO_SUP and last.isdecimal() and NUMBER.match(part):
        return "^"
    if edge and last.isdecimal() and part[0].isdecimal():
        return " "
    if edge is Edge.MATH and last.isalpha() and part[0].isalpha():
        return " "
    return ""


# ---- MathML ----


def formula(element: Element) -> str:
    """A MathML element as one would type it; unknown ones in reading order."""
    name = local_name(element)
    parts = ["" if local_name(child) in ANNOTATIONS else formula(child) for child in element]
    texts = [text or "" for text in (element.text, *(child.tail for child in element))]
    if name != "mtext":  # white space between tags means something in mtext only
        texts = [even(text).translate(INVISIBLE) for text in texts]
    if any(texts):  # a token; or text where none should be, which is not lost either
        return row([item for pair in zip(texts, [*parts, ""], strict=True) for item in pair])
    if len(parts) in SHAPES.get(name, {}):
        return SHAPES[name][len(parts)](*parts)
    if name == "mspace":
        return " "
    if name == "msqrt":
        return "√" + group(row(parts))
    if name == "mfenced":
        return fenced(element, parts)
    if name in ("mtr", "mlabeledtr"):
        return ", ".join(parts)
    if name == "mtable":
        return "; ".join(parts)
    if name == "mmultiscripts":
        return multiscripts(element, parts)
    return row(parts)


def row(parts: list[str]) -> str:
    """Tokens side by side; a space where two letters or two digits would meet."""
    return join([item for part in parts for item in (Edge.MATH, part)])


def group(text: str) -> str:
    """`text` in parentheses, unless it is short enough to be taken as one."""
    return text if SIMPLE.fullmatch(text) else f"({text})"


def raised(base: str, exponent: str) -> str:
    return f"{base}^{group(exponent)}" if exponent.strip() else base


def over(base: str, mark: str) -> str:
    """A mark above: an accent follows its letter; one with a letter or digit is raised."""
    return raised(base, mark) if any(map(str.isalnum, mark)) else base + mark


SHAPES = {  # element -> number of children -> how they are written
    "mfrac": {2: lambda a, b: f"{group(a)}/{group(b)}"},
    "mroot": {2: lambda x, n: row([n, f"√{group(x)}"])},
    "msup": {2: raised},
    "mover": {2: over},
    "msub": {2: lambda x, i: row([x, group(i)])},
    "munder": {2: lambda x, i: row([x, group(i)])},
    "msubsup": {3: lambda x, i, n: raised(row([x, group(i)]), n)},
    "munderover": {3: lambda x, i, n: over(row([x, group(i)]), n)},
}


def fenced(element: Element, parts: list[str]) -> str:
    """`mfenced`: its parentheses and commas are attributes."""
    marks = even(element.get("separators", ",")).replace(" ", "")
    inner = parts[:1]
    for i, part in enumerate(parts[1:]):
        inner += (marks[min(i, len(marks) - 1)] if marks else "", part)
    return element.get("open", "(") + row(inner) + element.get("close", ")")


def multiscripts(element: Element, parts: list[str]) -> str:
    """`mmultiscripts`: scripts before the base come before it, as in 14C."""
    names = [local_name(child) for child in element]
    if "mprescripts" not in names:
        return row(parts)
    i = names.index("mprescripts")
    return row(parts[i + 1 :] + parts[:i])


def local_name(element: Element) -> str:
    """The tag without its prefix: expat ignores namespaces here, and PubMed declares only one."""
    return element.tag.rpartition(":")[2]
