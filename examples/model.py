"""
The baseline recommender, as SASRec: a causal transformer reads what a user did and points to the next item.

An item is its own embedding plus its features: sparse values, the multi-modal vectors through a
linear map, and its semantic ID. Each level of the ID has a table of its own, because code 7 of level
1 and code 7 of level 2 have nothing to do with each other; row 0 of each means "no ID".
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

FeatureRows = Sequence[Sequence[dict[str, Any]]]  # (batch, length)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each with a residual connection."""

    def __init__(self, args: Namespace) -> None:
        super().__init__()
        units = args.hidden_units
        self.heads, self.dropout_rate, self.norm_first = args.num_heads, args.dropout_rate, args.norm_first
        self.qkv, self.out = nn.Linear(units, 3 * units), nn.Linear(units, units)
        self.attention_norm, self.forward_norm = nn.LayerNorm(units, eps=1e-8), nn.LayerNorm(units, eps=1e-8)
        dropout = nn.Dropout(args.dropout_rate)
        self.feed_forward = nn.Sequential(nn.Linear(units, units), dropout, nn.ReLU(), nn.Linear(units, units), dropout)

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        rate = self.dropout_rate if self.training else 0.0
        return self.out(F.scaled_dot_product_attention(q, k, v, mask, rate).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.attention_norm(x), mask)
            return x + self.feed_forward(self.forward_norm(x))
        x = self.attention_norm(x + self.attend(x, mask))
        return self.forward_norm(x + self.feed_forward(x))


