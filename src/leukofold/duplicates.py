"""Images that stand in the table more than once: found by perceptual hash, confirmed by pixels.

A cell of several images (modalities) is the same as another if any of its images is. Found are copies that are
byte-identical, encoded again, resized, moved by a few pixels, slightly blurred, noisy or
brighter; so are two photographs of one cell where focus and cut agree well enough. Not found are copies that are
turned, mirrored or cropped, and copies of a blank image that are not byte-identical.
"""

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from leukofold.cells import UNLABELLED, image_files
from leukofold.errors import UserError, name_some
from leukofold.files import alone, beside_lock, replacing
from leukofold.images.comparing import compare_pixels
from leukofold.images.hashing import HASH_VERSION
from leukofold.images.reading import files_digest, read_file
from leukofold.processes import available_cores

HASH_DISTANCE = 44
"""Bits of 256 by which hashes of copies differ at most. Measured on rendered cells and on samples of four real data
sets: moved by one pixel and 4 % brighter up to 40. Different stained cells differ in 70 or more; of different
segmented cells on black one pair in 7,000 comes within 44, of rendered fluorescent ones one in 600, which the pixels
then tell apart (at most 0.45)."""

SIMILARITY = 0.8
"""Least correlation of copies. Measured on the same images, as far as they pass the hash: copies that are encoded again
(JPEG 40), resized by 0.5 to 1.5, of severity 1, or moved by up to 3 pixels reach 0.87; of those of
small images (130 to 280 pixels) a few fall to 0.74. Different cells reach 0.73, among 8,000 rendered ones on black."""

MOST_CANDIDATES = 2_000_000
"""Pairs that are compared by pixels at most; two cores compare some 2,000 to 4,000 a second."""

VERSION = 1
"""Raised whenever the same images give other pairs, so that stored ones count as outdated."""

PAIR_COLUMNS = {
    "image_id_a": str,
    "image_id_b": str,
    "row_a": np.int64,
    "row_b": np.int64,
    "distance": np.int64,
    "similarity": np.float64,
    "exact": bool,
}

_BLOCK = 2048  # hashes per side of one matrix product, which then stays in the processor's cache


class TooManyPairsError(UserError):
    """More hashes lie close together than can be compared.

    Attributes:
        row: The hash that has most others close to it.
    """

    def __init__(self, row: int, most: int) -> None:
        super().__init__(f"more than {most} pairs of images look alike")
        self.row = row


def find_duplicates(frame: pd.DataFrame, hashes: np.ndarray, cache: Path, progress: bool = True) -> pd.DataFrame:
    """Finds the pairs of images that are the same.

    Of byte-identical files, however many, each is paired with one of them (a labelled one if there is any), and that
    one stands for all in the comparison with others. So a set of k equal images gives k - 1 pairs or more, and
    its connected component is the set.

    Args:
        frame: n rows of a ``CellTable``.
        hashes: A row of 32 uint8 for each of its files (``cells.image_files``), their perceptual hashes.
        cache: Folder that keeps the pairs of sets that were compared.
        progress: Whether to show progress bars.

    Returns:
        A row per pair, in the order of the rows: ``image_id_a``, ``image_id_b``, ``row_a`` < ``row_b`` (positions in
        ``frame``), ``distance`` (bits), ``similarity`` (at most 1), ``exact`` (byte-identical).

    Raises:
        UserError: Thousands of images look alike without being copies.
        CorruptImageError: An image is not readable any more.
    """
    stored = cache / "duplicates" / f"{_digest(frame, hashes)}.csv.gz"  # with a checksum
    pairs = _load_pairs(stored, frame)
    if pairs is not None:
        return pairs
    with alone(beside_lock(stored), "is comparing images" if progress else None):
        pairs = _load_pairs(stored, frame)
        if pairs is None:
            pairs = _compare(frame, hashes, progress)
            with replacing(stored) as temporary:
                pairs.to_csv(temporary, index=False, lineterminator="\n", compression="gzip")
    return pairs


