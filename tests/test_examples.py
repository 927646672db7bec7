"""The examples do what the README says of them, each in a process of its own, on a small sample."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faultkit import need, need_root, read_only

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ITEMS, USERS = 400, 60
SMALL = ["--maxlen", "20", "--hidden_units", "16"]
REAL = os.environ.get("SEMID_REAL_DATA")


def run(script: str, cwd: Path, *flags: str, status: int = 0, **variables: str | Path) -> str:
    """Run an example in `cwd` with a cache of its own and no other setting; return what it printed."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "SEMID_LANG": "en",
        "SEMID_CACHE_DIR": str(cwd / "cache"),
        **{name: str(value) for name, value in variables.items()},
    }
    command = [sys.executable, str(EXAMPLES / script), *flags]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def infer(cwd: Path, *flags: str, **variables: str | Path) -> str:
    return run("evalu/infer.py", cwd, *SMALL, *flags, **variables)


def answered(output: str) -> str:
    """Return the status that infer.py printed."""
    match = re.search(r"^semantic_id_dict: \d+ items, status (\w+)", output, re.MULTILINE)
    assert match, output
    return match[1]


def coverage(output: str) -> float:
    """Return the share that infer.py printed, 0…1."""
    match = re.search(r"candidates: (\d+)\n  with a semantic_id: (\d+)\n  coverage: ([\d.]+)%", output)
    assert match, output
    total, known, share = int(match[1]), int(match[2]), float(match[3])
    assert share == pytest.approx(100 * known / total, abs=0.01)
    return known / total


def read_bin(path: Path, dtype: str) -> np.ndarray[Any, Any]:
    rows, columns = np.fromfile(path, dtype="<u4", count=2).tolist()
    values = np.fromfile(path, dtype=dtype, offset=8)
    return values.reshape(rows, columns)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run("sample.py", folder, "sample", "--items", str(ITEMS), "--users", str(USERS))
    return folder / "sample"


