"""A dataset in a pickle or a copy: small, in every state of its attribute, and served wherever its IDs still are."""

import copy
import multiprocessing
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from world import ITEM0, SMALL, BareDataset, SmallDataset, SmallMixinDataset, make_data, vectors_of, write_embeddings

from semid_dataset import LazySemanticIds, SemanticIdTable
from semid_dataset.errors import SemanticIdWarning, TableError


class OfficialDataset(BareDataset):
    """Its loader assigns an empty dict where it finds no file, as the original's does."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.semantic_id_dict: Any = {}


class AssigningDataset(OfficialDataset):
    semantic_id_dict = LazySemanticIds(config=SMALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose IDs lie in its own cache; for this module trained once."""
    data = make_data(tmp_path_factory.mktemp("trained") / "data")
    assert SmallDataset(data).semantic_id_dict.status == "trained"
    return data


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, which is the same data set."""
    return Path(shutil.copytree(trained, tmp_path / "data"))


def never_read(data: Path) -> Any:
    return SmallDataset(data)


def assigned_nothing(data: Path) -> Any:
    return AssigningDataset(data)


def resolved(data: Path) -> Any:
    dataset = SmallDataset(data)
    _ = dataset.semantic_id_dict
    return dataset


def deleted(data: Path) -> Any:
    dataset = resolved(data)
    del dataset.semantic_id_dict
    return dataset


def after_an_error(data: Path) -> Any:
    dataset = SmallDataset(data)
    folder = dataset.data_dir
    del dataset.data_dir
    with pytest.raises(RuntimeError, match="needs the attributes"):
        _ = dataset.semantic_id_dict
    dataset.data_dir = folder
    return dataset


def prepared_with_settings(data: Path) -> Any:
    dataset = SmallMixinDataset(data)
    dataset.prepare_semantic_ids(config=SMALL)
    return dataset


def pickled_before(data: Path) -> Any:
    return pickle.loads(pickle.dumps(resolved(data)))


STATES = [never_read, assigned_nothing, resolved, deleted, after_an_error, prepared_with_settings, pickled_before]
WAYS: dict[str, Callable[[Any], Any]] = {
    **{f"protocol {number}": lambda d, n=number: pickle.loads(pickle.dumps(d, n)) for number in range(6)},  # type: ignore[misc]
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "twice": lambda d: pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(d)))),
    "a copy of a pickle": lambda d: copy.copy(pickle.loads(pickle.dumps(d))),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", STATES)
def test_a_copy_of_a_dataset_in_any_state_has_the_ids(
    state: Callable[[Path], Any], way: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known or not yet known, the copy reads what is in the cache; nothing is made there."""
    digest = resolved(data).semantic_id_dict.digest
    dataset = state(data)
    monkeypatch.setenv("ALLOW_SEMANTIC_GENERATION", "0")
    assert WAYS[way](dataset).semantic_id_dict.digest == digest
    assert dataset.semantic_id_dict.digest == digest


@pytest.mark.parametrize("state", STATES)
def test_a_dataset_in_any_state_is_small_in_a_pickle(state: Callable[[Path], Any], data: Path) -> None:
    """A place, a digest and a lineage."""
    dataset = state(data)
    assert len(pickle.dumps(dataset)) < 1000


def test_cloudpickle_takes_every_state(data: Path) -> None:
    """joblib, Ray and Dask send datasets with it, with classes that no module holds."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle is not installed")

    class Local(BareDataset):
        semantic_id_dict = LazySemanticIds(config=SMALL)

    digest = resolved(data).semantic_id_dict.digest
    for dataset in [Local(data), *(state(data) for state in STATES)]:
        assert pickle.loads(cloudpickle.dumps(dataset)).semantic_id_dict.digest == digest


def _answer(answers: Any, dataset: Any) -> None:
    warnings.simplefilter("ignore")
    try:
        answers.put(dataset.semantic_id_dict.digest)
    except BaseException as error:
        answers.put(repr(error))


def answers_of(method: str, datasets: list[Any]) -> list[Any]:
    """Send datasets to one process each; they run side by side."""
    context: Any = multiprocessing.get_context(method)
    queues = [context.Queue() for _ in datasets]
    children = [
        context.Process(target=_answer, args=(queue, dataset)) for queue, dataset in zip(queues, datasets, strict=True)
    ]
    for child in children:
        child.start()
    found = [queue.get(timeout=50) for queue in queues]
    for child in children:
        child.join(10)
    return found


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_of_every_kind_take_every_state(method: str, data: Path) -> None:
    """What a DataLoader with that start method does."""
    digest = resolved(data).semantic_id_dict.digest
    assert set(answers_of(method, [state(data) for state in STATES])) == {digest}


def test_a_pinned_mapping_stays_pinned(data: Path) -> None:
    """Also against another parent or other settings."""
    dataset = SmallMixinDataset(data)
    dataset.semantic_id_dict = {7: [1, 2, 3]}
    for way in WAYS.values():
        twin = way(dataset)
        assert twin.prepare_semantic_ids(config=SMALL)[7] == [1, 2, 3]
        assert twin.semantic_id_dict.status == "pregenerated"


def test_a_copy_keeps_its_own_table(data: Path) -> None:
    """What is assigned to a copy, or deleted of it, is the copy's."""
    dataset = resolved(data)
    table = dataset.semantic_id_dict
    for way in (copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))):
        twin = way(dataset)
        twin.semantic_id_dict = {7: [1, 2, 3]}
        assert dataset.semantic_id_dict is table
        assert len(twin.semantic_id_dict) == 1
    pair = copy.copy(pickle.loads(pickle.dumps(dataset)))
    other = copy.copy(pair)
    del pair.semantic_id_dict
    assert other.semantic_id_dict.digest == table.digest


