"""The paper's tasks, one file each: read the data's format, make features, decode answers.

`eval.py` fine-tunes and scores; what the scores mean is in `minibio/metrics.py`.
"""
