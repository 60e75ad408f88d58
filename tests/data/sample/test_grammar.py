"""Documents: their English, their annotations, and that only seed and position make them."""

import re

import pytest

from data.sample.grammar import KINDS, article, document, documents, parse

DOCUMENTS = list(documents(seed=3, n=600))
TEXTS = [text for doc in DOCUMENTS for text in (doc.title.text, doc.abstract)]


def test_a_frame_is_parsed():
    assert parse("{a} [big|] {cell} [x [y|z]|w].") == (
        "a", (("big",), ()), " ", "cell", " ", (("x ", (("y",), ("z",))), ("w",)), ".",
    )  # fmt: skip


@pytest.mark.parametrize("text", ["[a|b", "a]", "a|b", "[a}", "[{a b}]"])
def test_an_unbalanced_frame_is_refused(text):
    with pytest.raises(ValueError, match="unbalanced"):
        parse(text)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("velmora", "a"), ("ovarian cyst", "an"), ("HPLC column", "an"), ("CT scan", "a"),
     ("8-fold", "an"), ("18-year-old", "an"), ("11-week", "an"), ("81%", "an"), ("110", "a"),
     ("unique", "a"), ("uterine", "a"), ("underlying", "an"), ("X-linked", "an"), ("URT2", "a"),
     ("Egyptian", "an"), ("open-label", "an"), ("5-methylvelmol", "a"), ("eutrophic", "a"),
     ("MRS2", "an"), ("BRD4", "a"), ("one-eyed", "a")],
)  # fmt: skip
def test_articles(word, expected):
    assert article(word) == expected


def test_articles_agree_in_the_text():
    pairs = [pair for text in TEXTS for pair in re.findall(r"\b([Aa]n?) ([\w-]+)", text)]
    assert len(pairs) > 500
    pairs = [pair for pair in pairs if pair[1] not in ("allele", "genotype")]  # the A allele
    wrong = [pair for pair in pairs if pair[0].lower() != article(pair[1])]
    assert not wrong


def test_the_text_is_tidy():
    for text in TEXTS:
        assert text.isascii() and not re.search(r"[{}\[\]|]|  | [.,;:)?]|\( |\.\.|->", text), text
        assert text[0].isupper() or text[0].isdigit(), text
        assert text[-1] in ".?", text


def test_every_sentence_opens_with_a_capital():
    for doc in DOCUMENTS:
        for sentence in doc.sentences:
            text = sentence.text.split(": ")[-1] if sentence.text[:3].isupper() else sentence.text
            assert not text[0].islower(), text


def test_abstracts_have_60_to_170_words_and_no_sentence_twice():
    lengths = sorted(len(doc.abstract.split()) for doc in DOCUMENTS)
    assert lengths[0] >= 60 and lengths[-1] <= 170
    assert 65 < lengths[len(lengths) // 2] < 110
    for doc in DOCUMENTS:
        assert len({s.text for s in doc.sentences}) == len(doc.sentences)


def test_mentions_are_where_they_say():
    n = 0
    for doc in DOCUMENTS:
        for text, mentions in (
            (doc.title.text, doc.title.mentions), (doc.abstract, doc.abstract_mentions),
        ):  # fmt: skip
            for before, mention in zip([None, *mentions], mentions, strict=False):
                surface, thing = text[mention.start : mention.end], mention.thing
                names = {thing.name, thing.short}
                assert surface in names | {name[:1].upper() + name[1:] for name in names}
                assert thing.kind in ("disease", "chemical", "gene", "species")
                assert before is None or before.end <= mention.start
                n += 1
    assert n > 10 * len(DOCUMENTS)


def test_a_short_name_is_introduced_before_it_is_used():
    for doc in DOCUMENTS:
        for mention in doc.abstract_mentions:
            thing, surface = mention.thing, doc.abstract[mention.start : mention.end]
            if thing.kind == "disease" and surface == thing.short:
                first = doc.abstract.index(f"({surface})")
                assert first <= mention.start


def test_documents_are_coherent():
    """The title's disease comes back in most abstracts, and all kinds of article occur."""
    titled = [doc for doc in DOCUMENTS if any(m.slot == "disease" for m in doc.title.mentions)]
    recurs = [any(m.slot == "disease" for m in doc.abstract_mentions) for doc in titled]
    assert sum(recurs) > 0.95 * len(titled) > 0.4 * len(DOCUMENTS)
    assert {doc.kind for doc in DOCUMENTS} == set(KINDS)


def test_a_document_follows_from_seed_stream_and_position():
    def text(*where):
        return document(*where).abstract

    assert text(3, 0, 17) == DOCUMENTS[17].abstract == text(3, 0, 17)
    assert len({text(3, 0, 17), text(4, 0, 17), text(3, 1, 17), text(3, 0, 18)}) == 4


@pytest.mark.parametrize(
    ("tag", "kind"),
    [("gene", "model"), ("treats", "case"), ("causes", "infection"), ("marks", "epidemiology"),
     ("target", "pharmacology"), ("no-gene", "genetics")],
)  # fmt: skip
def test_a_document_states_what_it_is_asked_to(tag, kind):
    for position in range(20):
        doc = document(0, 9, position, kind, tag=tag)
        assert any(sentence.tag == tag for sentence in doc.sentences)