class BaselineModel(nn.Module):
    """
    Args:
        user_num, item_num: how many re-ids there are.
        feat_statistics, feat_types: from the dataset; by feature id, and feature ids by kind.
        args: the official flags.
        codebook_sizes: of the semantic IDs, one per level: `table.codebook_sizes`.
    """

    def __init__(
        self,
        user_num: int,
        item_num: int,
        feat_statistics: dict[str, int],
        feat_types: dict[str, list[str]],
        args: Namespace,
        codebook_sizes: Sequence[int],
    ) -> None:
        super().__init__()
        units = args.hidden_units
        self.types = feat_types
        self.item_emb = nn.Embedding(item_num + 1, units, padding_idx=0)
        self.user_emb = nn.Embedding(user_num + 1, units, padding_idx=0)
        self.pos_emb = nn.Embedding(args.maxlen + 2, units, padding_idx=0)
        self.emb_dropout = nn.Dropout(args.dropout_rate)

        user = feat_types["user_sparse"] + feat_types["user_array"]
        item = feat_types["item_sparse"] + feat_types["item_array"]
        self.sparse_emb = nn.ModuleDict(
            {fid: nn.Embedding(feat_statistics[fid] + 1, units, padding_idx=0) for fid in user + item}
        )
        self.emb_transform = nn.ModuleDict(
            {fid: nn.Linear(feat_statistics[fid], units) for fid in feat_types["item_emb"]}
        )
        self.semantic_emb = nn.ModuleList(nn.Embedding(size + 1, units, padding_idx=0) for size in codebook_sizes)

        user_parts = 1 + len(user)
        item_parts = 1 + len(item) + len(self.emb_transform) + len(self.semantic_emb)
        self.userdnn = nn.Linear(user_parts * units + len(feat_types["user_continual"]), units)
        self.itemdnn = nn.Linear(item_parts * units + len(feat_types["item_continual"]), units)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.num_blocks))
        self.last_layernorm = nn.LayerNorm(units, eps=1e-8)
        for table in self.modules():
            if isinstance(table, nn.Embedding):
                nn.init.normal_(table.weight, std=units**-0.5)
                # Filling the weights fills the padding row too; it must stay zero.
                nn.init.zeros_(table.weight[0])

    @property
    def device(self) -> torch.device:
        return self.item_emb.weight.device

    def features(self, rows: FeatureRows, side: str) -> list[Tensor]:
        """Embed the features of one side, "user" or "item": each (batch, length, units)."""
        parts = [self.sparse_emb[fid](self.values(rows, fid)) for fid in self.types[f"{side}_sparse"]]
        parts += [self.sparse_emb[fid](self.arrays(rows, fid)).sum(2) for fid in self.types[f"{side}_array"]]
        parts += [self.values(rows, fid).float().unsqueeze(2) for fid in self.types[f"{side}_continual"]]
        if side == "item":
            parts += [transform(self.values(rows, fid)) for fid, transform in self.emb_transform.items()]
            semantic_ids = self.arrays(rows, "semantic_id", len(self.semantic_emb))
            parts += [table(semantic_ids[:, :, level]) for level, table in enumerate(self.semantic_emb)]
        return parts

    def values(self, rows: FeatureRows, fid: str) -> Tensor:
        """Numbers or vectors of equal length, as a tensor (batch, length[, dim])."""
        return torch.from_numpy(np.array([[feat[fid] for feat in row] for row in rows])).to(self.device)

    def arrays(self, rows: FeatureRows, fid: str, length: int = 0) -> Tensor:
        """Lists of numbers, filled up with 0 to the longest or to `length`: (batch, length, entries)."""
        lists = [[feat[fid] for feat in row] for row in rows]
        length = length or max(len(entries) for row in lists for entries in row)
        filled = np.zeros((len(lists), len(lists[0]), length), dtype=np.int64)
        for i, row in enumerate(lists):
            for j, entries in enumerate(row):
                filled[i, j, : len(entries)] = entries
        return torch.from_numpy(filled).to(self.device)

    def embed_items(self, items: Tensor, rows: FeatureRows) -> Tensor:
        """Embed items: re-ids (batch, length), 0 for unknown ones, and their features -> (batch, length, units)."""
        return torch.relu(self.itemdnn(torch.cat([self.item_emb(items), *self.features(rows, "item")], dim=2)))

    def embed_users(self, users: Tensor, rows: FeatureRows) -> Tensor:
        return torch.relu(self.userdnn(torch.cat([self.user_emb(users), *self.features(rows, "user")], dim=2)))

    def log2feats(self, seq: Tensor, token_type: Tensor, rows: FeatureRows) -> Tensor:
        """Return what the model makes of a sequence up to each position: (batch, length, units)."""
        seq, token_type = seq.to(self.device), token_type.to(self.device)
        x = self.embed_items(seq * (token_type == 1), rows) + self.embed_users(seq * (token_type == 2), rows)
        # Padding is where token_type is 0. The re-id is 0 for new items too, and those are not padding.
        filled = token_type != 0
        length = seq.shape[1]
        last = self.pos_emb.num_embeddings
        x = x * x.shape[2] ** 0.5 + self.pos_emb(torch.arange(last - length, last, device=self.device) * filled)
        causal = torch.ones(length, length, dtype=torch.bool, device=self.device).tril()
        # Everything sees itself, padding too: a row that may look nowhere would come out as NaN.
        itself = torch.eye(length, dtype=torch.bool, device=self.device)
        mask = (causal & filled.unsqueeze(1) | itself).unsqueeze(1)  # (batch, 1, from, to)
        x = self.emb_dropout(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.last_layernorm(x)

    def forward(
        self,
        seq: Tensor,
        pos: Tensor,
        neg: Tensor,
        token_type: Tensor,
        seq_feat: FeatureRows,
        pos_feat: FeatureRows,
        neg_feat: FeatureRows,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits of what came next and of something else, each (batch, length)."""
        x = self.log2feats(seq, token_type, seq_feat)
        positive = self.embed_items(pos.to(self.device), pos_feat)
        negative = self.embed_items(neg.to(self.device), neg_feat)
        return (x * positive).sum(2), (x * negative).sum(2)

    @torch.inference_mode()
    def predict(self, seq: Tensor, seq_feat: FeatureRows, token_type: Tensor) -> np.ndarray:
        """Return the users' embeddings, float32 (batch, units)."""
        seq, token_type, seq_feat = cut_padding(token_type, seq, token_type, seq_feat)
        return self.log2feats(seq, token_type, seq_feat)[:, -1].float().cpu().numpy()

    @torch.inference_mode()
    def predict_items(self, item_ids: Sequence[int], features: Sequence[dict[str, Any]]) -> np.ndarray:
        """Return the items' embeddings, float32 (items, units)."""
        items = torch.tensor([item_ids], device=self.device)
        return self.embed_items(items, [features])[0].float().cpu().numpy()


def cut_padding(token_type: Tensor, *columns: Any) -> list[Any]:
    """Cut off the first columns, where all sequences of the batch are padding: most of maxlen, and of the time."""
    first = int((token_type != 0).any(dim=0).int().argmax())
    return [column[:, first:] if isinstance(column, Tensor) else [row[first:] for row in column] for column in columns]