@pytest.fixture
def data(sample: Path, tmp_path: Path) -> Path:
    """The sample's evaluation data, to write to."""
    return shutil.copytree(sample / "eval", tmp_path / "eval")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> tuple[Path, str, str]:
    """A folder in which infer.py ran twice with nothing set, and what it printed."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(sample, folder / "sample")
    return folder, infer(folder), infer(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A folder in which main.py ran with nothing set."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(sample, folder / "sample")
    run("main.py", folder, *SMALL, "--num_epochs", "2", TRAIN_LOG_PATH=folder / "log")
    return folder


def test_sample_has_the_official_layout(sample: Path) -> None:
    """Ids, types and offsets are as in the real files, and evaluation has items that training has not."""
    indexer = pickle.loads((sample / "eval" / "indexer.pkl").read_bytes())
    for folder, name in (("train", "seq"), ("eval", "predict_seq")):
        offsets = pickle.loads((sample / folder / f"{name}_offsets.pkl").read_bytes())
        data = (sample / folder / f"{name}.jsonl").read_bytes()
        assert len(offsets) == USERS
        assert [json.loads(data[offset:].split(b"\n", 1)[0]) for offset in offsets] == [
            json.loads(line) for line in data.splitlines()
        ]
        profile = json.loads(data.splitlines()[1])[-1]
        assert profile[1] is None
        assert profile[2]
        vectors = pickle.loads((sample / folder / "creative_emb" / "emb_81_32.pkl").read_bytes())
        assert {(type(cid), vector.shape, vector.dtype.name) for cid, vector in vectors.items()} == {
            (int, (32,), "float32")
        }
        part = sample / folder / "creative_emb" / "emb_82_1024" / "part-00000.json"
        first = json.loads(part.read_bytes().splitlines()[0])
        assert np.linalg.norm(first["emb"]) == pytest.approx(1, abs=1e-3)
        assert len(first["emb"]) == 1024
    candidates = [json.loads(line) for line in (sample / "eval" / "predict_set.jsonl").read_bytes().splitlines()]
    assert [candidate["retrieval_id"] for candidate in candidates] == list(range(ITEMS))
    new = [candidate for candidate in candidates if candidate["creative_id"] not in indexer["i"]]
    assert 0 < len(new) < ITEMS // 10
    assert {type(candidate["features"]["117"]) for candidate in new} == {str}


def test_sample_is_made_once(tmp_path: Path) -> None:
    """A complete sample is left alone, and so is a folder that holds something else."""
    run("sample.py", tmp_path, "sample", "--items", "20", "--users", "10")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    run("sample.py", tmp_path, "sample", "--items", "30", "--users", "10")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    run_failing = [sys.executable, str(EXAMPLES / "sample.py"), "sample/train"]
    done = subprocess.run(run_failing, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "FileExistsError" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_infer_alone_generates_then_loads(alone: tuple[Path, str, str]) -> None:
    """The first run makes the IDs and says that the model is untrained; the second loads them."""
    _, first, second = alone
    assert answered(first) == "trained"
    assert "Successfully generated semantic_id features" in first
    assert "WARNING: no checkpoint" in first
    assert answered(second) == "cached"
    assert "Successfully loaded semantic_id features" in second
    assert coverage(first) == coverage(second) > 0.9
    assert re.search(r"generation time: [\d.]+ s; peak memory: \d+ MB", second)


def test_infer_writes_the_official_files(alone: tuple[Path, str, str]) -> None:
    """Headers count what follows, and the ten best are those of an exact search."""
    result = alone[0] / "sample" / "result"
    queries, items = read_bin(result / "query.fbin", "<f4"), read_bin(result / "embedding.fbin", "<f4")
    ids, top = read_bin(result / "id.u64bin", "<u8"), read_bin(result / "id100.u64bin", "<u8")
    assert (queries.shape, items.shape, ids.shape, top.shape) == ((USERS, 16), (ITEMS, 16), (ITEMS, 1), (USERS, 10))
    assert np.isfinite(queries).all()
    creative_ids = json.loads((result / "retrive_id2creative_id.json").read_text())
    assert sorted(map(int, creative_ids)) == sorted(ids[:, 0].tolist()) == list(range(ITEMS))
    scores = queries @ items.T
    best = -np.sort(-scores, axis=1)[:, :10]
    np.testing.assert_allclose(np.take_along_axis(scores, top.astype(np.int64), axis=1), best, atol=1e-5)


def test_main_leaves_the_table_beside_the_weights(trained: Path) -> None:
    """Each checkpoint has weights and table, nothing half-written stays, and every step is logged."""
    checkpoints = sorted((trained / "sample" / "ckpt").iterdir())
    assert [re.match(r"global_step(\d+)\.valid_loss=[\d.]+$", folder.name) is not None for folder in checkpoints] == [
        True,
        True,
    ]
    names = {"model.pt", "semid_table.safetensors", "semid_table.safetensors.digest"}
    assert {path.name for path in checkpoints[0].iterdir()} == names
    steps = [json.loads(line)["global_step"] for line in (trained / "log" / "train.log").read_bytes().splitlines()]
    assert steps == [1, 2]


def test_infer_keeps_the_ids_of_training(trained: Path, data: Path, tmp_path: Path) -> None:
    """The table of the checkpoint is extended by the new items, then found again; either MODEL_OUTPUT_PATH serves."""
    places = {"EVAL_DATA_PATH": data, "EVAL_RESULT_PATH": tmp_path / "result"}
    checkpoints = trained / "sample" / "ckpt"
    last = max(checkpoints.iterdir(), key=lambda folder: int(re.findall(r"\d+", folder.name)[0]))

    first = infer(tmp_path, **places, MODEL_OUTPUT_PATH=checkpoints)
    assert answered(first) == "extended"
    assert f"{last.name}/model.pt" in first
    kept = re.search(r"^(\d+) of (\d+) trained items have their trained ID", first, re.MULTILINE)
    assert kept
    assert kept[1] == kept[2] != "0"
    users = read_bin(tmp_path / "result" / "query.fbin", "<f4")

    second = infer(tmp_path, "--num_workers", "2", **places, MODEL_OUTPUT_PATH=last)
    assert answered(second) == "cached"
    assert coverage(first) == coverage(second) > 0.9
    np.testing.assert_array_equal(read_bin(tmp_path / "result" / "query.fbin", "<f4"), users)


def test_infer_keeps_the_ids_of_training_behind_a_closed_gate(trained: Path, data: Path, tmp_path: Path) -> None:
    """Where nothing may be made, the checkpoint's table still serves the items that it knows."""
    output = infer(
        tmp_path,
        EVAL_DATA_PATH=data,
        EVAL_RESULT_PATH=tmp_path / "result",
        MODEL_OUTPUT_PATH=trained / "sample" / "ckpt",
        ALLOW_SEMANTIC_GENERATION="0",
    )
    assert answered(output) == "stale"
    kept = re.search(r"^(\d+) of (\d+) trained items have their trained ID", output, re.MULTILINE)
    assert kept
    assert kept[1] == kept[2]
    assert coverage(output) == int(kept[2]) / ITEMS


