"""Every scheme reads back what it wrote; seqeval agrees on tags that keep no scheme at all."""

import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibio.run.errors import InputError
from minibio.tasks import tags
from minibio.tasks.tags import Entity

WORDS = 6  # Down syndrome and breast cancer carcinoma
DISEASES = [Entity("D", 0, 1), Entity("D", 3, 4), Entity("D", 5, 5)]
WRITTEN = {
    "IOB2": ["B-D", "I-D", "O", "B-D", "I-D", "B-D"],
    "IOB1": ["I-D", "I-D", "O", "I-D", "I-D", "B-D"],
    "IOBES": ["B-D", "E-D", "O", "B-D", "E-D", "S-D"],
}


def untyped(names):
    return [tag.removesuffix("-D") for tag in names]


@pytest.mark.parametrize("scheme", tags.SCHEMES)
def test_one_sentence_in_each_scheme(scheme):
    assert tags.write(DISEASES, WORDS, scheme) == WRITTEN[scheme]
    assert tags.entities(WRITTEN[scheme]) == DISEASES
    nameless = [entity._replace(kind="") for entity in DISEASES]
    assert tags.write(nameless, WORDS, scheme) == untyped(WRITTEN[scheme])
    assert tags.entities(untyped(WRITTEN[scheme])) == nameless


@st.composite
def marked_sentences(draw):
    """Entities in order, none within another, and the length of their sentence."""
    found, n = [], 0
    for _ in range(draw(st.integers(0, 6))):
        first = n + draw(st.integers(0, 2))
        n = first + draw(st.integers(1, 3))
        found.append(Entity(draw(st.sampled_from(["", "a", "b", "b-c"])), first, n - 1))
    return found, n + draw(st.integers(0, 2))


@settings(derandomize=True, deadline=None)
@given(marked_sentences(), st.sampled_from(tags.SCHEMES))
def test_what_is_written_is_read_back(marked, scheme):
    found, n = marked
    written = tags.write(found, n, scheme)
    assert len(written) == n
    assert tags.entities(written) == found
    assert tags.fault(written, scheme) is None


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from("O B-a I-a E-a S-a B-b I-b E-b S-b".split()), max_size=9),
       st.sampled_from(tags.SCHEMES))  # fmt: skip
def test_another_scheme_keeps_the_entities(names, scheme):
    written = tags.write(tags.entities(names), len(names), scheme)
    assert tags.entities(written) == tags.entities(names)
    assert (tags.fault(names, scheme) is None) == (written == names)


ODD = {
    "I without B": (["O", "I-a", "I-a"], [Entity("a", 1, 2)]),
    "I of another type": (["B-a", "I-b"], [Entity("a", 0, 0), Entity("b", 1, 1)]),
    "E alone": (["E-a", "E-a"], [Entity("a", 0, 0), Entity("a", 1, 1)]),
    "I after S": (["S-a", "I-a"], [Entity("a", 0, 0), Entity("a", 1, 1)]),
    "B unclosed": (["B-a", "O"], [Entity("a", 0, 0)]),
    "at the end": (["O", "B-a"], [Entity("a", 1, 1)]),
    "types with hyphens": (["B-a-b", "I-a-b", "I-a"], [Entity("a-b", 0, 1), Entity("a", 2, 2)]),
    "nothing": ([], []),
}


@pytest.mark.parametrize("name", ODD)
def test_tags_that_break_the_rules(name):
    names, want = ODD[name]
    assert tags.entities(names) == want


@pytest.mark.parametrize(
    ("names", "scheme", "want"),
    [
        (["O", "I-a"], "IOB2", (1, "B-a")),
        (["O", "B-a"], "IOB1", (1, "I-a")),
        (["I", "I", "B", "I"], "IOB1", None),
        (["B-a", "O"], "IOBES", (0, "S-a")),
        (["B-a", "I-a", "O"], "IOBES", (1, "E-a")),
        (["O", "S-a"], "IOB2", (1, "B-a")),
    ],
)
def test_the_first_tag_that_breaks_a_scheme(names, scheme, want):
    assert tags.fault(names, scheme) == want


@pytest.mark.parametrize("scheme", tags.SCHEMES)
def test_schemes_are_told_apart(scheme):
    assert tags.detect([WRITTEN[scheme]]) == (scheme, 0)
    assert tags.detect([["O"], untyped(WRITTEN[scheme]), ["O", "O"]]) == (scheme, 0)
    wrong = {"IOB2": ["O", "I-D"], "IOB1": ["O", "B-D"], "IOBES": ["O", "I-D"]}[scheme]
    assert tags.detect([WRITTEN[scheme]] * 3 + [wrong]) == (scheme, 1)


def test_nothing_tagged_is_iob2():
    assert tags.detect([["O", "O"]]) == tags.detect([]) == ("IOB2", 0)


def random_tags(rng, letters, n):
    kinds = ["a", "b", "b-c"]
    names = ["O"] + [f"{letter}-{kind}" for letter in letters for kind in kinds]
    return [rng.choices(names, k=rng.randint(1, 10)) for _ in range(n)]


def test_equal_to_seqeval_on_tags_of_any_kind():
    from seqeval.metrics.sequence_labeling import get_entities

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for names in random_tags(random.Random(0), "BIES", 4000):
            assert tags.entities(names) == [Entity(*entity) for entity in get_entities(names)]