def _compare(frame: pd.DataFrame, hashes: np.ndarray, progress: bool) -> pd.DataFrame:
    """Finds the pairs of images that are the same; see ``find_duplicates``."""
    files = image_files(frame)
    paths = files.path.tolist()
    exact = _exact_pairs(files, hashes)
    kept = np.setdiff1d(np.arange(len(files)), exact[:, 1])
    try:
        candidates = kept[candidate_pairs(hashes[kept], HASH_DISTANCE, MOST_CANDIDATES, progress)]
    except TooManyPairsError as error:
        path = paths[kept[error.row]]
        raise UserError(f"{error}, most of them like {path}; are they blank? Remove such images") from None
    candidates = candidates[candidates[:, 0] % len(frame) != candidates[:, 1] % len(frame)]  # of two cells
    similarity = compare_pixels(paths, candidates, progress)
    near = similarity >= SIMILARITY
    pairs = _pair_table(files, hashes, np.concatenate([exact, candidates[near]]), len(exact), similarity[near])
    if len(files) > len(frame):
        pairs = _of_cells(pairs, frame)
    return pairs


def candidate_pairs(
    hashes: np.ndarray, distance: int, most: int = MOST_CANDIDATES, progress: bool = False
) -> np.ndarray:
    """Finds all pairs of hashes within a Hamming distance.

    Every pair is looked at, in blocked matrix products: as vectors of +1 and -1, two hashes of b bits at distance d
    have the inner product b - 2d.

    Args:
        hashes: n x B uint8.
        distance: Bits that may differ.
        most: Number of pairs at which to give up, so that memory stays bounded.
        progress: Whether to show a progress bar.

    Returns:
        m x 2 int64, first < second, in ascending order.

    Raises:
        TooManyPairsError: There are more than ``most``.
    """
    bits = 8 * hashes.shape[1]
    signs = torch.from_numpy(np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1)
    products = torch.empty(_BLOCK, _BLOCK)
    found, count = [np.empty((0, 2), np.int64)], 0
    starts = range(0, len(hashes), _BLOCK)
    blocks = [(i, j) for i in starts for j in starts if j >= i]
    for i, j in tqdm(blocks, desc="comparing hashes", unit="block", disable=not progress):
        a, b = signs[i : i + _BLOCK], signs[j : j + _BLOCK]
        product = torch.mm(a, b.T, out=products.view(-1)[: len(a) * len(b)].view(len(a), len(b)))
        rows = (product.amax(1) >= bits - 2 * distance).nonzero().ravel()
        close = (product[rows] >= bits - 2 * distance).nonzero()
        close[:, 0] = rows[close[:, 0]]
        pairs = close.numpy() + np.array([i, j])
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
        count += len(found[-1])
        if count > most:
            raise TooManyPairsError(int(np.bincount(np.concatenate(found).ravel()).argmax()), most)
    pairs = np.concatenate(found)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def merge_groups(groups: Sequence[str], pairs: pd.DataFrame, is_external: np.ndarray) -> np.ndarray:
    """Makes one group of those that share an image.

    Two groups whose images equal the same test image are merged too: they show the same cell. External images take
    the names of the competition's groups and never change them, so that they do not move the competition's folds,
    which depend on the names' order.

    Args:
        groups: n names; "" (test images) stands for no group and stays.
        pairs: What ``find_duplicates`` returns.
        is_external: n booleans.

    Returns:
        n names: that of several groups is theirs in alphabetical order, joined by ``+``; of more than three, the first
        one, the number of the others and a digest of all.
    """
    if not len(pairs):
        return np.asarray(groups, dtype=str)
    names, codes = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    # a row without a group is a node of its own
    nodes = np.where(names[codes] == "", len(names) + np.arange(len(codes)), codes)
    parts = _components(len(names) + len(codes), nodes[pairs.row_a], nodes[pairs.row_b])[: len(names)]
    own = set(np.asarray(groups, dtype=object)[~is_external])
    members: dict[int, list[str]] = {}
    for part, name in zip(parts.tolist(), names.tolist(), strict=True):
        members.setdefault(part, []).append(name)
    joined = {part: _joined([name for name in group if name in own] or group) for part, group in members.items()}
    return np.array([joined[part] for part in parts.tolist()], dtype=str)[codes]


