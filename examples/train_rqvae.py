#!/usr/bin/env python3
"""
Make the semantic IDs of a data directory ahead of time.

    python train_rqvae.py --data_dir D --output_dir O
    cp O/semantic_id_dict.json D/

writes O/semantic_id_dict.json, which inference uses where it lies in the data directory, and the
model: O/semid_table.safetensors holds the codebooks and the same IDs. Whoever runs this wants IDs:
ALLOW_SEMANTIC_GENERATION is not asked, and what goes wrong is an error.
"""

import argparse
from pathlib import Path

from common import log_to_stdout

from semid_dataset import SemanticIdConfig, generate_semantic_ids


def main() -> None:
    defaults = SemanticIdConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="holds creative_emb/")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--mm_emb_id", nargs="+", default=["81"], help="several are carried into one space")
    parser.add_argument("--num_quantizers", type=int, default=defaults.num_quantizers, help="levels of an ID")
    parser.add_argument("--codebook_size", type=int, default=defaults.codebook_size, help="codes per level")
    parser.add_argument("--commitment_cost", type=float, default=defaults.commitment_cost)
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size)
    parser.add_argument("--num_epochs", type=int, default=defaults.num_epochs)
    parser.add_argument("--lr", type=float, default=defaults.lr)
    parser.add_argument("--device", default=defaults.device, help="auto, cpu, cuda, cuda:1, ...")
    args = parser.parse_args()

    log_to_stdout()
    config = SemanticIdConfig(
        num_quantizers=args.num_quantizers,
        codebook_size=args.codebook_size,
        commitment_cost=args.commitment_cost,
        batch_size=args.batch_size,
        num_epochs=args.num_epochs,
        lr=args.lr,
        device=args.device,
    )
    table = generate_semantic_ids(args.data_dir, args.mm_emb_id, config=config, output_dir=args.output_dir)
    print(f"{len(table)} semantic IDs of {table.levels} levels in {args.output_dir}")


if __name__ == "__main__":
    main()
