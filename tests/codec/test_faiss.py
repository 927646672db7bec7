"""faiss's residual quantizer: trained by faiss, and then no longer in need of it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semid_dataset import SemanticIdTable, fit
from semid_dataset.codec._faiss import Faiss, FaissQuantizer
from semid_dataset.errors import ConfigError, EmbeddingError


def vectors(n: int = 400) -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(40, 8))[random.integers(0, 40, n)] + 0.2 * random.normal(size=(n, 8))).astype("f4")


def test_without_faiss_training_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """That says what to install."""
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r'needs faiss: pip install "semid_dataset\[faiss\]"'):
        fit(vectors(), algorithm="faiss", levels=2, codes=16)


def test_a_table_of_its_kind_needs_no_faiss(tmp_path: Path) -> None:
    """Served without torch, encoded and extended without faiss: here of codebooks that something else made."""
    given = fit(vectors()[:300], algorithm="rqkmeans", levels=2, codes=16, unique=False, device="cpu")
    quantizer = FaissQuantizer(
        given.quantizer.codebooks, beam=5, mean=given.quantizer.mean, scale=given.quantizer.scale
    )
    from semid_dataset.build.lineages import open_parent

    table = open_parent(quantizer, mmap=False).extend(vectors(), range(400), force=True)
    path = table.save(tmp_path / "t.safetensors")
    np.save(tmp_path / "x.npy", vectors())
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np\n"
        "from semid_dataset import SemanticIdTable\n"
        "table = SemanticIdTable.open(sys.argv[1]); first = table[7]\n"
        "assert 'torch' not in sys.modules\n"
        "x = np.load(sys.argv[2])\n"
        "grown = table.extend(np.concatenate([x, x[:50] + 0.01]), range(450), force=True)\n"
        "assert grown[7] == first and len(grown) == 450, len(grown)\n"
        "print(table.quantizer.kind, grown.quantizer.kind, table.encode(x).sum())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == ["faiss", "faiss", str(quantizer.encode(vectors()).sum())]


def test_faiss_trains_what_we_encode(tmp_path: Path) -> None:
    """Our codes are no worse than those of faiss itself, and the table comes back from its file."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed: the extra 'faiss'")
    table = fit(vectors(), algorithm="faiss", levels=2, codes=16, unique=False)
    again = SemanticIdTable.open(table.save(tmp_path / "t.safetensors"))
    assert isinstance(again.quantizer, FaissQuantizer)
    assert table.digest == fit(vectors(), algorithm="faiss", levels=2, codes=16, unique=False).digest
    theirs = faiss.ResidualQuantizer(8, 2, 4)
    theirs.train(vectors())
    error = float(np.square(vectors() - theirs.decode(theirs.compute_codes(vectors()))).sum())
    ours = float(np.square(vectors() - again.quantizer.decode(again.codes_array)).sum())
    assert ours < 1.2 * error
    assert table.quality["relative_mse_held_out"] is not None


def test_what_faiss_cannot_do_is_said() -> None:
    """Sizes that are no powers of two, and fewer vectors than codes."""
    pytest.importorskip("faiss", reason="faiss is not installed: the extra 'faiss'")
    with pytest.raises(ConfigError, match="powers of two"):
        fit(vectors(), algorithm="faiss", levels=2, codes=10)
    with pytest.raises(EmbeddingError, match="as many vectors as a level has codes"):
        fit(vectors(20), algorithm=Faiss(max_beam_size=2), levels=2, codes=64)
