"""
What main.py and infer.py share: the flags and environment variables of the official baseline, logging, checkpoints.

With nothing set, everything happens in ./sample: the data are made there, and checkpoint and results lie beside them.
"""

import argparse
import io
import logging
import os
import re
import sys
import warnings
from pathlib import Path

import torch
from sample import make_sample

from semid_dataset.errors import SemanticIdWarning

SAMPLE = Path("sample")
TABLE_NAME = "semid_table.safetensors"  # the semantic IDs, beside the weights that were trained on them
DIGEST_NAME = f"{TABLE_NAME}.digest"  # what is to be expected of them, as `table.save` writes it


def get_args() -> argparse.Namespace:
    """
    Parse the official flags; their defaults are the configuration.

    They belong to the recommender. Its batch_size, lr and num_epochs are not the RQ-VAE's, which has
    its own settings in `SemanticIdConfig`.
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch_size", default=128, type=int)
    parser.add_argument("--lr", default=0.001, type=float, help="training only")
    parser.add_argument("--maxlen", default=101, type=int)

    parser.add_argument("--hidden_units", default=32, type=int)
    parser.add_argument("--num_blocks", default=1, type=int)
    parser.add_argument("--num_epochs", default=3, type=int, help="training only")
    parser.add_argument("--num_heads", default=1, type=int)
    parser.add_argument("--dropout_rate", default=0.2, type=float, help="training only")
    parser.add_argument("--l2_emb", default=0.0, type=float, help="training only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--inference_only", action="store_true", help="main.py: validate, do not train")
    parser.add_argument("--state_dict_path", default=None, type=Path, help="weights to start from")
    parser.add_argument("--norm_first", action="store_true")
    parser.add_argument("--num_workers", default=0, type=int, help="of the DataLoader")

    # Strings, as everywhere: they are keys of mm_emb_dict and parts of folder names.
    parser.add_argument("--mm_emb_id", nargs="+", default=["81"], choices=[str(fid) for fid in range(81, 87)])
    return parser.parse_args()


def log_to_stdout() -> None:
    """Show the package's log lines: bare, as the original printed them, and in order with our own prints."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not, and needs nothing
        sys.stdout.reconfigure(line_buffering=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    # Degrading is logged and warned about; who shows the log needs the warning no second time.
    warnings.filterwarnings("ignore", category=SemanticIdWarning)


def data_path(variable: str, part: str) -> Path:
    """Return the folder that the environment variable names, by default `part` of a sample made here and now."""
    return Path(os.environ[variable]) if os.environ.get(variable) else make_sample(SAMPLE) / part


def output_path(variable: str, data: Path, name: str) -> Path:
    """Return the folder that the environment variable names, by default `name` (in the sample, if that is used)."""
    if os.environ.get(variable):
        return Path(os.environ[variable])
    return SAMPLE / name if data.parent == SAMPLE else Path(name)


def expected_digest(parent: "Path | None") -> "str | None":
    """Return the digest of the table that weights were trained on; None where they are older than such notes."""
    note = None if parent is None else parent.parent / DIGEST_NAME
    return note.read_text().strip() if note is not None and note.exists() else None


def find_weights(path: Path) -> Path | None:
    """Find the weights in a checkpoint's folder, or in the last `global_step*` of its parent; None: there are none."""
    if path.is_file():
        return path
    if weights := sorted(path.glob("*.pt")):
        return weights[0]
    return max(path.glob("global_step*/*.pt"), key=_age, default=None)


def _age(weights: Path) -> tuple[int, float]:
    step = re.match(r"global_step(\d+)", weights.parent.name)
    return int(step[1]) if step else -1, weights.stat().st_mtime
