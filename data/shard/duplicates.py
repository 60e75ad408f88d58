"""Records that come twice: other versions of an id, and equal texts.

- Versions: of the records with one id the highest version is kept, the last of equal ones, so that
  an update replaces the baseline that is named before it.
- Equal: texts that differ in case and white space only. The first is kept.

Both are one sort in memory of a hash for each document: 1.3 GB for 37 million.
"""

import numpy as np

KEPT, OLDER, EXACT, LEAKED = range(4)  # fates of a document


def drop_older(ids: np.ndarray, versions: np.ndarray, fate: np.ndarray) -> None:
    """Mark, of the records with one id, all but the highest version, the last of equal ones.

    Args:
        ids:      (n,) uint64 hashes.
        versions: (n,) uint32; 0 = the record has no id.
        fate:     (n,) uint8, changed in place.
    """
    order = np.lexsort((versions, ids))  # stable: equal versions stay in their order
    order = order[versions[order] > 0]
    ids = ids[order]
    fate[order[:-1][ids[:-1] == ids[1:]]] = OLDER


def drop_exact(texts: np.ndarray, fate: np.ndarray) -> None:
    """Mark, of the texts that are kept, all but the first of equal ones.

    Args:
        texts: (n,) uint64 hashes.
        fate:  (n,) uint8, changed in place.
    """
    kept = np.flatnonzero(fate == KEPT)
    order = kept[np.argsort(texts[kept], kind="stable")]
    texts = texts[order]
    fate[order[1:][texts[1:] == texts[:-1]]] = EXACT
