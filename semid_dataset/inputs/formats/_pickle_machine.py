"""
Read a pickle of `{id: numpy array}` without unpickling it.

A pickle is a program for a stack machine, and `pickle.load` runs it: whoever wrote the file decides
what is called. This reader is a machine of its own. It knows the opcodes, and a handful of names
that numpy writes; those stand for themselves on its stack and are never looked up, imported or called.
Any other name, and any opcode that could do more than build a value, is refused. There is nothing in
here that a file could make run.

Its memory is bounded too: values are spans of the file until they are needed, what cannot become a row
is dropped where it appears, and the memo forgets what no pickler refers back to.

It is fast where it matters. numpy writes the same bytes around every array; once one item has been
read opcode by opcode, those that follow are compared with it and copied out by the thousand.

Source of the opcodes: CPython's Lib/pickletools.py; of the calls: `ndarray.__reduce__` and `__reduce_ex__`.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import EmbeddingError, UnsafePickleError
from semid_dataset.inputs._file import ForwardFile
from semid_dataset.objects import item_of
from semid_dataset.protocols import Sink

__all__ = ["read_array_pickle"]

MAX_STACK = 200_000  # values at once; picklers flush their dicts every 1,000 items
MAX_MARKS = 1_000
MAX_TUPLE = 32  # leaves; numpy's largest state has a dozen
MAX_LINE = 1 << 10  # bytes of a name
MAX_DIM = 65_536  # of a vector, as in a data directory
MAX_INT = 24  # digits or bytes of an integer that is looked at
MAX_TEXT = 1 << 10  # bytes of a text that is looked at
PINNED = 1 << 16  # memo entries kept for good: the first ones, where shared names and dtypes are
RECENT = 1 << 16  # and twice as many as these of the latest
MAX_RUNS = 200_000  # that arrays can be recalled from; 5 million items of a pickler's make 20,000
FIRST_RUN, LONGEST_RUN = 16, 8_192  # items compared at once

ENCODED = 2  # bytes of UTF-8 that protocol 2 writes for one, at most
TEXTS = {"text", "string", "line"}
BYTES = {"bytes", "string", "latin"}

MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
NAMES: dict[tuple[str, str], str] = {
    **{(module, "_reconstruct"): "reconstruct" for module in MODULES},
    **{(module, "scalar"): "scalar" for module in MODULES},
    **{(module, "_frombuffer"): "frombuffer" for module in NUMERIC},
    ("numpy", "ndarray"): "array type",
    ("numpy", "memmap"): "array type",
    ("numpy.core.memmap", "memmap"): "array type",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "ordered dict",
    ("collections", "defaultdict"): "default dict",
    # What a defaultdict may have been made with. It is never called.
    **{
        (module, name): "factory"
        for module in ("builtins", "__builtin__")
        for name in ("dict", "list", "tuple", "set", "int", "float", "str")
    },
    **{(module, "bytes"): "bytes" for module in ("builtins", "__builtin__")},
}


def read_array_pickle(file: ForwardFile, sink: Sink) -> None:
    """
    Send every item of the dict in `file` to `sink`, in order.

    Keys are ints, strings, numpy's or floats that are whole numbers; values are arrays of numbers whose one axis longer
    than one has `sink.dim` entries, or as many as the first. Whatever else is found as a value is rejected as a row.

    Raises:
        UnsafePickleError: it asks for something other than numpy arrays.
        EmbeddingError: it is cut off, damaged, or no dict.
    """
    _Machine(file, sink).run()


# What can lie on the stack, besides int, float, bool, None and small tuples of such.


@dataclass(frozen=True)
class _Span:
    """
    Bytes of the file, and what they are.

    "bytes"; "text", UTF-8; "string", of Python 2, either of the two; "latin", bytes that were written as a text;
    "line", an argument.
    """

    kind: str
    start: int
    size: int


@dataclass(frozen=True)
class _Name:
    """A known global, as a word. It stands for nothing."""

    role: str
    name: str


@dataclass
class _Other:
    """A value that can be no row and no part of one: all that is kept is what to call it."""

    what: str


@dataclass
class _Float(_Other):
    """A float can be no row, but perhaps an id."""

    number: float


@dataclass
class _Word(_Other):
    """A text of numpy's."""

    text: str