@pytest.mark.filterwarnings("ignore::semid_dataset.SemanticIdWarning")
def test_default_ids_travel_as_such(tmp_path: Path) -> None:
    """They stick until `del`, with their reason, and take no more room than others."""
    dataset = SmallDataset(tmp_path)
    table = dataset.semantic_id_dict
    twin = pickle.loads(pickle.dumps(dataset))
    assert (twin.semantic_id_dict.status, twin.semantic_id_dict.reason) == ("default", table.reason)
    assert twin.semantic_id_dict[5] == [0, 0, 0]
    assert len(pickle.dumps(dataset)) < 1500  # the reason names the folder


def test_a_pickle_opens_no_file_before_it_is_asked(data: Path) -> None:
    """Workers that never look anything up cost nothing, and a dataset whose IDs are gone can be loaded and told so."""
    text = pickle.dumps(resolved(data))
    shutil.rmtree(data)
    twin = pickle.loads(text)
    with pytest.raises(TableError, match=r"is not at .* any more"):
        _ = twin.semantic_id_dict
    del twin.semantic_id_dict
    with pytest.warns(SemanticIdWarning):
        assert twin.semantic_id_dict.status == "default"


def extended(data: Path) -> SemanticIdTable:
    """Add items, as a trainer does while workers live."""
    write_embeddings(data, vectors_of(220))
    table = SmallDataset(data).semantic_id_dict
    assert table.status == "extended"
    return table


@pytest.mark.parametrize("what", ["dataset", "table"])
def test_a_table_that_was_pruned_is_answered_by_one_that_grew_from_it(what: str, data: Path) -> None:
    """A trainer extends and prunes, and its next workers start from an older pickle."""
    dataset = resolved(data)
    table = dataset.semantic_id_dict
    text = pickle.dumps(dataset if what == "dataset" else table)
    newer = extended(data)
    assert table.path is not None
    table.path.unlink()
    twin = pickle.loads(text)
    found = twin.semantic_id_dict if what == "dataset" else twin
    assert (len(found), found.digest, found[ITEM0 + 5]) == (220, newer.digest, table[ITEM0 + 5])
    assert found.status == "cached"
    assert pickle.loads(pickle.dumps(twin if what == "table" else found)).digest == newer.digest


def test_a_copied_directory_serves_what_was_pickled(data: Path, tmp_path: Path) -> None:
    """Of the old place nothing is left; the dataset says where its data lie now."""
    dataset = resolved(data)
    table = dataset.semantic_id_dict
    wanted = table.to_dict()
    text = pickle.dumps(dataset)
    data.rename(tmp_path / "moved")
    twin = pickle.loads(text)
    twin.data_dir = tmp_path / "moved"
    assert twin.semantic_id_dict.to_dict() == wanted
    assert str(tmp_path / "moved") in str(twin.semantic_id_dict.path)


def test_another_cache_that_holds_the_ids_serves_them(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first folder is gone; a copy of it is named by the environment."""
    dataset = resolved(data)
    text, wanted = pickle.dumps(dataset), dataset.semantic_id_dict.digest
    shutil.move(data / ".semantic_ids", tmp_path / "shared")
    monkeypatch.setenv("SEMID_CACHE_DIR", str(tmp_path / "shared"))
    assert pickle.loads(text).semantic_id_dict.digest == wanted


def test_other_ids_never_stand_in_for_pickled_ones(data: Path) -> None:
    """The cache was made anew from other vectors: an error says what answers there, and how to take it."""
    dataset = resolved(data)
    text = pickle.dumps(dataset)
    shutil.rmtree(data / ".semantic_ids")
    (data / "semantic_id_dict.json").unlink()
    write_embeddings(data, vectors_of(200, seed=9))
    other = resolved(data).semantic_id_dict
    twin = pickle.loads(text)
    with pytest.raises(TableError, match=rf"{other.digest[:12]}.*has not those IDs.*del dataset\.semantic_id_dict"):
        _ = twin.semantic_id_dict
    del twin.semantic_id_dict
    assert twin.semantic_id_dict.digest == other.digest


def test_a_pickled_dataset_never_trains_to_find_its_table(data: Path) -> None:
    """IDs that were sent are looked for; making others would not be them."""
    text = pickle.dumps(resolved(data))
    shutil.rmtree(data / ".semantic_ids")
    (data / "semantic_id_dict.json").unlink()
    with pytest.raises(TableError, match="Nor do this dataset's caches answer"):
        _ = pickle.loads(text).semantic_id_dict
    assert not (data / ".semantic_ids").exists()


def test_a_file_that_was_extended_in_its_place_serves(data: Path, tmp_path: Path) -> None:
    """A checkpoint's table is saved again after an extension: all IDs of the pickle are in it."""
    place = tmp_path / "checkpoint" / "semid_table.safetensors"
    resolved(data).semantic_id_dict.save(place)
    table = SemanticIdTable.open(place)
    wanted, text = table[ITEM0 + 3], pickle.dumps(table)
    del table
    extended(data).save(place)
    assert pickle.loads(text)[ITEM0 + 3] == wanted


def test_a_relative_place_is_found_from_another_folder(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spawned children may start elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEMID_CACHE_DIR", "cache")
    dataset = resolved(data)
    text, wanted = pickle.dumps(dataset), dataset.semantic_id_dict.digest
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.delenv("SEMID_CACHE_DIR")
    assert pickle.loads(text).semantic_id_dict.digest == wanted
