"""`semid pin`: let one table, or one lineage, alone answer for a data directory."""

from pathlib import Path

import click

from semid_dataset.cache import folders
from semid_dataset.cache.cache import Cache
from semid_dataset.cli._answer import Answer, command, context, count, word
from semid_dataset.cli._arguments import options
from semid_dataset.errors import ParentError, PinError, StoreError

__all__ = ["pin"]


@command
@click.argument("data_dir", metavar="DATA_DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("wanted", metavar="[LINEAGE[@N]]", required=False)
@options(click.option("--off", is_flag=True, help="Take the pin away."))
def pin(data_dir: Path, wanted: str | None, off: bool) -> Answer:
    """
    Let one table alone answer for a data directory, also where newer ones lie beside it.

    LINEAGE@N is table N of a lineage: nothing is added to it. LINEAGE alone is the newest of it, and new items are
    added as ever. See `semid history` for what is there. SEMID_PIN does the same for one process, and comes first.
    """
    cache = Cache.of(context().environment, data_dir, may_write=True)
    if off:
        where = cache.pin(data_dir, "")
        lines = ["Nothing was pinned." if where is None else f"Taken away: {where}"]
        return Answer({"pinned": None, "path": where}, lines, [f"semid info {word(data_dir)}     to see what answers"])
    if wanted is None:
        pinned = cache.pinned(data_dir)
        return Answer({"pinned": pinned or None}, [f"Pinned: {pinned}" if pinned else "Nothing is pinned."])
    name, at, number = wanted.partition("@")
    if not folders.LINEAGE_NAME.fullmatch(name) or (at and not number.isdecimal()):
        raise PinError(f"'{wanted}' names no table: give LINEAGE or LINEAGE@N, as semid history lists them.")
    table = cache.named(name, int(number)) if at else cache.newest(name)
    if table is None:
        raise ParentError(f"'{wanted}' is in no cache folder of '{data_dir}'. Nothing was pinned. See semid history.")
    where = cache.pin(data_dir, wanted)
    if where is None:
        raise StoreError(f"No cache folder takes the pin of '{data_dir}'. Set SEMID_PIN={wanted} instead.")
    lines = [f"Pinned {wanted}: {count(len(table), 'item')}, digest {table.digest[:12]}", f"Noted in {where}"]
    return Answer(
        {"pinned": wanted, "path": where, "items": len(table), "digest": table.digest},
        lines,
        [f"semid pin {word(data_dir)} --off     to let the newest answer again"],
    )
