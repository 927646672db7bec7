"""Arrow's own files: Feather, IPC files, and streams as Hugging Face's datasets store them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from semid_dataset.errors import EmbeddingError
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.inputs.formats._arrow import arrow_errors, arrow_module, begin, choose, take_batch
from semid_dataset.protocols import Partition, Sink

__all__ = ["ArrowFile"]

WHAT = "a file of Arrow"


class ArrowFile:
    """See `protocols.Format`."""

    name: ClassVar[str] = "arrow"
    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc")
    starts: ClassVar[bytes] = rb"ARROW1|\xff\xff\xff\xff..\x00\x00"

    def size(self, whole: Partition, dim: int) -> int:
        """Return as many rows as would fill the file."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return file.size // (4 * dim)

    def partitions(self, whole: Partition, rows: int) -> list[Partition]:
        """Return all of it: where its batches begin stands nowhere but before each."""
        with ForwardFile(Path(whole.path), hashed=False) as file:
            return [replace(whole, bytes=file.size)]

    def read(self, part: Partition, sink: Sink, progress: Callable[[int], None], *, digest: bool = False) -> str:
        """Send the rows to `sink`, a record batch at a time."""
        path = Path(part.path)
        with ForwardFile(path, hashed=digest, seekable=True) as file:
            with _opened(file) as (schema, batches):
                taken = choose(schema, part, sink)
                number = 0
                for batch in batches:
                    # Offsets and indices come as they lie in the file: one that leads out of it kills the process.
                    batch.validate(full=True)
                    begin(batch, taken.vectors, sink, path)
                    for first in range(0, batch.num_rows, sink.batch):
                        some = batch.slice(first, sink.batch)
                        take_batch(some, taken, sink, path, number)
                        number += some.num_rows
                    progress(batch.nbytes)
            return file.finish()


@contextmanager
def _opened(file: ForwardFile) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open a file, or a stream, with pyarrow, whose errors become ours: its schema and its record batches."""
    arrow = arrow_module("pyarrow", file.path, WHAT)
    ipc = arrow_module("pyarrow.ipc", file.path, WHAT)
    # Read, not mapped: a file that is cut off while it is mapped kills the process.
    with arrow_errors(file.path, WHAT), arrow.OSFile(file.name) as source:
        if file.at(0, min(6, file.size)) == b"ARROW1":
            reader = ipc.open_file(source)
            yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            reader = ipc.open_stream(source)
            yield reader.schema, _all_of(reader, source, file)


def _all_of(reader: Any, source: Any, file: ForwardFile) -> Iterator[Any]:
    """Yield the record batches of a stream, and make sure that it is all that the file holds."""
    yield from reader
    if (rest := file.size - source.tell()) > 0:
        raise EmbeddingError(
            f"'{file.path}' goes on for {rest} bytes after its stream of Arrow, as where two are written into one. "
            "Nothing was read. Write each into a file of its own."
        )
