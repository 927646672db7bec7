"""
The official dataset classes, with semantic IDs as one more feature of every item.

What the plug-in needs is the mixin, in front of the dataset class:

    class MyTestDataset(SemanticIdMixin, MyDataset):

The rest of this file is the official shape. Comments mark where the official code has traps.
"""

import json
import logging
import pickle
import random
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from semid_dataset import SemanticIdMixin
from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs.discover import find_sources
from semid_dataset.inputs.read import read_sources

Features = dict[str, Any]  # feature id -> value

# Used where a feature has no file to tell its dimension.
USUAL_DIMS = {"81": 32, "82": 1024, "83": 3584, "84": 4096, "85": 3584, "86": 3584}

FEATURE_IDS = {
    "user_sparse": ["103", "104", "105", "109"],
    "item_sparse": ["100", "101", "102", "111", "112", "114", "115", "116", "117", "118", "119", "120", "121", "122"],
    "item_array": [],
    "user_array": ["106", "107", "108", "110"],
    "user_continual": [],
    "item_continual": [],
}
ITEM, USER = 1, 2  # token types; 0 is padding


class MyDataset(torch.utils.data.Dataset):
    """
    What users did, one sequence each, from `seq.jsonl`.

    Args:
        data_dir: folder of the data.
        args: `maxlen` and `mm_emb_id` are read.

    Attributes:
        item_feat_dict: {str(re-id): {feature id: value}}.
        mm_emb_dict: {feature id: {creative id: vector}}, of the features that are there.
        indexer_i_rev, indexer_u_rev: re-id -> creative id, user name.
        feature_default_value, feature_types, feat_statistics: by feature id; of the embeddings the
            statistic is the dimension.
    """

    # "Nothing known". SemanticIdMixin, which stands before this class, has the real one.
    semantic_id_dict: Mapping[int, list[int]] = MappingProxyType({})

    def __init__(self, data_dir, args) -> None:
        super().__init__()
        self.data_dir = Path(data_dir)
        self._load_data_and_offsets()
        self.maxlen = args.maxlen
        self.item_feat_dict = json.loads((self.data_dir / "item_feat_dict.json").read_bytes())
        self.mm_emb_ids = args.mm_emb_id
        self.mm_emb_dict = load_mm_emb(self.data_dir, self.mm_emb_ids)
        with (self.data_dir / "indexer.pkl").open("rb") as file:
            self.indexer = pickle.load(file)
        self.itemnum, self.usernum = len(self.indexer["i"]), len(self.indexer["u"])
        self.indexer_i_rev = {re_id: creative_id for creative_id, re_id in self.indexer["i"].items()}
        self.indexer_u_rev = {re_id: user for user, re_id in self.indexer["u"].items()}
        self.feature_default_value, self.feature_types, self.feat_statistics = self._init_feat_info()

    def _load_data_and_offsets(self, name: str = "seq") -> None:
        self.data_file = self.data_dir / f"{name}.jsonl"
        with (self.data_dir / f"{name}_offsets.pkl").open("rb") as file:
            self.seq_offsets = pickle.load(file)

    def _load_user_data(self, row: int) -> list[list[Any]]:
        # Opened each time: an open file kept in the dataset has one position for all forked workers,
        # which then read each other's lines, and cannot be sent to spawned ones.
        with self.data_file.open("rb") as file:
            file.seek(self.seq_offsets[row])
            return json.loads(file.readline())

    def _init_feat_info(self) -> tuple[Features, dict[str, list[str]], dict[str, int]]:
        indexed = self.indexer["f"]
        types = {kind: [fid for fid in fids if fid in indexed] for kind, fids in FEATURE_IDS.items()}
        default: Features = {}
        statistics: dict[str, int] = {}
        for kind, fids in types.items():
            for fid in fids:
                default[fid] = [0] if kind.endswith("array") else 0
                statistics[fid] = len(indexed[fid])
        types["item_emb"] = list(self.mm_emb_ids)
        for fid in self.mm_emb_ids:
            vectors = self.mm_emb_dict.get(fid)
            statistics[fid] = len(next(iter(vectors.values()))) if vectors else USUAL_DIMS[fid]
            default[fid] = np.zeros(statistics[fid], dtype=np.float32)
        # Not asked for here: reading self.semantic_id_dict would make the IDs before anybody could say
        # which parent they continue. So the default has no length; the model fills up with zeros.
        types["semantic_array"] = ["semantic_id"]
        default["semantic_id"] = [0]
        return default, types, statistics

    def fill_missing_feat(self, feat: Features | None, item_id: int) -> Features:
        """Complete the features of an item, or of a user, whose token is `item_id` (re-id)."""
        return self.fill_creative(feat, self.indexer_i_rev.get(item_id))

    def fill_creative(self, feat: Features | None, creative_id: int | None) -> Features:
        """
        Complete the features of an item.

        Embeddings and semantic IDs go by the creative id, an int such as 20000000027: never by the
        re-id, and never by its string, though JSON keys are strings (the table takes either).
        """
        filled = {**self.feature_default_value, **(feat or {})}
        if creative_id is None:
            return filled
        for fid, vectors in self.mm_emb_dict.items():
            if (vector := vectors.get(creative_id)) is not None:
                filled[fid] = vector
        if (codes := self.semantic_id_dict.get(creative_id)) is not None:
            # Codes start at 0, which is also the padding index: shifted, 0 means "no ID".
            filled["semantic_id"] = [code + 1 for code in codes]
        return filled

    def _padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a sequence of nothing: its ids and its features, maxlen + 1 each."""
        features = np.empty(self.maxlen + 1, dtype=object)
        features.fill(self.feature_default_value)
        return np.zeros(self.maxlen + 1, dtype=np.int64), features

    def _random_neq(self, seen: set[int]) -> int:
        for _ in range(100):  # the official loop never ends for a user who has seen everything
            item = random.randint(1, self.itemnum)
            if item not in seen and str(item) in self.item_feat_dict:
                break
        return item

    def __len__(self) -> int:
        return len(self.seq_offsets)

    def __getitem__(self, row: int):
        """
        Return one user's sequence, padded on the left to maxlen + 1.

        Returns:
            seq, pos, neg: re-ids of what was seen, of what came next, of something never seen.
            token_type, next_token_type: 1 item, 2 user, 0 padding.
            next_action_type: 1 clicked.
            seq_feat, pos_feat, neg_feat: features of each.
        """
        tokens = []
        for user, item, user_feat, item_feat, action, _ in self._load_user_data(row):
            if user and user_feat:
                tokens.insert(0, (user, user_feat, USER, action))  # the profile comes last in the file
            if item and item_feat:
                tokens.append((item, item_feat, ITEM, action))
        seen = {token[0] for token in tokens if token[2] == ITEM}

        (seq, seq_feat), (pos, pos_feat), (neg, neg_feat) = self._padded(), self._padded(), self._padded()
        token_type, next_token_type, next_action_type = (np.zeros_like(seq) for _ in range(3))
        pairs = list(pairwise(tokens))[-len(seq) :]
        for at, ((token, feat, kind, _), following) in enumerate(pairs, start=len(seq) - len(pairs)):
            next_token, next_feat, next_kind, next_action = following
            seq[at], token_type[at] = token, kind
            seq_feat[at] = self.fill_missing_feat(feat, token if kind == ITEM else 0)
            next_token_type[at], next_action_type[at] = next_kind, next_action or 0
            if next_kind == ITEM:
                pos[at], neg[at] = next_token, self._random_neq(seen)
                pos_feat[at] = self.fill_missing_feat(next_feat, next_token)
                neg_feat[at] = self.fill_missing_feat(self.item_feat_dict.get(str(neg[at])), int(neg[at]))
        return seq, pos, neg, token_type, next_token_type, next_action_type, seq_feat, pos_feat, neg_feat

    @staticmethod
    def collate_fn(batch):
        *ids, seq_feat, pos_feat, neg_feat = zip(*batch, strict=True)
        tensors = [torch.from_numpy(np.stack(rows)) for rows in ids]
        return *tensors, list(seq_feat), list(pos_feat), list(neg_feat)


class MyTrainDataset(SemanticIdMixin, MyDataset):
    """The training data, with semantic IDs."""


class MyTestDataset(SemanticIdMixin, MyDataset):
    """The evaluation data, from `predict_seq.jsonl`: users to predict for, with semantic IDs."""

    def _load_data_and_offsets(self) -> None:
        super()._load_data_and_offsets("predict_seq")

    def fill_missing_feat(self, feat: Features | None, item_id: int) -> Features:
        # An item that training has not seen stands in the sequence as its creative id, far above
        # itemnum. It has no re-id, yet it has embeddings and a semantic ID.
        creative_id = item_id if item_id > self.itemnum else self.indexer_i_rev.get(item_id)
        return self.fill_creative(known_values(feat or {}), creative_id)

    def __getitem__(self, row: int):
        """
        Return one user's sequence, padded on the left to maxlen + 1; its last element is left out.

        Returns:
            seq: re-ids, 0 for what training has not seen.
            token_type: 1 item, 2 user, 0 padding.
            seq_feat: features of each.
            user_id: the user's name, "user_00123456".
        """
        tokens = []
        user_id = ""
        for user, item, user_feat, item_feat, _, _ in self._load_user_data(row):
            if user:  # a name if training has not seen the user, else a re-id
                user_id = user if isinstance(user, str) else self.indexer_u_rev[user]
            if user and user_feat:
                tokens.insert(0, (0 if isinstance(user, str) else user, user_feat, USER))
            if item and item_feat:
                tokens.append((item, item_feat, ITEM))

        seq, seq_feat = self._padded()
        token_type = np.zeros_like(seq)
        tokens = tokens[:-1][-len(seq) :]
        for at, (token, feat, kind) in enumerate(tokens, start=len(seq) - len(tokens)):
            seq[at] = token if kind == USER or token <= self.itemnum else 0
            token_type[at] = kind
            seq_feat[at] = self.fill_missing_feat(feat, token if kind == ITEM else 0)
        return seq, token_type, seq_feat, user_id

    @staticmethod
    def collate_fn(batch):
        seq, token_type, seq_feat, user_id = zip(*batch, strict=True)
        return torch.from_numpy(np.stack(seq)), torch.from_numpy(np.stack(token_type)), list(seq_feat), list(user_id)


def known_values(feat: Features) -> Features:
    """Replace feature values that training has not seen, which the files show as strings, by 0."""

    def known(value: Any) -> Any:
        if isinstance(value, list):
            return [known(entry) for entry in value]
        return 0 if isinstance(value, str) else value

    return {fid: known(value) for fid, value in feat.items()}


def load_mm_emb(data_dir: Path, feature_ids: list[str]) -> dict[str, dict[int, np.ndarray]]:
    """
    Read the embeddings as {feature id: {creative id: vector}}.

    Nothing to read is no error here: the recommender then goes without. semid_dataset's reader is
    used because it runs nothing that a pickle asks for; its log is about semantic IDs, and rests.
    """
    log = logging.getLogger("semid_dataset")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        embeddings = read_sources(find_sources(data_dir, feature_ids))
    except (EmbeddingError, OSError) as error:
        print(f"The recommender goes without embeddings: {error}")
        return {}
    finally:
        log.setLevel(level)
    items = np.asarray(embeddings.items)
    return {
        feature.id: dict(zip(items[feature.rows].tolist(), feature.matrix, strict=True))
        for feature in embeddings.features
    }


def save_emb(emb: np.ndarray, path: Path) -> None:
    """Write the official binary form: uint32 rows, uint32 columns, then the array."""
    with path.open("wb") as file:
        np.array(emb.shape, dtype="<u4").tofile(file)
        np.ascontiguousarray(emb).tofile(file)
