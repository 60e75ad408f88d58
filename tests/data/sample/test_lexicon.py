"""The world behind the sample: its names, what binds them, and dice that are fair and fixed."""

from collections import Counter

from data.sample.lexicon import DRUG_CLASSES, GENE_KINDS, SITES, Dice, initials, world


def test_the_random_numbers_are_those_of_philox():
    """Pinned: the sample's bytes rest on them, on every machine and under every NumPy."""
    assert [Dice(7, 3).below(1000) for _ in range(2)] == [Dice(7, 3).below(1000)] * 2
    assert Dice(0, 0).below(10**6) != Dice(0, 1).below(10**6) != Dice(1, 0).below(10**6)
    dice = Dice(1, 2)
    assert [dice.below(100) for _ in range(8)] == [54, 7, 14, 52, 78, 45, 47, 1]


def test_dice_are_fair():
    dice = Dice(0, 5)
    counts = Counter(dice.below(6) for _ in range(60000))
    assert sorted(counts) == list(range(6))
    assert all(abs(n - 10000) < 400 for n in counts.values())  # 4 standard deviations
    low = sum(dice.skewed(100) < 10 for _ in range(10000))
    assert 3000 < low < 3600  # 0.1 - 0.1 ln 0.1 = 33 %
    assert sorted(dice.some(range(9), 9)) == list(range(9))
    assert {dice.between(3, 5) for _ in range(100)} == {3, 4, 5}


def test_names_are_many_and_distinct():
    w = world()
    for things, n in (
        (w.diseases, 3000), (w.genes, 1400), (w.drugs, 1000), (w.metabolites, 700),
        (w.species, 320), (w.habits, 500), (w.procedures, 300), (w.tools, 240), (w.cells, 200),
    ):  # fmt: skip
        names = [thing.name for thing in things]
        assert len(set(names)) == len(names) >= n
        assert all(name == " ".join(name.split()) and name.isascii() for name in names)
    assert len({gene.short for gene in w.genes}) == len(w.genes)
    names = [
        t.name for t in w.diseases + w.drugs + w.metabolites + w.species + w.habits + w.procedures
    ]
    assert len(set(names)) == len(names)  # no disease is a habit too


def test_sites_have_form_adjective_and_noun():
    assert len(SITES) == 42
    assert all(word == word.strip() and word for site in SITES for word in site)


def test_what_binds_things():
    w = world()
    assert world() is w
    for disease in w.diseases:
        assert len(disease.genes) == len(disease.drugs) == 3
        assert disease.kin and disease not in disease.kin
        assert disease.metabolites and disease.habits
    for drug in w.drugs:
        group, label, family = next(
            found for ending, found in DRUG_CLASSES.items() if drug.name.endswith(ending)
        )
        assert (drug.group, drug.label, drug.target.family) == (group, label, family)
    assert {gene.family for gene in w.genes} == set(GENE_KINDS)
    assert len({c.label for c in w.drugs + w.metabolites}) == 13


def test_initials():
    assert initials("familial renal fibrosis") == "FRF"
    assert initials("Marlow-Keane syndrome type 2") == "MKS2"
    assert initials("velmora") == initials("renal fibrosis") == ""
