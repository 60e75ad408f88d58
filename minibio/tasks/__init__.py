"""The paper's tasks: read the data's format, make features, decode answers.

Read in this order:

    lines          files by the line; JSON that knows its lines
    tags           IOB1, IOB2, IOBES
    pieces         text as the model reads it, and where each piece stood
    forward        a trained model over many examples
    ner            named entities
    relation       GAD and CHEMPROT
    qa             BioASQ's questions
    paper_tables   what the paper reports

`eval.py` fine-tunes and scores; what the scores mean is in `minibio/tasks/metrics.py`.
"""