def number_sets(size: int, pairs: pd.DataFrame) -> np.ndarray:
    """Numbers the sets of equal images: two of one set equal each other, or a third one, and so on.

    Args:
        size: n, rows of the table that the pairs are of.
        pairs: What ``find_duplicates`` returns.

    Returns:
        n numbers; an image without a copy is a set of its own.
    """
    return _components(size, pairs.row_a.to_numpy(), pairs.row_b.to_numpy())


def duplicate_report(frame: pd.DataFrame, class_names: Sequence[str], pairs: pd.DataFrame) -> pd.DataFrame:
    """Tells what is known of the images of each pair.

    Args:
        frame: n rows of a ``CellTable``, with the groups as they were before they were merged.
        class_names: Its classes.
        pairs: What ``find_duplicates`` returns.

    Returns:
        ``pairs`` and further columns: ``label``, ``source``, ``split`` and ``group``, each with ``_a`` and ``_b``
        (labels by name, "" where there is none), ``set`` (number of the set of equal images, all pairs of which need
        not be listed), ``crosses_groups`` (of two groups, so that folds of groups would part them) and, of the whole
        set, ``conflict`` (labelled differently) and ``touches_test`` (some labelled, some not).
    """
    named = np.array(["", *class_names], dtype=object)
    columns = {
        "label": named[frame.label.to_numpy() - UNLABELLED],
        **{name: frame[name].to_numpy(dtype=object) for name in ("source", "split", "group")},
    }
    rows = {"a": pairs.row_a.to_numpy(), "b": pairs.row_b.to_numpy()}
    report = pairs.assign(**{f"{name}_{side}": columns[name][rows[side]] for name in columns for side in "ab"})
    sets = number_sets(len(frame), pairs)[rows["a"]]
    labels = pd.DataFrame({"set": np.tile(sets, 2), "label": pd.concat([report.label_a, report.label_b])})
    given = labels[labels.label != ""].groupby("set").label.nunique()
    unlabelled = labels[labels.label == ""].set.unique()
    return report.assign(
        set=pd.factorize(sets)[0],
        conflict=np.isin(sets, given[given > 1].index),
        crosses_groups=(report.group_a != report.group_b) & (report.group_a != "") & (report.group_b != ""),
        touches_test=np.isin(sets, unlabelled),
    )


def describe(report: pd.DataFrame, images: int) -> str:
    """Writes what ``duplicate_report`` found for people: counts, then the conflicts by name.

    Args:
        report: What ``duplicate_report`` returns, whole.
        images: Number of images that were compared.

    Returns:
        Some lines.
    """
    if not len(report):
        return f"  no two of {images} images are the same"
    sources = [" = ".join(sorted({a, b})) for a, b in zip(report.source_a, report.source_b, strict=True)]
    lines = [
        f"  {len(report)} pairs of {images} images are the same, in {report.set.nunique()} sets",
        f"  byte-identical: {report.exact.sum()}  by their pixels: {(~report.exact).sum()}",
        "  by source: " + "  ".join(f"{name} {n}" for name, n in pd.Series(sources).value_counts().items()),
        f"  across groups: {report.crosses_groups.sum()} (such groups count as one, so no fold parts them)",
        f"  with a test image: {report.set[report.touches_test].nunique()} sets (no fold trains on these)",
    ]
    named = [_named(part) for _, part in report[report.conflict].groupby("set", sort=False)]
    lines.append(f"  labelled differently: {len(named)} sets" + (f": {name_some(named, 5)}" if named else ""))
    return "\n".join(lines)


def _named(pairs: pd.DataFrame) -> str:
    """Names the images of one set and their labels."""
    members: dict[str, str] = {}
    for side in "ab":
        members |= dict(zip(pairs[f"image_id_{side}"], pairs[f"label_{side}"], strict=True))
    return " = ".join(f"{image_id} ({label or 'test'})" for image_id, label in members.items())


