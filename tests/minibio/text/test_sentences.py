"""Sentences, written out by hand; real ones, where the data is there."""

import pytest

from helpers import real_data
from minibio.text.sentences import spans, split

TEXTS = [  # sentences, apart by spaces
    ("It fails.", "Then it works!", "Does it?", "5-FU did.", "(So it was.)", "The end"),
    ("BACKGROUND: We saw E. Coli and S. Aureus (cf. Fig. 2, Smith et al. 1999).", "No more."),
    ("Cells of P. falciparum vs. Controls, e.g. Those of Dr. White, approx. 5.5 mg.",),
    ('He said "no."', "“Yes!”", "‘It’ ended.", "α-Synuclein did."),
    ("p53 is. it?", "TNF-α."),
    ("BRCA1 is a gene .", "The S . Typhimurium strain ( P = . 05 ) , 12 . 5 mg ."),
]


@pytest.mark.parametrize("sentences", TEXTS)
@pytest.mark.parametrize("space", [" ", "\n", " \r\n\t ", "\u2003"])
def test_sentences_end_where_they_should(sentences, space):
    assert split(space.join(sentences)) == list(sentences)


def test_an_empty_line_ends_one_and_white_space_belongs_to_none():
    text = " \n Title without a stop \n \t\nbody. \U0001d53e goes on.\u00a0\n\n\n"
    assert split(text) == ["Title without a stop", "body. \U0001d53e goes on."]
    assert [text[a:b] for a, b in spans(text)] == split(text)
    assert split("") == split(" \n\n ") == []


def test_long_runs_take_linear_time():
    for part in (". ", "\n", " ", "\n ", ".", "A. "):
        assert len(spans(part * 300_000)) <= 1


def test_real_sentences_are_found_again():
    """Joined by spaces: the set's own end at titles without a stop, too, and within "12 . 5"."""
    rows = real_data("ner/NCBI-disease/test.tsv").read_text("utf-8").strip().split("\n\n")
    given = [" ".join(line.split("\t")[0] for line in row.split("\n")) for row in rows]
    text, ends = "", set()
    for sentence in given:
        text += sentence + " "
        ends.add(len(text) - 1)
    found = {end for _, end in spans(text)}
    assert len(found & ends) / len(ends) > 0.92 and len(found - ends) / len(found) < 0.01