@pytest.mark.parametrize("trouble", ["gate closed", "no embeddings", "unreadable embeddings"])
def test_infer_goes_on_without_ids(data: Path, tmp_path: Path, trouble: str) -> None:
    """Whatever keeps IDs from being made, inference ends well, and says that nothing has one."""
    variables: dict[str, str | Path] = {"EVAL_DATA_PATH": data, "EVAL_RESULT_PATH": tmp_path / "result"}
    if trouble == "gate closed":
        variables["ALLOW_SEMANTIC_GENERATION"] = "false"
    elif trouble == "no embeddings":
        shutil.rmtree(data / "creative_emb")
    else:
        (data / "creative_emb" / "emb_81_32.pkl").write_bytes(b"not a pickle")
    output = infer(tmp_path, **variables)
    assert answered(output) == "default"
    assert ("Warning: no multi-modal feature folder" in output) == (trouble == "no embeddings")
    assert coverage(output) == 0
    assert read_bin(tmp_path / "result" / "id100.u64bin", "<u8").shape == (USERS, 10)


def test_train_rqvae_makes_the_file_that_inference_uses(data: Path, tmp_path: Path) -> None:
    """IDs made ahead serve under a closed gate, once their file lies in the data directory."""
    flags = ["--num_quantizers", "3", "--num_epochs", "2", "--mm_emb_id", "81", "82"]
    closed = {"ALLOW_SEMANTIC_GENERATION": "false"}
    run("train_rqvae.py", tmp_path, "--data_dir", str(data), "--output_dir", "made", *flags, **closed)
    made = json.loads((tmp_path / "made" / "semantic_id_dict.json").read_text())
    assert {len(codes) for codes in made.values()} == {3}
    assert (tmp_path / "made" / "semid_table.safetensors").exists()

    shutil.copy(tmp_path / "made" / "semantic_id_dict.json", data)
    output = infer(tmp_path, EVAL_DATA_PATH=data, EVAL_RESULT_PATH=tmp_path / "result", **closed)
    assert answered(output) in {"pregenerated", "cached", "stale"}
    assert coverage(output) == len(made) / ITEMS


def test_train_rqvae_raises(tmp_path: Path) -> None:
    """Asked for explicitly, IDs that cannot be made are an error."""
    command = [sys.executable, str(EXAMPLES / "train_rqvae.py"), "--data_dir", "nothing", "--output_dir", "made"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "NoEmbeddingsError" in done.stderr


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in {"evalu", "common", "sample", "model"}]:
        del sys.modules[name]


@pytest.mark.usefixtures("importable")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_see_the_same_ids(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Sequences read by two workers carry the IDs that this process reads, shifted by one."""
    from evalu.dataset import MyTestDataset
    from torch.utils.data import DataLoader

    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    dataset = MyTestDataset(data, Namespace(maxlen=20, mm_emb_id=["81"]))
    table = dataset.prepare_semantic_ids()
    rows = [dataset[row] for row in range(len(dataset))]
    loader = DataLoader(
        dataset, batch_size=16, num_workers=2, collate_fn=dataset.collate_fn, multiprocessing_context=start
    )
    seen = [features for _, _, batch, _ in loader for user in batch for features in user]
    expected = [features for _, _, user, _ in rows for features in user]
    assert [features["semantic_id"] for features in seen] == [features["semantic_id"] for features in expected]
    shifted = {tuple(code + 1 for code in codes) for codes in table.values()}
    used = {tuple(features["semantic_id"]) for features in seen} - {(0,)}
    assert used
    assert used <= shifted


@pytest.mark.usefixtures("importable")
def test_items_new_to_training_have_features_in_sequences(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An item without re-id keeps its embedding and its semantic ID, found by its creative id."""
    from evalu.dataset import MyTestDataset

    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "cache"))
    dataset = MyTestDataset(data, Namespace(maxlen=40, mm_emb_id=["81"]))
    table = dataset.prepare_semantic_ids()
    checked = 0
    for row in range(USERS):
        seq, token_type, seq_feat, _ = dataset[row]
        items = [record[1] for record in dataset._load_user_data(row) if record[1]]
        items = items[:-1] if items else []
        for at, item in zip(np.flatnonzero(token_type == 1).tolist(), items, strict=True):
            if item > dataset.itemnum and item in table:
                assert seq[at] == 0
                assert seq_feat[at]["semantic_id"] == [code + 1 for code in table[item]]
                assert seq_feat[at]["81"] is dataset.mm_emb_dict["81"].get(item, seq_feat[at]["81"])
                checked += 1
    assert checked