# the labels of any tagger


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("O B-D I-D", "O B-D I-D"),
        ("O B I", "O B I"),
        ("o b-D i-D", "O B-D I-D"),
        ("0 B-D I-D", "O B-D I-D"),
        ("[PAD] B I O X [CLS] [SEP]", "O B I O O O O"),
        ("<pad> <s> </s> O B-D I-D", "O O O O B-D I-D"),
        ("O B_cell-type I_cell-type", "O B-cell-type I-cell-type"),
        ("O D-B D-I", "O B-D I-D"),
        ("O cell_line_B cell_line_I", "O B-cell_line I-cell_line"),
        ("O B-cell_line I-cell_line", "O B-cell_line I-cell_line"),
        ("O B-D I-D L-D U-D", "O B-D I-D E-D S-D"),
        ("O B-D M-D E-D S-D", "O B-D I-D E-D S-D"),
        ("O B-D M-D E-D W-D", "O B-D I-D E-D S-D"),
        ("B M E S O", "B I E S O"),
        ("O Disease cell_line", "O I-Disease I-cell_line"),
        ("O B-Cell Type I-Cell Type".replace("Cell Type", "Cell\u00a0Type"),
         "O B-Cell\u00a0Type I-Cell\u00a0Type"),
    ],
)  # fmt: skip
def test_labels_of_other_taggers(labels, want):
    assert tags.of_labels(labels.split(" "), "config.json") == want.split(" ")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("LABEL_0 LABEL_1 LABEL_2", "are not tags; name them in id2label"),
        ("O LABEL_1", "are not tags"),
        ("0 1 2", "are not tags"),
        ("O X", "every label is outside"),
        ("B-D I-D", "no label is outside"),
        ("Disease Gene", "no label is outside"),
        ("O B-D I-D Gene", "more than one form"),
        ("O B-D I_D", "more than one form"),
        ("O B-D I", "more than one form"),
        ("O B-cell T-cell", "more than one form"),
        ("O B-D I-D L-D W-D", "no known scheme"),
        ("O E-D S-D", "no known scheme"),
    ],
)
def test_labels_that_are_no_tags(labels, message):
    with pytest.raises(InputError, match=f"config.json: the labels are .*{message}"):
        tags.of_labels(labels.split(), "config.json")


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("O B-D I-D", "O B-D I-D"), ("O D-B D-I", "O B-D I-D"), ("O B I", "O B I"),
        ("O D G", "O I-D I-G"), ("O B-D I-D B-G I-G", "O B-D I-D B-G I-G"),
    ],
)  # fmt: skip
def test_entities_of_labels_are_those_of_seqeval_and_transformers(labels, want):
    """Both on random sequences of labels: suffixes by seqeval, plain types by transformers."""
    from seqeval.metrics.sequence_labeling import get_entities
    from transformers.pipelines.token_classification import TokenClassificationPipeline as Pipeline

    labels, want = labels.split(), want.split()
    meaning = dict(zip(labels, tags.of_labels(labels, ""), strict=True))
    assert list(meaning.values()) == want
    rng = random.Random(0)
    for _ in range(200):
        row = rng.choices(labels, k=9)
        found = tags.entities([meaning[label] for label in row])
        if "G" in labels:  # transformers' rule: a label without a prefix is inside
            theirs = ["O" if x == "O" else "-".join(Pipeline.get_tag(None, x)) for x in row]
            expected = get_entities(theirs)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = get_entities(row, suffix="D-B" in labels)
        assert [(kind or "_", a, b) for kind, a, b in found] == expected


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("O U-D", ("O S-D", "BILOU")),
        ("U-D L-D", ("S-D E-D", "BILOU")),
        ("o b-D l-D", ("O B-D E-D", "BILOU")),
        ("O D_B D_M D_W", ("O B-D I-D S-D", "BMEWO")),
        ("O M E", ("O I E", "BMES")),
        ("O D-B D-I", ("O B-D I-D", "BIO")),
        ("O B-D I-D E-D S-D", ("O B-D I-D E-D S-D", "IOBES")),
        ("O Disease", None), ("O X B", None), ("O LABEL_1", None), ("O B-D U-D M-D", None),
        ("O B-D I", None), ("O B-D I_D", None), ("O B-", None), ("NN DT", None),
    ],
)  # fmt: skip
def test_labels_of_a_file(labels, want):
    meaning = tags.of_file(labels.split())
    if want is None:
        assert meaning is None
    else:
        assert [meaning[0][label] for label in labels.split()] == want[0].split()
        assert meaning[1] == want[1]


def test_bilou_labels_are_read_as_seqeval_reads_them():
    from seqeval.scheme import BILOU, Entities

    labels = ["O", "B-D", "I-D", "L-D", "U-D", "B-G", "I-G", "L-G", "U-G"]
    meaning = dict(zip(labels, tags.of_labels(labels, ""), strict=True))
    rng = random.Random(0)
    for _ in range(200):
        row = []  # a valid sequence
        while len(row) < 12:
            kind, n = rng.choice("DG"), rng.randint(0, 3)
            middle = [f"I-{kind}"] * (n - 2)
            row += [["O"], [f"U-{kind}"]][n] if n < 2 else [f"B-{kind}", *middle, f"L-{kind}"]
        (theirs,) = Entities([row], BILOU).entities
        want = [(e.tag, e.start, e.end - 1) for e in theirs]
        assert [tuple(e) for e in tags.entities([meaning[label] for label in row])] == want