class _Dict(_Other):
    pass


@dataclass
class _Dtype:
    code: str
    order: Literal["<", ">", "=", "|"] = "="
    built: bool = False

    def numpy_type(self) -> np.dtype[Any] | None:
        """Return it if it is a type of real numbers."""
        if not re.fullmatch(r"[iu][1248]|f[248]|f16", self.code):
            return None
        try:
            made: np.dtype[Any] = np.dtype(self.code).newbyteorder(self.order)
        except TypeError:  # f16, on machines without it
            return None
        return made


@dataclass
class _Array:
    shape: tuple[Any, ...] = ()
    dtype: _Dtype | None = None
    data: _Span | None = None


@dataclass(frozen=True)
class _Template:
    """An item's bytes; where key, data and memo indices are, others may differ."""

    item: NDArray[np.uint8]
    head: bytes  # up to the key's value
    same: list[slice]
    key: tuple[int, int, str]  # offset, size, kind
    data: tuple[int, int]
    array: _Array
    dtype: np.dtype[Any]
    puts: list[int]  # offsets of memo indices, in order
    memoized: int  # memo entries per item
    array_slot: int | None  # which of them is the array


@dataclass(frozen=True)
class _Run:
    """Memo entries of items that were copied out at once."""

    first: int
    memoized: int
    items: int
    slot: int | None
    start: int  # offset of the first item's data in the file
    stride: int
    array: _Array


@dataclass
class _Item:
    """What is known about the item that is being read, to make a template of it."""

    start: int = -1
    regular: bool = True
    key: tuple[int, int, str] | None = None
    puts: list[tuple[int, int, int, object]] = field(default_factory=list)  # field's offset, size; index; value