@pytest.fixture(scope="module")
def beauty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REAL:
        pytest.skip("SEMID_REAL_DATA is not set: no real data to run the examples on")
    out = tmp_path_factory.mktemp("real") / "beauty"
    command = [sys.executable, str(Path(REAL) / "tools" / "beauty_to_taac.py"), str(out), "--users", "300"]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("features", "least"), [(["81"], 0.95), (["81", "82"], 0.998)])
def test_real_items_keep_their_ids_from_training_to_inference(
    beauty: Path, tmp_path: Path, features: list[str], least: float
) -> None:
    """Inference extends what training left, by the new items only, and finds it again."""
    from semid_dataset import SemanticIdTable

    shutil.copytree(beauty, tmp_path / "data")
    data = tmp_path / "data"
    flags = [*SMALL, "--mm_emb_id", *features]
    run("main.py", tmp_path, *flags, "--num_epochs", "1", TRAIN_DATA_PATH=data / "train")
    weights = next((tmp_path / "ckpt").iterdir())
    places = {"EVAL_DATA_PATH": data / "eval", "MODEL_OUTPUT_PATH": tmp_path / "ckpt"}
    first, second = (run("evalu/infer.py", tmp_path, *flags, **places) for _ in range(2))
    assert (answered(first), answered(second)) == ("extended", "cached")
    assert coverage(first) == coverage(second) >= least
    at_training = SemanticIdTable.open(weights / "semid_table.safetensors")
    now = json.loads((data / "eval" / "semantic_id_dict.json").read_text())
    assert len(now) > len(at_training) > 0
    assert all(now[str(item)] == codes for item, codes in at_training.items())


@pytest.mark.timeout(400)
def test_real_items_get_ids_with_nothing_trained_before(beauty: Path, tmp_path: Path) -> None:
    """infer.py alone makes the IDs of real items, then loads them; in Chinese it says what the original said."""
    shutil.copytree(beauty / "eval", tmp_path / "eval")
    first, second = (infer(tmp_path, EVAL_DATA_PATH=tmp_path / "eval") for _ in range(2))
    assert (answered(first), answered(second)) == ("trained", "cached")
    assert coverage(first) == coverage(second) >= 0.95


def test_inference_runs_for_a_user_without_name_or_home_on_read_only_data(sample: Path) -> None:
    """As `docker --user` starts it: real IDs, and on the second start they come from the cache that is named."""
    need_root()
    need("setpriv")
    with tempfile.TemporaryDirectory(prefix="semid-test-") as made:  # pytest's own folders belong to its user alone
        public = Path(made)
        data = Path(shutil.copytree(sample / "eval", public / "eval"))
        for folder in ("work", "cache"):
            (public / folder).mkdir()
            os.chown(public / folder, 54321, 54321)
        public.chmod(0o755)
        with read_only(data):
            starts = []
            for _ in range(2):
                command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
                done = subprocess.run(
                    [*command, sys.executable, str(EXAMPLES / "evalu/infer.py"), *SMALL],
                    cwd=public / "work",
                    env={  # and nothing else: no HOME, no USER
                        "PATH": os.environ["PATH"],
                        "PYTHONPATH": str(ROOT),
                        "OMP_NUM_THREADS": "1",
                        "SEMID_LANG": "en",
                        "SEMID_CACHE_DIR": str(public / "cache"),
                        "EVAL_DATA_PATH": str(data),
                        "EVAL_RESULT_PATH": str(public / "work" / "result"),
                        "MODEL_OUTPUT_PATH": str(public / "work" / "ckpt"),
                    },
                    capture_output=True,
                    text=True,
                    timeout=240,
                    check=False,
                )
                assert done.returncode == 0, done.stdout + done.stderr
                starts.append(done.stdout)
            assert not (data / "semantic_id_dict.json").exists()
        assert [answered(output) for output in starts] == ["trained", "cached"]
        assert coverage(starts[0]) == coverage(starts[1]) > 0.9
        assert list((public / "cache").glob("v1/*/0.safetensors"))
        assert not list(public.rglob("~*"))
