#!/usr/bin/env python3
"""
Predict the next item of every user in EVAL_DATA_PATH with the model in MODEL_OUTPUT_PATH.

    python examples/evalu/infer.py

Results go to EVAL_RESULT_PATH. The first run makes the semantic IDs, every later one loads them. A
model from main.py brings the IDs that it was trained on: known items keep them, and new items get
theirs from the same codebooks. MODEL_OUTPUT_PATH is a checkpoint's folder or the parent of several.
With nothing set, a sample is made in ./sample, and a model that was never trained does the predicting,
unless main.py has trained one there.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

# main.py's folder: common.py, model.py and sample.py lie there.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import TABLE_NAME, data_path, expected_digest, find_weights, get_args, log_to_stdout, output_path
from evalu.dataset import MyTestDataset, known_values, save_emb
from model import BaselineModel

from semid_dataset import SemanticIdTable
from semid_dataset._messages import tell

TOP_K = 10
CANDIDATES_AT_ONCE = 1024
QUERIES_AT_ONCE = 256


def infer() -> tuple[list[list[int]], list[str]]:
    """
    Do the whole job.

    Returns:
        The creative ids of each user's best ten, and the users' names.
    """
    args = get_args()
    log_to_stdout()
    data = data_path("EVAL_DATA_PATH", "eval")
    results = output_path("EVAL_RESULT_PATH", data, "result")
    results.mkdir(parents=True, exist_ok=True)
    weights = args.state_dict_path or find_weights(output_path("MODEL_OUTPUT_PATH", data, "ckpt"))
    parent = weights.parent / TABLE_NAME if weights and (weights.parent / TABLE_NAME).exists() else None

    test_dataset = MyTestDataset(data, args)
    # Before the DataLoader, which hands a copy of the dataset to its workers: IDs made later would not be in it.
    started = time.perf_counter()
    semantic_id_dict = test_dataset.prepare_semantic_ids(parent=parent, expect=expected_digest(parent))
    generation_time = time.perf_counter() - started
    print(
        f"semantic_id_dict: {len(semantic_id_dict)} items, status {semantic_id_dict.status} "
        f"({semantic_id_dict.reason}), {generation_time:.2f} s"
    )
    test_loader = DataLoader(
        test_dataset, batch_size=args.batch_size, num_workers=args.num_workers, collate_fn=test_dataset.collate_fn
    )
    model = load_model(test_dataset, semantic_id_dict, args, weights)
    if parent:
        compare_ids(semantic_id_dict, SemanticIdTable.open(parent))
    elif weights:
        print(f"WARNING: no {TABLE_NAME} beside the weights: the model knows no IDs, or others than these")

    users: list[str] = []
    queries = []
    for seq, token_type, seq_feat, user_id in test_loader:
        queries.append(model.predict(seq, seq_feat, token_type))
        users += user_id
    query_emb = np.concatenate(queries)
    item_emb, retrieval_ids, retrieve_id2creative_id = get_candidate_emb(test_dataset, model, data)

    top = retrieval_ids[search(query_emb, item_emb)]
    save_emb(query_emb, results / "query.fbin")
    save_emb(item_emb, results / "embedding.fbin")
    save_emb(retrieval_ids[:, None], results / "id.u64bin")
    save_emb(top, results / "id100.u64bin")
    # The misspelt name is the official one.
    (results / "retrive_id2creative_id.json").write_text(json.dumps(retrieve_id2creative_id))

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(f"Predicted for {len(users)} users; results in {results}")
    print(f"Semantic ID generation time: {generation_time:.2f} s; peak memory: {peak / 1e6:.0f} MB")
    return [[retrieve_id2creative_id[rid] for rid in row] for row in top.tolist()], users


def load_model(dataset: MyTestDataset, table: SemanticIdTable, args, weights: Path | None) -> BaselineModel:
    """Build the model and load its weights; without any it stays untrained, and that is said."""
    state = torch.load(weights, map_location=args.device, weights_only=True) if weights else {}
    statistics = dict(dataset.feat_statistics)
    codebook_sizes = list(table.codebook_sizes) if table else []
    if state:
        # Sizes that the data do not tell, where there are no embeddings, are those of training.
        trained_sizes = [len(value) - 1 for name, value in state.items() if name.startswith("semantic_emb.")]
        if trained_sizes and codebook_sizes and not fits(codebook_sizes, trained_sizes):
            sys.exit(
                f"The model was trained on semantic IDs of {trained_sizes} codes per level, {table.path} holds "
                f"{codebook_sizes}. Nothing was predicted. Remove semantic_id_dict.json from the data "
                "directory, or train again with these IDs."
            )
        codebook_sizes = trained_sizes
        for fid in dataset.feature_types["item_emb"]:
            if fid not in dataset.mm_emb_dict and f"emb_transform.{fid}.weight" in state:
                statistics[fid] = state[f"emb_transform.{fid}.weight"].shape[1]
                dataset.feature_default_value[fid] = np.zeros(statistics[fid], dtype=np.float32)
    torch.manual_seed(0)  # for a model that stays without weights
    model = BaselineModel(dataset.usernum, dataset.itemnum, statistics, dataset.feature_types, args, codebook_sizes)
    if state:
        print(f"Loading {weights}")
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            sys.exit(f"'{weights}' does not fit. Give the flags of its training, such as --mm_emb_id. {error}")
    else:
        print("WARNING: no checkpoint (MODEL_OUTPUT_PATH): this model was never trained, its predictions mean nothing")
    return model.to(args.device).eval()


def fits(sizes: list[int], trained_sizes: list[int]) -> bool:
    """Whether the model has a row for every code; a hand-made file may use fewer codes than there are."""
    return len(sizes) == len(trained_sizes) and all(a <= b for a, b in zip(sizes, trained_sizes, strict=True))


def compare_ids(table: SemanticIdTable, parent: SemanticIdTable) -> None:
    """Say how many items still have the ID that the model was trained on: all of them, or predictions are off."""
    kept = int((table.codes(parent.keys_array) == parent.codes_array).all(axis=1).sum()) if table else 0
    print(f"{'' if kept == len(parent) else 'WARNING: '}{kept} of {len(parent)} trained items have their trained ID")


def get_candidate_emb(
    dataset: MyTestDataset, model: BaselineModel, data: Path
) -> tuple[np.ndarray, np.ndarray, dict[int, int]]:
    """
    Embed the candidates of predict_set.jsonl, and report how many of them have a semantic ID.

    Returns:
        Embeddings, float32 (candidates, units); retrieval ids, uint64 (candidates,); and the way
        back from retrieval id to creative id.
    """
    semantic_id_dict = dataset.semantic_id_dict
    known = 0
    embeddings, retrieve_id2creative_id = [], {}
    with (data / "predict_set.jsonl").open() as file:
        for lines in batches(file):
            item_ids, features = [], []
            for line in lines:
                candidate = json.loads(line)
                creative_id = candidate["creative_id"]
                # The feature semantic_id is semantic_id_dict[creative_id] where present, else the default.
                features.append(dataset.fill_creative(known_values(candidate["features"]), creative_id))
                known += creative_id in semantic_id_dict
                item_ids.append(dataset.indexer["i"].get(creative_id, 0))
                retrieve_id2creative_id[candidate["retrieval_id"]] = creative_id
            embeddings.append(model.predict_items(item_ids, features))
    total = len(retrieve_id2creative_id)
    tell("coverage", total=total, known=known, share=known / total if total else 0.0)
    return np.concatenate(embeddings), np.array(list(retrieve_id2creative_id), dtype=np.uint64), retrieve_id2creative_id


def batches(lines: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(lines, CANDIDATES_AT_ONCE)):
        yield batch


def search(queries: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the rows of the ten items with the largest products, best first: int64 (queries, 10)."""
    vectors = torch.from_numpy(items).T
    k = min(TOP_K, len(items))
    parts = torch.from_numpy(queries).split(QUERIES_AT_ONCE)
    return torch.cat([(part @ vectors).topk(k).indices for part in parts]).numpy()


if __name__ == "__main__":
    top10s, user_list = infer()
    print(f"For example, {user_list[0]}: {top10s[0]}")
