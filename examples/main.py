#!/usr/bin/env python3
"""
Train the baseline recommender on TRAIN_DATA_PATH, with semantic IDs as features.

    python examples/main.py

Weights go to TRAIN_CKPT_PATH/global_step<n>.valid_loss=<x>/model.pt, and beside them the semantic IDs they were
trained on, as semid_table.safetensors: inference must give every item the ID it has here. With
TRAIN_LOG_PATH set, train.log holds one line of JSON per step. With nothing set, all is in ./sample.
"""

import json
import os
import random
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from common import TABLE_NAME, data_path, expected_digest, get_args, log_to_stdout, output_path
from evalu.dataset import MyTrainDataset
from model import BaselineModel, cut_padding
from torch.utils.data import DataLoader, random_split

from semid_dataset import SemanticIdTable

SEED = 0
SHARE_VALID = 0.1


def main() -> None:
    args = get_args()
    log_to_stdout()
    random.seed(SEED)
    torch.manual_seed(SEED)
    data = data_path("TRAIN_DATA_PATH", "train")
    checkpoints = output_path("TRAIN_CKPT_PATH", data, "ckpt")
    dataset = MyTrainDataset(data, args)

    # Before the DataLoader: its workers would each have to make the IDs, and must not. Weights that
    # go on with their training keep the IDs that lie beside them.
    start = args.state_dict_path
    parent = start.parent / TABLE_NAME if start and (start.parent / TABLE_NAME).exists() else None
    table = dataset.prepare_semantic_ids(parent=parent, expect=expected_digest(parent))
    print(f"Semantic IDs of {len(table):,} items: {table.status} ({table.reason})")

    rest = round(SHARE_VALID * len(dataset))
    train_part, valid_part = random_split(dataset, [len(dataset) - rest, rest])
    loading = {"batch_size": args.batch_size, "num_workers": args.num_workers, "collate_fn": dataset.collate_fn}
    train_loader = DataLoader(train_part, shuffle=True, **loading)
    valid_loader = DataLoader(valid_part, **loading)

    torch.set_num_threads(1)  # for a model this small, threads mostly wait: 9 steps took 12 s on 2 busy cores, else 0.4
    codebook_sizes = table.codebook_sizes if table else ()  # default IDs teach nothing
    model = BaselineModel(
        dataset.usernum, dataset.itemnum, dataset.feat_statistics, dataset.feature_types, args, codebook_sizes
    ).to(args.device)
    if start:
        model.load_state_dict(torch.load(start, map_location=args.device, weights_only=True))
    if args.inference_only:
        print(f"Validation loss: {validate(model, valid_loader):.4f}")
        return

    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, betas=(0.9, 0.98))
    step = 0
    with ExitStack() as files:
        log = None
        if os.environ.get("TRAIN_LOG_PATH"):
            folder = Path(os.environ["TRAIN_LOG_PATH"])
            folder.mkdir(parents=True, exist_ok=True)
            log = files.enter_context((folder / "train.log").open("a", buffering=1))
        for epoch in range(1, args.num_epochs + 1):
            model.train()
            for batch in train_loader:
                loss = batch_loss(model, batch)
                if args.l2_emb:
                    loss = loss + args.l2_emb * model.item_emb.weight.norm()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1
                if log:
                    entry = {"global_step": step, "loss": loss.item(), "epoch": epoch, "time": time.time()}
                    log.write(json.dumps(entry) + "\n")
            valid_loss = validate(model, valid_loader)
            print(f"Epoch {epoch}/{args.num_epochs}: step {step}, validation loss {valid_loss:.4f}")
            save(model, table, checkpoints / f"global_step{step}.valid_loss={valid_loss:.4f}")


def batch_loss(model: BaselineModel, batch) -> torch.Tensor:
    """Binary cross-entropy of what came next against something else, where an item came next."""
    token_type = batch[3]
    seq, pos, neg, token_type, next_token_type, _, seq_feat, pos_feat, neg_feat = cut_padding(token_type, *batch)
    positive, negative = model(seq, pos, neg, token_type, seq_feat, pos_feat, neg_feat)
    counts = (next_token_type == 1).to(model.device)
    softplus = torch.nn.functional.softplus
    return (softplus(-positive[counts]) + softplus(negative[counts])).sum() / counts.sum().clamp(min=1)


@torch.inference_mode()
def validate(model: BaselineModel, loader: DataLoader) -> float:
    model.eval()
    losses = [batch_loss(model, batch).item() for batch in loader]
    return sum(losses) / max(1, len(losses))


def save(model: BaselineModel, table: SemanticIdTable, folder: Path) -> None:
    """Write the weights and the whole table they were trained on; the folder appears when both are there."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    torch.save(model.state_dict(), partial / "model.pt")
    if table:  # default IDs hold nothing to continue from
        table.save(partial / TABLE_NAME)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    print(f"Saved {folder}")


if __name__ == "__main__":
    main()
