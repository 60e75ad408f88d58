"""The figures of the paper: every one of its Tables 1 to 6, in per cent.

Entities (Tables 1 and 2): precision, recall and F1 by word pieces (F45), never to be set beside
scores by words without saying so. Relations (3 and 4): GAD binary, CHEMPROT macro-averaged. Answers
(5 and 6): strict accuracy, lenient accuracy and MRR on BioASQ 7b's 162 questions, cut to two digits
(F62). One run each; no intervals are given.
"""

from typing import NamedTuple

TEACHER = "BioBERT-v1.1"


class PaperTable(NamedTuple):
    """One table: for each task and metric a figure for each model."""

    models: tuple[str, ...]
    rows: dict[str, dict[str, tuple[float, ...]]]  # task -> metric -> one figure a model


# distilled from BioBERT (Tables 1, 3, 5); continued on PubMed, after what they began as (2, 4, 6)
DISTILLED = ("DistilBERT", "DistilBioBERT", "CompactBioBERT", "TinyBioBERT", "BioBERT-v1.1")
CONTINUED = ("DistilBERT", "TinyBERT", "MobileBERT", "BioDistilBERT", "BioTinyBERT",
             "BioMobileBERT")  # fmt: skip

TABLES = {
    1: PaperTable(DISTILLED, {
        "NCBI-disease": {
            "P": (85.02, 86.74, 86.91, 82.11, 87.23),
            "R": (87.78, 89.14, 90.50, 88.57, 90.07),
            "F": (86.38, 87.93, 88.67, 85.22, 88.62),
        },
        "BC5CDR-disease": {
            "P": (81.57, 84.34, 84.76, 79.91, 85.81),
            "R": (82.47, 86.54, 86.01, 82.71, 87.54),
            "F": (82.01, 85.42, 85.38, 81.28, 86.67),
        },
        "BC5CDR-chem": {
            "P": (92.11, 94.04, 94.03, 91.31, 94.47),
            "R": (92.90, 95.04, 94.60, 93.09, 95.00),
            "F": (92.50, 94.53, 94.31, 92.20, 94.73),
        },
        "BC4CHEMD": {
            "P": (90.91, 92.48, 91.97, 88.77, 92.77),
            "R": (88.19, 91.06, 90.83, 89.29, 91.51),
            "F": (89.53, 91.77, 91.40, 89.03, 92.14),
        },
        "BC2GM": {
            "P": (83.93, 86.11, 85.55, 80.49, 87.07),
            "R": (85.29, 87.10, 87.90, 84.65, 88.17),
            "F": (84.61, 86.60, 86.71, 82.52, 87.62),
        },
        "JNLPBA": {
            "P": (73.37, 74.36, 73.84, 72.58, 74.81),
            "R": (85.90, 86.49, 86.98, 86.07, 86.72),
            "F": (79.14, 79.97, 79.88, 78.75, 80.33),
        },
        "LINNAEUS": {
            "P": (83.42, 86.32, 85.22, 78.08, 87.61),
            "R": (78.21, 80.45, 80.70, 78.51, 80.60),
            "F": (80.73, 83.29, 82.90, 78.29, 83.96),
        },
        "Species-800": {
            "P": (73.61, 75.76, 76.21, 67.89, 76.74),
            "R": (70.51, 73.70, 75.19, 71.36, 79.03),
            "F": (72.03, 74.72, 75.70, 69.59, 77.87),
        },
    }),
    2: PaperTable(CONTINUED, {
        "NCBI-disease": {
            "P": (85.02, 79.59, 84.29, 86.93, 80.41, 86.36),
            "R": (87.78, 81.36, 88.07, 88.31, 85.66, 88.07),
            "F": (86.38, 80.46, 86.14, 87.61, 82.95, 87.21),
        },
        "BC5CDR-disease": {
            "P": (81.57, 76.12, 80.52, 84.59, 78.69, 84.03),
            "R": (82.47, 78.83, 83.51, 86.66, 83.79, 85.23),
            "F": (82.01, 77.45, 81.99, 85.61, 81.16, 84.62),
        },
        "BC5CDR-chem": {
            "P": (92.11, 90.19, 92.45, 94.70, 89.90, 93.88),
            "R": (92.90, 86.87, 91.95, 94.25, 91.83, 94.58),
            "F": (92.50, 88.50, 92.20, 94.48, 90.85, 94.23),
        },
        "BC4CHEMD": {
            "P": (90.91, 85.84, 90.65, 92.18, 88.17, 92.29),
            "R": (88.19, 81.79, 88.58, 91.00, 86.59, 90.36),
            "F": (89.53, 83.76, 89.60, 91.59, 87.37, 91.31),
        },
        "BC2GM": {
            "P": (83.93, 76.43, 82.62, 86.28, 78.86, 84.44),
            "R": (85.29, 77.43, 83.09, 87.68, 82.36, 86.10),
            "F": (84.61, 76.93, 82.86, 86.97, 80.57, 85.26),
        },
        "JNLPBA": {
            "P": (73.37, 71.04, 73.18, 73.56, 71.74, 74.81),
            "R": (85.90, 83.55, 85.54, 85.54, 85.14, 86.28),
            "F": (79.14, 76.79, 78.88, 79.10, 77.87, 80.13),
        },
        "LINNAEUS": {
            "P": (83.42, 77.16, 74.72, 85.69, 78.88, 81.63),
            "R": (78.21, 67.38, 82.75, 79.66, 74.10, 82.03),
            "F": (80.73, 71.94, 78.53, 82.56, 76.42, 81.83),
        },
        "Species-800": {
            "P": (73.61, 66.62, 71.76, 74.39, 67.80, 74.33),
            "R": (70.51, 66.04, 77.59, 74.98, 73.82, 76.14),
            "F": (72.03, 66.33, 74.56, 74.68, 70.68, 75.22),
        },
    }),
    3: PaperTable(DISTILLED, {
        "GAD": {
            "P": (77.60, 78.76, 80.18, 77.20, 79.82),
            "R": (88.15, 93.03, 91.63, 88.50, 95.12),
            "F": (82.54, 85.30, 85.52, 82.46, 86.80),
        },
        "CHEMPROT": {
            "P": (47.41, 49.90, 52.74, 31.02, 52.00),
            "R": (47.89, 50.30, 52.93, 33.61, 53.03),
            "F": (47.52, 49.79, 52.46, 30.33, 52.32),
        },
    }),
    4: PaperTable(CONTINUED, {
        "GAD": {
            "P": (77.60, 71.42, 76.31, 81.36, 74.22, 78.50),
            "R": (88.15, 80.13, 90.94, 91.28, 83.27, 91.63),
            "F": (82.54, 75.53, 82.98, 86.04, 78.48, 84.56),
        },
        "CHEMPROT": {
            "P": (47.41, 28.50, 47.61, 51.56, 31.33, 50.77),
            "R": (47.89, 27.53, 48.67, 51.84, 29.56, 51.60),
            "F": (47.52, 23.18, 47.92, 51.48, 25.54, 51.03),
        },
    }),
    5: PaperTable(DISTILLED, {
        "BioASQ 7b": {
            "S": (20.98, 20.98, 22.83, 20.98, 24.07),
            "L": (29.62, 28.39, 29.01, 30.86, 34.56),
            "M": (24.34, 23.79, 25.06, 25.05, 28.41),
        },
    }),
    6: PaperTable(CONTINUED, {
        "BioASQ 7b": {
            "S": (20.98, 21.60, 27.77, 25.92, 20.37, 29.01),
            "L": (29.62, 29.62, 40.74, 38.88, 32.09, 38.88),
            "M": (24.34, 24.62, 32.78, 30.83, 25.20, 32.90),
        },
    }),
}  # fmt: skip

NER = tuple(TABLES[1].rows)
RELATION = tuple(TABLES[3].rows)
QA = tuple(TABLES[5].rows)


def figure(model: str, task: str, metric: str) -> float | None:
    """The paper's figure, or None where it has none: figure("TinyBioBERT", "GAD", "F")."""
    for table in TABLES.values():
        if model in table.models and metric in table.rows.get(task, {}):
            return table.rows[task][metric][table.models.index(model)]
    return None


def retained(model: str, tasks: tuple[str, ...], metric: str) -> float:
    """Mean over the tasks of the model's share of the teacher's figure: 1 = as good as BioBERT.

    Raises:
        ValueError: the paper has no such figure.
    """
    shares = []
    for task in tasks:
        pair = figure(model, task, metric), figure(TEACHER, task, metric)
        if None in pair:
            raise ValueError(f"retained: no {metric} of {model!r} on {task!r} in the paper")
        shares.append(pair[0] / pair[1])
    return sum(shares) / len(shares)