def _components(size: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Numbers the connected components of a graph: of each of so many nodes, given the ends of its edges."""
    graph = coo_matrix((np.ones(len(a)), (a, b)), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1])


def _joined(names: Sequence[str]) -> str:
    """Names a group that was made of several, given in alphabetical order."""
    if len(names) <= 3:
        return "+".join(names)
    return f"{names[0]}+{len(names) - 1}-{hashlib.sha256('+'.join(names).encode()).hexdigest()[:8]}"


def _of_cells(pairs: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Makes pairs of cells of pairs of their files, each once, by the files that are most alike."""
    rows = np.sort(pairs[["row_a", "row_b"]].to_numpy() % len(frame), axis=1)
    ids = frame.image_id.to_numpy(dtype=object)[rows]
    columns = {"row_a": rows[:, 0], "row_b": rows[:, 1], "image_id_a": ids[:, 0], "image_id_b": ids[:, 1]}
    pairs = pairs.assign(**columns).sort_values(["exact", "similarity", "distance"], ascending=[False, False, True])
    pairs = pairs[pairs.row_a != pairs.row_b].drop_duplicates(["row_a", "row_b"])
    return pairs.sort_values(["row_a", "row_b"], ignore_index=True).astype(PAIR_COLUMNS)


def _digest(frame: pd.DataFrame, hashes: np.ndarray) -> str:
    """Digests all that the pairs depend on."""
    digest = hashlib.sha256(f"{VERSION} {HASH_VERSION} {HASH_DISTANCE} {SIMILARITY}".encode())
    digest.update(files_digest(image_files(frame)).encode())
    digest.update(hashes.tobytes())
    digest.update("\n".join(frame.image_id).encode())
    digest.update((frame.label.to_numpy() == UNLABELLED).tobytes())
    return digest.hexdigest()[:16]


def _load_pairs(stored: Path, frame: pd.DataFrame) -> pd.DataFrame | None:
    """Loads stored pairs; None where there are none, or damaged ones."""
    try:
        pairs = pd.read_csv(stored, dtype=PAIR_COLUMNS, keep_default_na=False)
        ids = frame.image_id.to_numpy(dtype=object)
        sound = list(pairs.columns) == list(PAIR_COLUMNS) and all(
            np.array_equal(ids[pairs[f"row_{side}"]], pairs[f"image_id_{side}"].to_numpy(dtype=object)) for side in "ab"
        )
    except (OSError, ValueError, IndexError, EOFError, zlib.error):
        return None
    return pairs if sound else None


def _exact_pairs(frame: pd.DataFrame, hashes: np.ndarray) -> np.ndarray:
    """Pairs each byte-identical file with the one that stands for all of its kind: m x 2, that one first."""
    table = pd.DataFrame({"bytes": frame.bytes.to_numpy(), "hash": [row.tobytes() for row in hashes]})
    alike = table[table.duplicated(keep=False)].index.to_numpy()
    paths = frame.path.tolist()
    with ThreadPoolExecutor(available_cores()) as pool:
        content = list(pool.map(lambda row: hashlib.blake2b(read_file(paths[row])).hexdigest(), alike))
    unlabelled = frame.label.to_numpy()[alike] == UNLABELLED
    files = pd.DataFrame({"row": alike, "content": content, "unlabelled": unlabelled})
    files = files.sort_values(["unlabelled", "row"])
    files["first"] = files.groupby("content").row.transform("first")
    copies = files[files.row != files["first"]]
    return copies[["first", "row"]].to_numpy(dtype=np.int64).reshape(-1, 2)


def _pair_table(
    frame: pd.DataFrame, hashes: np.ndarray, rows: np.ndarray, exact: int, similarity: np.ndarray
) -> pd.DataFrame:
    """Puts pairs, of which the first so many are byte-identical, into the table that is returned."""
    low, high = rows.min(axis=1), rows.max(axis=1)
    ids = frame.image_id.to_numpy(dtype=object)
    columns = (
        ids[low],
        ids[high],
        low,
        high,
        np.bitwise_count(hashes[low] ^ hashes[high]).sum(axis=1),
        np.concatenate([np.ones(exact), np.round(similarity, 4)]),
        np.arange(len(rows)) < exact,
    )
    pairs = pd.DataFrame(dict(zip(PAIR_COLUMNS, columns, strict=True))).astype(PAIR_COLUMNS)
    return pairs.sort_values(["row_a", "row_b"], ignore_index=True)