class _Machine:
    def __init__(self, file: ForwardFile, sink: Sink) -> None:
        self.file = file
        self.sink = sink
        self.where = file.path.name
        self.buffer = b""
        self.base = 0  # offset of the buffer in the file
        self.pos = 0  # in the buffer
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.root: _Dict | None = None
        self.memo: dict[int, Any] = {}
        self.recent: dict[int, Any] = {}
        self.older: dict[int, Any] = {}
        self.memo_high = -1
        self.memo_mode = 0  # opcode that fills the memo: MEMOIZE counts, PUT names
        self.runs: list[_Run] = []
        self.run_starts: list[int] = []
        self.item = _Item()
        self.complete = False  # an array was just finished, possibly a row
        self.templates: dict[int, _Template] = {}

    # Reading.

    def run(self) -> None:
        handlers = self._handlers()
        while True:
            if self.pos >= len(self.buffer):
                self._refill(1)
            code = self.buffer[self.pos]
            if self.complete and code not in b"\x94qr":
                self.complete = False
                if self._row_boundary():
                    continue
            self.pos += 1
            if code == 0x2E:  # STOP
                break
            handler = handlers[code]
            if handler is None:
                self._damaged(f"byte {code:#04x} is no opcode")
            handler()
            if len(self.stack) > MAX_STACK:
                self._damaged(f"more than {MAX_STACK} values wait on its stack")
        if self.root is None or len(self.stack) != 1 or self.stack[0] is not self.root:
            found = self._describe(self.stack[-1]) if self.stack else "nothing"
            raise EmbeddingError(f"'{self.file.path}' holds {found}, not a dict of arrays.")
        if (self.buffer[self.pos :] or self.file.read()).strip():
            self._damaged("it goes on after its end, as after a second pickle.dump; write one dict of all items")

    def _refill(self, count: int) -> None:
        """Have `count` bytes at the position."""
        parts = [self.buffer[self.pos :]]
        have = len(parts[0])
        self.base += self.pos
        self.pos = 0
        while have < count:
            chunk = self.file.read()
            if not chunk:
                self._damaged("it ends too early")
            parts.append(chunk)
            have += len(chunk)
        self.buffer = b"".join(parts)

    def _take(self, count: int) -> bytes:
        if self.pos + count > len(self.buffer):
            self._refill(count)
        start = self.pos
        self.pos += count
        return self.buffer[start : self.pos]

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _span(self, kind: str, count: int) -> _Span:
        """Step over `count` bytes, however many: they stay in the file."""
        start = self.base + self.pos
        if start + count > self.file.size:
            self._damaged(f"it announces {count} bytes where {self.file.size - start} are left")
        while count > len(self.buffer) - self.pos:
            count -= len(self.buffer) - self.pos
            self.base += len(self.buffer)
            self.buffer, self.pos = self.file.read(), 0
            if not self.buffer:
                self._damaged("it ends too early")
        self.pos += count
        return _Span(kind, start, self.base + self.pos - start)

    def _line(self) -> _Span:
        """Step over a line; the span leaves its end out."""
        searched = 0
        while (end := self.buffer.find(b"\n", self.pos + searched)) < 0:
            searched = len(self.buffer) - self.pos
            if searched > MAX_LINE:
                self._damaged(f"a text argument is longer than {MAX_LINE} bytes")
            self._refill(searched + 1)
        span = _Span("line", self.base + self.pos, end - self.pos)
        self.pos = end + 1
        return span

    def _bytes(self, span: _Span) -> bytes:
        """Return what a span stands for."""
        start = span.start - self.base
        if start >= 0 and start + span.size <= len(self.buffer):
            raw = self.buffer[start : start + span.size]
        else:
            raw = self.file.at(span.start, span.size)
        try:
            if span.kind == "latin":
                return raw.decode("utf-8", "surrogatepass").encode("latin-1")
        except UnicodeError:
            self._damaged("a text cannot be decoded")
        return raw

    def _text(self, value: object) -> str | None:
        """Return a short text, or None if it is none."""
        if isinstance(value, _Word):
            return value.text
        if isinstance(value, _Span) and value.size <= MAX_TEXT and value.kind in TEXTS:
            try:
                return self._bytes(value).decode()
            except UnicodeDecodeError:
                self._damaged("a text is not UTF-8")
        return None

    # Refusing.

    def _damaged(self, what: str) -> NoReturn:
        raise EmbeddingError(
            f"'{self.file.path}' cannot be read as a pickle of arrays: {what} (at byte {self.base + self.pos})."
        )

    def _unsafe(self, what: str) -> NoReturn:
        raise UnsafePickleError(
            f"'{self.file.path}' is refused: at byte {self.base + self.pos} it asks for {what}, and a pickle may "
            "only hold a dict of numpy arrays here. Nothing of it was run. "
            "Write it again as a pickle of {int: float32 array}, as JSON lines or as parquet."
        )

    def _describe(self, value: object) -> str:  # noqa: PLR0911 - one line per kind of value
        if isinstance(value, _Other):
            return value.what
        if isinstance(value, _Span):
            return "bytes" if value.kind in {"bytes", "latin"} else "a text"
        if isinstance(value, _Name):
            return f"the name {value.name}"
        if isinstance(value, _Array):
            return "an array"
        if isinstance(value, tuple):
            return "a tuple"
        if isinstance(value, _Dtype):
            return "a dtype"
        return "None" if value is None else f"the {type(value).__name__} {value}"

    # The stack.

    def _pop_mark(self) -> list[Any]:
        if not self.marks:
            self._damaged("it refers to a mark that is not there")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def _push_tuple(self, values: tuple[Any, ...]) -> None:
        leaves = len(values)
        for value in values:
            if isinstance(value, tuple):
                leaves += _leaves(value)
        self.stack.append(values if leaves <= MAX_TUPLE else _Other("a tuple"))

    def _push_dict(self) -> None:
        new = _Dict("a dict")
        if not self.stack and not self.marks and self.root is None:
            self.root = new
        self.stack.append(new)

    # The memo.

    def _put(self, index: int, mode: int, field_size: int) -> None:
        if not self.stack:
            self._damaged("it remembers a value from an empty stack")
        if self.memo_mode not in {0, mode}:
            self._damaged("it mixes MEMOIZE and PUT")
        self.memo_mode = mode
        value = self.stack[-1]
        if index in self.memo or len(self.memo) < PINNED:
            self.memo[index] = value
        else:
            if len(self.recent) >= RECENT:
                self.older, self.recent = self.recent, {}
            self.recent[index] = value
        self.memo_high = max(self.memo_high, index)
        self.item.puts.append((self.base + self.pos - field_size, field_size, index, value))
        if len(self.item.puts) > 64:
            self.item.puts.clear()
            self.item.regular = False

    def _get(self, index: int) -> None:
        for memo in (self.memo, self.recent, self.older):
            if index in memo:
                self.stack.append(memo[index])
                break
        else:
            self.stack.append(self._from_run(index))
        self._finished(self.stack[-1])

    def _from_run(self, index: int) -> _Array:
        at = bisect_right(self.run_starts, index) - 1
        if at >= 0:
            run = self.runs[at]
            row, slot = divmod(index - run.first, run.memoized)
            if row < run.items and slot == run.slot and run.array.data is not None:
                data = _Span("bytes", run.start + row * run.stride, run.array.data.size)
                return _Array(run.array.shape, run.array.dtype, data)
        if index > self.memo_high:
            self._damaged(f"it recalls value {index}, which it never stored")
        self._damaged(f"it recalls value {index}, which is too far back. Save it again with pickle protocol 4 or 5")

    # Rows.

    def _finished(self, value: object) -> None:
        """Note that `value`, just pushed, may complete a row."""
        if isinstance(value, _Array) and value.data is not None:
            self.complete = True

    def _row_boundary(self) -> bool:
        """Send the items that lie complete on the stack to the sink; go on by templates. Whether it moved on."""
        stack = self.stack
        if self.marks != [1] or stack[0] is not self.root or not len(stack) % 2:
            return False
        if len(stack) == 3 and self.item.regular:
            self._learn()
        self._emit(1)
        self._next_item()
        return self._copy_run()

    def _next_item(self) -> None:
        self.item = _Item(self.base + self.pos)

    def _emit(self, first: int) -> None:
        """Send pairs from stack position `first` on to the sink."""
        pairs = self.stack[first:]
        del self.stack[first:]
        for at in range(0, len(pairs), 2):
            self._send(pairs[at], pairs[at + 1])

    def _send(self, key: object, value: object) -> None:
        name: int | str | None = key if isinstance(key, int) and not isinstance(key, bool) else self._text(key)
        if name is None:
            number = item_of(key.number) if isinstance(key, _Float) else None
            if not isinstance(key, _Float) or not isinstance(number, int):
                self.sink.reject(f"{self.where}: {self._describe(key)} as an id")
                return
            self.sink.ids.note(key.number, number, f"'{self.file.path}'")
            name = number
        vector = self._vector(value) if isinstance(value, _Array) else f"{self._describe(value)} instead of an array"
        if isinstance(vector, str):
            self.sink.reject(f"{self.where}, item {name}: {vector}")
        else:
            self.sink.add_one(name, vector, self.where)

    def _vector(self, array: _Array) -> NDArray[Any] | str:
        """Return the array as a vector (dim,), or why it is none."""
        dtype = array.dtype.numpy_type() if array.dtype else None
        if array.dtype is None or array.data is None:
            return "an array without content"
        if dtype is None:
            return f"an array of type {array.dtype.code!r}"
        if not self.sink.dim and (size := _longest(array.shape)) and _is_vector(array.shape, size):
            self.sink.begin(size)
        if not _is_vector(array.shape, self.sink.dim):
            where = f"where {self.sink.dim} numbers are wanted" if self.sink.dim else "instead of a vector"
            return f"an array of shape {array.shape} {where}"
        wanted = dtype.itemsize * self.sink.dim
        raw = self._bytes(array.data) if array.data.size <= ENCODED * wanted else b""
        if len(raw) != wanted:
            return f"an array of {len(raw)} bytes where {wanted} are wanted"
        return np.frombuffer(raw, dtype)

    # Runs of like items.

    def _learn(self) -> None:
        """Make a template of the item that lies on the stack, if others can look like it."""
        item, array = self.item, self.stack[2]
        start = item.start - self.base
        if start < 0 or item.key is None or array.data is None or array.data.kind != "bytes":
            return
        vector = self._vector(array)
        if isinstance(vector, str):
            return
        size = self.pos - start
        data = (array.data.start - item.start, array.data.size)
        key = (item.key[0] - item.start, item.key[1], item.key[2])
        if not (key[0] > 0 and key[0] + key[1] <= data[0] and data[0] + data[1] <= size):
            return
        puts, slot = [], None
        for number, (offset, width, index, value) in enumerate(item.puts):
            if index != item.puts[0][2] + number or width not in {0, 4}:
                return  # indices that do not count up, or of the short form
            if width:
                puts.append(offset - item.start)
            if value is array:
                slot = number
        fields = sorted([key[:2], data, *((offset, 4) for offset in puts)])
        same, at = [], 0
        for offset, width in fields:
            if offset > at:
                same.append(slice(at, offset))
            at = offset + width
        if at < size:
            same.append(slice(at, size))
        raw = self.buffer[start : self.pos]
        self.templates[raw[0]] = _Template(
            item=np.frombuffer(raw, np.uint8),
            head=raw[: key[0]],
            same=same,
            key=key,
            data=data,
            array=array,
            dtype=vector.dtype,
            puts=puts,
            memoized=len(item.puts),
            array_slot=slot,
        )

    def _copy_run(self) -> bool:
        """Copy items that look like a template out, as many as follow. Whether there were any."""
        moved = False
        wanted = FIRST_RUN
        while self.pos < len(self.buffer):
            template = self.templates.get(self.buffer[self.pos])
            if template is None or not self.buffer.startswith(template.head, self.pos):
                break
            stride = len(template.item)
            fit = min(wanted, (len(self.buffer) - self.pos) // stride)
            if not fit:
                break
            count = self._match(template, fit)
            if not count:
                break
            moved = True  # and what follows may look like another template
            wanted = min(2 * wanted, LONGEST_RUN) if count == fit else max(FIRST_RUN, 2 * count)
        if moved:
            self._next_item()
        return moved

    def _match(self, template: _Template, fit: int) -> int:
        stride = len(template.item)
        table = np.frombuffer(self.buffer, np.uint8, fit * stride, self.pos).reshape(fit, stride)
        alike = np.ones(fit, bool)
        for part in template.same:
            alike &= (table[:, part] == template.item[part]).all(axis=1)
        base = self.memo_high + 1
        for number, offset in enumerate(template.puts):
            found = np.ascontiguousarray(table[:, offset : offset + 4]).view("<u4")[:, 0]
            alike &= found == base + number + template.memoized * np.arange(fit)
        offset, width, kind = template.key
        keys, valid = _keys(table[:, offset : offset + width], kind)
        alike &= valid
        count = fit if bool(alike.all()) else int(np.argmin(alike))
        if not count:
            return 0
        first, last = template.data[0], sum(template.data)
        vectors = np.ascontiguousarray(table[:count, first:last]).view(template.dtype)
        self.sink.add(keys[:count], vectors, self.where)
        if template.memoized:
            start = self.base + self.pos + first
            self.runs.append(_Run(base, template.memoized, count, template.array_slot, start, stride, template.array))
            self.run_starts.append(base)
            if len(self.runs) > MAX_RUNS:  # of single items, as no pickler makes them by the hundred thousand
                del self.runs[: MAX_RUNS // 2], self.run_starts[: MAX_RUNS // 2]
            self.memo_high = base + template.memoized * count - 1
        self.pos += count * stride
        return count

    # Opcodes.

    def _handlers(self) -> list[Callable[[], None] | None]:
        """Return what to do for each opcode; None for a byte that is none."""
        push = self.stack.append
        known: dict[bytes, Callable[[], None]] = {
            b"\x94": lambda: self._put(self.memo_high + 1, 0x94, 0),  # MEMOIZE
            b"q": lambda: self._put(self._number(1), 1, 1),  # BINPUT
            b"r": lambda: self._put(self._number(4), 1, 4),  # LONG_BINPUT
            b"h": lambda: self._get(self._number(1)),  # BINGET
            b"j": lambda: self._get(self._number(4)),  # LONG_BINGET
            b"K": lambda: self._integer("u", 1),  # BININT1
            b"M": lambda: self._integer("u", 2),  # BININT2
            b"J": lambda: self._integer("i", 4),  # BININT
            b"\x8a": lambda: self._integer("i", self._number(1)),  # LONG1
            b"\x8b": lambda: self._integer("i", self._number(4)),  # LONG4
            b"G": lambda: push(_Float("a float", float(np.frombuffer(self._take(8), ">f8")[0]))),  # BINFLOAT
            b"N": lambda: push(None),
            b"\x88": lambda: push(True),
            b"\x89": lambda: push(False),
            b"C": lambda: self._push_span("bytes", 1),  # SHORT_BINBYTES
            b"B": lambda: self._push_span("bytes", 4),  # BINBYTES
            b"\x8e": lambda: self._push_span("bytes", 8),  # BINBYTES8
            b"\x96": lambda: self._push_span("bytes", 8),  # BYTEARRAY8
            b"\x8c": lambda: self._push_span("text", 1),  # SHORT_BINUNICODE
            b"X": lambda: self._push_span("text", 4),  # BINUNICODE
            b"\x8d": lambda: self._push_span("text", 8),  # BINUNICODE8
            b"U": lambda: self._push_span("string", 1),  # SHORT_BINSTRING
            b"T": lambda: self._push_span("string", 4),  # BINSTRING
            b"(": self._op_mark,
            b")": lambda: push(()),
            b"\x85": lambda: self._push_tuple(tuple(self._pop_many(1))),
            b"\x86": lambda: self._push_tuple(tuple(self._pop_many(2))),
            b"\x87": lambda: self._push_tuple(tuple(self._pop_many(3))),
            b"t": lambda: self._push_tuple(tuple(self._pop_mark())),
            b"}": self._push_dict,
            b"d": self._op_dict,
            b"s": lambda: self._op_set_items(self._pop_many(2)),
            b"u": lambda: self._op_set_items(self._pop_mark()),
            b"]": lambda: push(_Other("a list")),
            b"l": lambda: (self._pop_mark(), push(_Other("a list")))[1],
            b"a": lambda: self._op_append(self._pop_many(1)),
            b"e": lambda: self._op_append(self._pop_mark()),
            b"\x8f": lambda: push(_Other("a set")),
            b"\x90": lambda: self._op_append(self._pop_mark()),  # ADDITEMS
            b"\x91": lambda: (self._pop_mark(), push(_Other("a set")))[1],  # FROZENSET
            b"0": self._op_pop,
            b"1": lambda: (self._pop_mark(), None)[1],
            b"2": lambda: push(self._top()),
            b"c": self._op_global,
            b"\x93": self._op_stack_global,
            b"R": self._op_reduce,
            b"b": self._op_build,
            b"\x80": self._op_proto,
            b"\x95": self._op_frame,
            b"P": lambda: self._unsafe("a persistent id"),
            b"Q": lambda: self._unsafe("a persistent id"),
            b"\x82": lambda: self._unsafe("an extension code of copyreg"),
            b"\x83": lambda: self._unsafe("an extension code of copyreg"),
            b"\x84": lambda: self._unsafe("an extension code of copyreg"),
            b"i": lambda: self._unsafe(f"an instance of {self._name(self._line())}.{self._name(self._line())}"),
            b"o": lambda: self._unsafe("an instance of a class"),
            b"\x81": lambda: self._unsafe("an instance of a class"),
            b"\x92": lambda: self._unsafe("an instance of a class"),
            b"\x97": lambda: self._damaged("its arrays lie outside of the file"),
            b"\x98": lambda: self._damaged("its arrays lie outside of the file"),
        }
        known |= dict.fromkeys((b"F", b"I", b"L", b"S", b"V", b"p", b"g"), self._op_text)
        return [known.get(bytes([code])) for code in range(256)]

    def _top(self) -> Any:
        if not self.stack:
            self._damaged("it takes a value from an empty stack")
        return self.stack[-1]

    def _pop_many(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            self._damaged("it takes a value from an empty stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def _integer(self, kind: str, size: int) -> None:
        at = self.base + self.pos
        if size > MAX_INT:
            self._span("bytes", size)
            self.stack.append(_Other("a huge integer"))
            return
        value = int.from_bytes(self._take(size), "little", signed=kind == "i")
        if len(self.stack) == 1 and 0 < size <= 8:
            self.item.key = (at, size, kind)
        self.stack.append(value)

    def _op_text(self) -> None:
        raise UnsafePickleError(
            f"'{self.file.path}' is refused: it is a pickle of protocol 0 or 1, whose opcodes are not read. Nothing of "
            "it was run. Load it and write it again: pickle.dump(vectors, file, protocol=4)."
        )

    def _push_span(self, kind: str, width: int) -> None:
        span = self._span(kind, self._number(width))
        if kind == "text" and len(self.stack) == 1 and 0 < span.size < 19:
            self.item.key = (span.start, span.size, kind)
        self.stack.append(span)

    def _op_mark(self) -> None:
        if len(self.marks) >= MAX_MARKS:
            self._damaged(f"more than {MAX_MARKS} marks lie on its stack")
        self.marks.append(len(self.stack))
        if len(self.stack) == 1:
            self._next_item()

    def _op_frame(self) -> None:
        self._take(8)  # how the writer buffered; it says nothing about the content
        if len(self.stack) == 1:
            self._next_item()
        else:
            self.item.regular = False

    def _op_proto(self) -> None:
        if (protocol := self._number(1)) > 5:
            self._damaged(f"it is of protocol {protocol}; 2 to 5 are known")

    def _op_pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._pop_many(1)

    def _op_dict(self) -> None:
        pairs = self._pop_mark()
        self._push_dict()
        self._op_set_items(pairs)

    def _op_set_items(self, pairs: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, _Dict):
            self._unsafe(f"items to be set on {self._describe(target)}")
        if len(pairs) % 2:
            self._damaged("a key comes without a value")
        if target is self.root:
            for at in range(0, len(pairs), 2):
                self._send(pairs[at], pairs[at + 1])

    def _op_append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, _Other) or isinstance(target, _Dict):
            self._unsafe(f"{len(values)} values to be added to {self._describe(target)}")

    def _op_global(self) -> None:
        self._push_name(self._name(self._line()), self._name(self._line()))

    def _op_stack_global(self) -> None:
        module, name = self._pop_many(2)
        self._push_name(self._name(module), self._name(name))

    def _name(self, value: object) -> str:
        text = self._text(value)
        if text is None:
            self._unsafe(f"a name that is {self._describe(value)}")
        return text

    def _push_name(self, module: str, name: str) -> None:
        role = NAMES.get((module, name))
        if role is None:
            self._unsafe(f"{module[:80]}.{name[:80]}")
        self.stack.append(_Name(role, f"{module}.{name}"))

    def _op_reduce(self) -> None:
        called, args = self._pop_many(2)
        if not isinstance(called, _Name) or not isinstance(args, tuple):
            self._unsafe(f"a call of {self._describe(called)} with {self._describe(args)}")
        made = self._made(called, args)
        if made is None:
            shown = ", ".join(self._describe(value) for value in args)
            self._unsafe(f"a call of {called.name} with ({shown})")
        if isinstance(made, _Dict):
            self._push_dict()
        else:
            self.stack.append(made)
            self._finished(made)

    def _made(self, called: _Name, args: tuple[Any, ...]) -> object:  # noqa: PLR0911 - one line per call
        """Return what a call would have built, or None for a call that no numpy makes."""
        match called.role, args:
            case "reconstruct", (_Name(role="array type"), tuple(), _Span()):
                return _Array()
            case "frombuffer", (_Span(kind="bytes") as data, _Dtype() as dtype, tuple() as shape, *_):
                return _Array(shape, dtype, data)
            case "dtype", (_Span() as code, *_):
                return self._dtype(code)
            case "scalar", (_Dtype() as dtype, _Span() as data):
                return self._scalar(dtype, data)
            case "encode", (_Span(kind="text") as data, _Span() as codec):
                if self._text(codec) in {"latin1", "latin-1"}:
                    return _Span("latin", data.start, data.size)
            case "bytes", ():
                return _Span("bytes", 0, 0)
            case "ordered dict", ():
                return _Dict("a dict")
            case "default dict", () | (None,) | (_Name(role="factory"),):
                return _Dict("a dict")
        return None

    def _dtype(self, span: _Span) -> _Dtype:
        code = self._text(span) or ""
        if "O" in code:
            self._unsafe("an array of Python objects")
        return _Dtype(code)

    def _scalar(self, dtype: _Dtype, data: _Span) -> object:
        if re.fullmatch("U[0-9]{1,3}", dtype.code) and data.kind in BYTES and data.size <= ENCODED * 4 * MAX_TEXT:
            return self._word(data, int(dtype.code[1:]), "utf-32-be" if dtype.order == ">" else "utf-32-le")
        kind = dtype.numpy_type()
        if kind is None or data.kind not in BYTES or data.size > ENCODED * kind.itemsize:
            return _Other("a numpy scalar")
        raw = self._bytes(data)
        if len(raw) != kind.itemsize:
            return _Other("a numpy scalar")
        if kind.kind == "f":
            return _Float("a numpy scalar", float(np.frombuffer(raw, kind)[0]))
        if len(self.stack) == 1 and data.kind == "bytes":
            self.item.key = (data.start, data.size, kind.str)
        return int(np.frombuffer(raw, kind)[0])

    def _word(self, data: _Span, characters: int, codec: str) -> object:
        raw = self._bytes(data)
        if len(raw) != 4 * characters:
            return _Other("a numpy scalar")
        try:
            return _Word("a numpy scalar", raw.decode(codec).rstrip("\0"))
        except UnicodeDecodeError:
            self._damaged("a text is no UTF-32")

    def _op_build(self) -> None:
        target, state = self._pop_many(2)
        if isinstance(target, _Dtype) and not target.built:
            match state:
                case (_, _Span() as order, None, None, None, *_):
                    match self._text(order):
                        case "<" | ">" | "=" | "|" as known:
                            target.order = known
                        case other:
                            self._damaged(f"a dtype has the byte order {other!r}")
                case _:  # with fields, sub-arrays or other things that no vector has
                    target.code = "V"
            target.built = True
        elif isinstance(target, _Array) and target.dtype is None:
            match state:
                case (*_, tuple() as shape, _Dtype() as dtype, bool() | int(), _Span() as data) if data.kind in BYTES:
                    target.shape, target.dtype, target.data = shape, dtype, data
                case _:
                    self._unsafe(f"an array to be built from {self._describe(state)} that numpy does not write")
        else:
            self._unsafe(f"a state to be set on {self._describe(target)}")
        self.stack.append(target)
        self._finished(target)


def _leaves(value: tuple[Any, ...]) -> int:
    return sum(1 + (_leaves(part) if isinstance(part, tuple) else 0) for part in value)


def _is_vector(shape: tuple[Any, ...], dim: int) -> bool:
    """Whether an array of this shape is `dim` numbers in a row, whatever its order in memory."""
    if not 0 < len(shape) <= 8 or any(type(size) is not int for size in shape):
        return False
    return shape.count(1) >= len(shape) - 1 and max(shape) == dim and min(shape) >= 1


def _longest(shape: tuple[Any, ...]) -> int:
    """Return the longest axis; 0 where there is none that can be the width of a vector."""
    sizes = [size for size in shape if type(size) is int]
    return max(sizes) if sizes and max(sizes) <= MAX_DIM else 0


def _keys(columns: NDArray[np.uint8], kind: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the keys of a run, (items,), from the bytes of their values (items, size), and which are canonical."""
    items, size = columns.shape
    valid = np.ones(items, bool)
    if kind == "text":
        digits = columns - np.uint8(ord("0"))
        valid = (digits < 10).all(axis=1) & ((digits[:, 0] > 0) | (size == 1))
        powers = 10 ** np.arange(size - 1, -1, -1, dtype=np.int64)
        return digits.astype(np.int64) @ powers, valid
    if kind in {"i", "u"}:
        wide = np.zeros((items, 8), np.uint8)
        wide[:, :size] = columns
        if kind == "i":
            wide[:, size:] = np.where(columns[:, -1:] & 0x80, 0xFF, 0)
        return wide.view("<i8")[:, 0].astype(np.int64, copy=False), valid
    numbers = np.ascontiguousarray(columns).view(kind)[:, 0]
    return numbers.astype(np.int64), numbers <= np.iinfo(np.int64).max
