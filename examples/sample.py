#!/usr/bin/env python3
"""
Make a small data set in the TencentGR layout: FOLDER/train, FOLDER/eval and FOLDER/answers.json.

    python examples/sample.py [FOLDER] [--items 5500] [--users 1200] [--seed 0]

Everything is invented, but not at random: items sit in clusters of clusters, both embeddings
(81: 32 numbers in a pickle, 82: 1024 numbers in JSON-lines parts) show where, and users stay close
to what they liked before. So semantic IDs carry something that a recommender can use. One item in
twenty is new: `eval` has it, `train` does not. Needs numpy only.
"""

import argparse
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FIRST_CREATIVE_ID = 20_000_000_000
BRANCHES = (12, 8, 4)  # clusters, clusters in each of them, and again
SPREADS = (1.0, 0.6, 0.35)  # how far the centres of each layer lie from the one above
ITEM_SPREAD = 0.25
SHARE_NEW, SHARE_81, SHARE_82 = 0.05, 0.96, 0.98  # of the items
SHARE_NEW_USERS = 0.1
JSON_PARTS = 4
# Feature id -> number of values. The values 1…n are the re-ids of n raw values.
FEATURE_VALUES = {"100": 6, "117": 96, "103": 86, "106": 14}


def make_sample(folder: Path, items: int = 5500, users: int = 1200, seed: int = 0) -> Path:
    """
    Make the sample, unless `folder` holds one already, and return `folder`.

    It is written to a folder beside and renamed, so that a run that was stopped leaves no half of it.

    Raises:
        FileExistsError: `folder` holds something else.
    """
    if (folder / "answers.json").exists():
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"'{folder}' exists and holds no sample. It was left untouched; name another folder.")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        write_sample(partial, items, users, seed)
        try:
            partial.rename(folder)
        except OSError:  # another process was faster: its sample is as good as ours
            if not (folder / "answers.json").exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def write_sample(out: Path, items: int, users: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    leaves, latent = invent_items(rng, items)
    creative_ids = FIRST_CREATIVE_ID + rng.choice(6_000_000, items, replace=False)
    is_new = rng.random(items) < SHARE_NEW
    re_ids = {int(cid): k + 1 for k, cid in enumerate(creative_ids[~is_new])}
    histories = invent_histories(rng, leaves, users)

    in_cluster = leaves // BRANCHES[2]  # feature 117 is the middle layer, 100 says nothing
    item_features = [
        {"100": int(rng.integers(1, FEATURE_VALUES["100"] + 1)), "117": int(cluster) + 1} for cluster in in_cluster
    ]

    def features(item: int) -> dict[str, Any]:
        # What training has not seen has no re-id: the official files show the raw value, a string.
        if is_new[item]:
            return {fid: raw_value(fid, value) for fid, value in item_features[item].items()}
        return item_features[item]

    def rows(user: int, user_id: int | str, history: Sequence[int]) -> list[list[Any]]:
        time = 1_745_900_000 + 97 * user
        records: list[list[Any]] = []
        for k, item in enumerate(history):
            cid = int(creative_ids[item])
            clicked = int((user + k) % 9 == 0)
            records.append([user_id, re_ids.get(cid, cid), None, features(item), clicked, time + 3600 * k])
        profile = {"103": 1 + user % FEATURE_VALUES["103"], "106": [1 + user % 14, 1 + user * 5 % 14]}
        return [*records, [user_id, None, profile, None, None, time + 3600 * len(history)]]

    train_rows, eval_rows, answers = [], [], {}
    for user, history in enumerate(histories):
        user_id = f"user_{90_000_000 + user}" if user % round(1 / SHARE_NEW_USERS) == 0 else user + 1
        train_rows.append(rows(user, user + 1, [item for item in history[:-1] if not is_new[item]]))
        eval_rows.append(rows(user, user_id, history[:-1]))
        raw_user = user_id if isinstance(user_id, str) else f"user_{user:08d}"
        answers[raw_user] = int(creative_ids[history[-1]])

    indexer = {
        "f": {fid: {raw_value(fid, value): value for value in range(1, n + 1)} for fid, n in FEATURE_VALUES.items()},
        "i": re_ids,
        "u": {f"user_{user:08d}": user + 1 for user in range(users)},
        "a": {1: 1, 0: 2},
    }
    known_features = {
        str(re_ids[int(cid)]): item_features[item] for item, cid in enumerate(creative_ids) if int(cid) in re_ids
    }
    embeddings = Embeddings(rng, creative_ids, latent)
    for name, sequences, records, visible in (
        ("train", "seq", train_rows, ~is_new),
        ("eval", "predict_seq", eval_rows, np.ones(items, bool)),
    ):
        folder = out / name
        folder.mkdir()
        write_sequences(folder, sequences, records)
        (folder / "indexer.pkl").write_bytes(pickle.dumps(indexer, protocol=4))
        (folder / "item_feat_dict.json").write_text(json.dumps(known_features))
        embeddings.write(folder / "creative_emb", visible)
    with (out / "eval" / "predict_set.jsonl").open("w") as file:
        for retrieval_id, item in enumerate(rng.permutation(items).tolist()):
            candidate = {"creative_id": int(creative_ids[item]), "retrieval_id": retrieval_id}
            file.write(json.dumps({**candidate, "features": features(item)}) + "\n")
    (out / "answers.json").write_text(json.dumps(answers))


def invent_items(rng: np.random.Generator, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the leaf cluster of each item, (items,), and where it lies, (items, 32)."""
    centres = np.zeros((1, 32))
    for branches, spread in zip(BRANCHES, SPREADS, strict=True):
        centres = np.repeat(centres, branches, axis=0)
        centres = centres + spread * rng.normal(size=centres.shape)
    leaves = rng.integers(len(centres), size=items)
    return leaves, centres[leaves] + ITEM_SPREAD * rng.normal(size=(items, 32))


def invent_histories(rng: np.random.Generator, leaves: np.ndarray, users: int) -> list[list[int]]:
    """
    Return what each user saw, in order, at least 4 items each.

    Three of five times the next item is from the leaf cluster of the last one, else from one of the
    user's two favourite leaves, seldom from anywhere. Some items of a leaf are far more popular.
    """
    members = [np.flatnonzero(leaves == leaf) for leaf in range(leaves.max() + 1)]
    members = [leaf[rng.permutation(len(leaf))] for leaf in members if len(leaf)]
    histories = []
    for _ in range(users):
        favourites = rng.integers(len(members), size=2)
        leaf, history = int(favourites[0]), []
        for _ in range(int(rng.integers(4, 36))):
            draw = rng.random()
            if draw > 0.95:
                leaf = int(rng.integers(len(members)))
            elif draw > 0.6:
                leaf = int(favourites[rng.integers(2)])
            popular_first = int(len(members[leaf]) * rng.random() ** 2)
            history.append(int(members[leaf][popular_first]))
        histories.append(history)
    return histories


class Embeddings:
    """Features 81 and 82 of all items: unit vectors, some missing, ready to be written for any part of the items."""

    def __init__(self, rng: np.random.Generator, creative_ids: np.ndarray, latent: np.ndarray) -> None:
        self.creative_ids = creative_ids.tolist()
        self.in_81 = rng.random(len(latent)) < SHARE_81
        self.in_82 = rng.random(len(latent)) < SHARE_82
        self.vectors = unit(latent).astype(np.float32)
        wide = latent @ rng.normal(size=(32, 1024)) + 0.5 * rng.normal(size=(len(latent), 1024))
        # The same line serves both directories, and writing numbers is what takes the time.
        self.lines = [
            json.dumps({"anonymous_cid": cid, "emb": row}) + "\n"
            for cid, row in zip(self.creative_ids, unit(wide).round(5).tolist(), strict=True)
        ]

    def write(self, folder: Path, visible: np.ndarray) -> None:
        folder.mkdir()
        with (folder / "emb_81_32.pkl").open("wb") as file:
            rows = np.flatnonzero(visible & self.in_81)
            pickle.dump({self.creative_ids[row]: self.vectors[row] for row in rows}, file, protocol=4)
        parts = folder / "emb_82_1024"
        parts.mkdir()
        for part, rows in enumerate(np.array_split(np.flatnonzero(visible & self.in_82), JSON_PARTS)):
            with (parts / f"part-{part:05d}.json").open("w") as file:
                file.writelines(self.lines[row] for row in rows)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def raw_value(feature_id: str, value: int) -> str:
    return f"{feature_id}0000{value:05d}"


def write_sequences(folder: Path, name: str, rows_per_user: Iterable[list[list[Any]]]) -> None:
    """Write one line per user, and where each line starts."""
    offsets = []
    with (folder / f"{name}.jsonl").open("wb") as file:
        for rows in rows_per_user:
            offsets.append(file.tell())
            file.write(json.dumps(rows).encode() + b"\n")
    (folder / f"{name}_offsets.pkl").write_bytes(pickle.dumps(offsets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("sample"))
    parser.add_argument("--items", type=int, default=5500)
    parser.add_argument("--users", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"The sample lies in {make_sample(args.folder, args.items, args.users, args.seed)}", flush=True)


if __name__ == "__main__":
    main()
