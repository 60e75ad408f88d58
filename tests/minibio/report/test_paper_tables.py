"""The paper's figures: whole, and as consistent as the paper's own (F55-F57, F62, F64, F65)."""

import math

import pytest

from minibio.report import paper_tables as paper
from minibio.report.paper_tables import TABLES, figure, retained

SIX = ("DistilBioBERT", "CompactBioBERT", "TinyBioBERT", "BioDistilBERT", "BioTinyBERT",
       "BioMobileBERT")  # fmt: skip


def test_every_table_is_whole():
    assert list(TABLES) == [1, 2, 3, 4, 5, 6]
    assert [len(table.rows) for table in TABLES.values()] == [8, 8, 2, 2, 1, 1]
    for number, table in TABLES.items():
        for rows in table.rows.values():
            assert "".join(rows) == ("SLM" if number > 4 else "PRF")
            for values in rows.values():
                assert len(values) == len(table.models)
                assert all(0 < x < 100 and round(x, 2) == x for x in values)
    n = sum(len(v) for t in TABLES.values() for rows in t.rows.values() for v in rows.values())
    assert n == 24 * 5 + 24 * 6 + 6 * 5 + 6 * 6 + 3 * 5 + 3 * 6


# of each column, added up from the paper's text by itself: a slip of two digits would show
SUMS = {
    1: (2002.12, 2053.90, 2056.15, 1972.27, 2077.09),
    2: (2002.12, 1868.40, 1996.03, 2049.00, 1945.61, 2040.37),
    3: (391.11, 407.08, 415.46, 343.12, 419.09),
    4: (391.11, 306.29, 394.43, 413.56, 322.40, 408.09),
    5: (74.94, 73.16, 76.90, 76.89, 87.04),
    6: (74.94, 75.84, 101.29, 95.63, 77.66, 100.79),
}


@pytest.mark.parametrize("number", SUMS)
def test_columns_add_up(number):
    values = [v for rows in TABLES[number].rows.values() for v in rows.values()]
    sums = [round(sum(column), 2) for column in zip(*values, strict=True)]
    assert sums == list(SUMS[number])


def test_both_tables_of_a_task_print_one_distilbert():
    for number in (1, 3, 5):
        a, b = TABLES[number], TABLES[number + 1]
        assert a.rows.keys() == b.rows.keys() and a.models[0] == b.models[0] == "DistilBERT"
        for task, rows in a.rows.items():
            for metric, values in rows.items():
                assert values[0] == b.rows[task][metric][0], (number, task, metric)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_f_is_the_harmonic_mean_but_for_chemprot(number):
    for task, rows in TABLES[number].rows.items():
        for p, r, f in zip(rows["P"], rows["R"], rows["F"], strict=True):
            near = abs(f - 2 * p * r / (p + r)) < 0.0151
            assert near == (task != "CHEMPROT"), (task, p, r, f)


@pytest.mark.parametrize("number", [5, 6])
def test_answers_are_of_162_questions_and_cut(number):
    for metric in "SL":
        for x in TABLES[number].rows["BioASQ 7b"][metric]:
            assert any(math.floor(10000 * k / 162) / 100 == x for k in range(163)), x
    rows = TABLES[number].rows["BioASQ 7b"]
    for s, m, lenient in zip(rows["S"], rows["M"], rows["L"], strict=True):
        assert s < m < lenient


def test_single_figures():
    assert figure("TinyBioBERT", "GAD", "F") == 82.46
    assert figure("BioMobileBERT", "BioASQ 7b", "M") == 32.90
    assert figure("BioBERT-v1.1", "Species-800", "R") == 79.03
    assert figure("BioTinyBERT", "CHEMPROT", "P") == 31.33
    assert figure("BioBERT", "GAD", "F") is None
    assert figure("TinyBioBERT", "GAD", "M") is None


# the abstract's 98.8, 98.6 and 98.2 %, and those it does not give
NER = dict(zip(SIX, (98.84, 98.96, 94.8, 98.59, 93.6, 98.22), strict=True))
RELATION = dict(zip(SIX, (96.7, 99.4, 76.5, 98.8, 69.6, 97.5), strict=True))
MRR = dict(zip(SIX, (83.7, 88.2, 88.2, 108.5, 88.7, 115.8), strict=True))


@pytest.mark.parametrize("model", SIX)
def test_what_is_retained_of_the_teacher(model):
    for tasks, metric, want in ((paper.NER, "F", NER), (paper.RELATION, "F", RELATION),
                                (paper.QA, "M", MRR)):  # fmt: skip
        got = 100 * retained(model, tasks, metric)
        digits = 2 if str(want[model])[-3] == "." else 1
        assert round(got, digits) == want[model]


def test_the_teacher_retains_itself():
    assert retained(paper.TEACHER, paper.NER, "F") == 1.0
    with pytest.raises(ValueError, match="no F of 'BERT' on 'GAD'"):
        retained("BERT", ("GAD",), "F")
