"""IDs as a prefix trie: which code may follow which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from semid_dataset.errors import TableError
from semid_dataset.exports._common import How, load_arrays, member, npz_bytes, read_beside, write_beside
from semid_dataset.objects import as_codes, as_path
from semid_dataset.table.table import SemanticIdTable

__all__ = ["PrefixTrie", "read_trie", "write_trie"]


class PrefixTrie:
    """
    Which codes may follow which, in compressed sparse rows.

    Nodes are the distinct prefixes, numbered level by level and, within a level, in the order of their codes;
    node 0 is the empty prefix. `codes[indptr[node]:indptr[node + 1]]` are the codes that may follow a node,
    ascending, and edge e leads to node e + 1, so that no child needs to be stored. Leaves are IDs;
    `rows[row_indptr[leaf]:row_indptr[leaf + 1]]` are the table's rows with that ID.

    Memory: 8 bytes a node, 2 an edge and 8 an item.
    """

    def __init__(
        self, levels: int, indptr: NDArray[Any], codes: NDArray[Any], rows: NDArray[Any], row_indptr: NDArray[Any]
    ) -> None:
        self.levels = levels
        self.indptr: NDArray[np.int64] = indptr.astype(np.int64, copy=False)
        self.edge_codes: NDArray[np.int64] = codes.astype(np.int64, copy=False)
        self.rows: NDArray[np.int64] = rows.astype(np.int64, copy=False)
        self.row_indptr: NDArray[np.int64] = row_indptr.astype(np.int64, copy=False)
        self._span = int(self.edge_codes.max(initial=0)) + 1
        # (parent, code) as one number ascends with the edges: a step for many prefixes is one binary search.
        parents = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        self._edges = parents * self._span + self.edge_codes

    @classmethod
    def of(cls, codes: NDArray[Any]) -> "PrefixTrie":
        """Return the trie of (n, levels) codes; equal rows share a leaf."""
        codes = as_codes(codes, "codes", TableError)
        if codes.ndim != 2 or not codes.shape[1]:
            raise TableError(f"Codes of shape {codes.shape} are no IDs; wanted: (items, levels).")
        count, levels = codes.shape
        order = np.lexsort(codes.T[::-1]) if count else np.empty(0, np.int64)
        ordered = codes[order].astype(np.int64)
        fresh = np.ones(count, bool)  # rows that begin another prefix than the row before, of the length looked at
        fresh[1:] = False
        degrees: list[NDArray[np.int64]] = []
        edges: list[NDArray[np.int64]] = []
        starts = np.zeros(min(count, 1), np.int64)  # first row of every node of the level
        for level in range(levels):
            fresh[1:] |= ordered[1:, level] != ordered[:-1, level]
            children = np.flatnonzero(fresh)
            edges.append(ordered[children, level])
            bounds = np.searchsorted(children, np.append(starts, count))
            degrees.append(np.diff(bounds) if count else np.zeros(1 if level == 0 else 0, np.int64))
            starts = children
        leaves = np.zeros(len(starts), np.int64)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*degrees, leaves]))])
        return cls(levels, indptr, np.concatenate(edges), order, np.append(starts, count))

    @classmethod
    def open(cls, path: str | Path) -> "PrefixTrie":
        """Read a trie that `export(table, path, "trie")` wrote; raises TableError where it is none."""
        path = as_path(path)
        archive = load_arrays(path)
        names = ("levels", "indptr", "codes", "rows", "row_indptr")
        levels, indptr, codes, rows, row_indptr = (member(archive, name, path) for name in names)
        if len(indptr) != len(codes) + 2 or int(indptr[-1]) != len(codes) or int(row_indptr[-1]) != len(rows):
            raise TableError(f"'{path}' is no trie: {len(indptr)} bounds for {len(codes)} edges and {len(rows)} rows.")
        return cls(int(levels), indptr, codes, rows, row_indptr)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return what the file holds."""
        return {
            "levels": np.array(self.levels),
            "indptr": self.indptr,
            "codes": self.edge_codes.astype(np.uint16),
            "rows": self.rows,
            "row_indptr": self.row_indptr,
        }

    def __len__(self) -> int:
        """How many distinct IDs there are."""
        return len(self.row_indptr) - 1

    def step(self, nodes: NDArray[np.int64], codes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the nodes that codes lead to from nodes, -1 where they lead nowhere."""
        codes = codes.astype(np.int64)
        known = (nodes >= 0) & (codes >= 0) & (codes < self._span)
        wanted = np.where(known, nodes * self._span + codes, -1)
        edges = np.searchsorted(self._edges, wanted)
        found = known & (edges < len(self._edges))
        found[found] = self._edges[edges[found]] == wanted[found]
        return np.where(found, edges + 1, -1)

    def nodes_of(self, prefixes: NDArray[Any]) -> NDArray[np.int64]:
        """Return the node of each prefix (b, length), -1 where no ID begins so."""
        nodes = np.zeros(len(prefixes), np.int64)
        for level in range(prefixes.shape[1]):
            nodes = self.step(nodes, prefixes[:, level])
        return nodes

    def allowed(self, nodes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which codes may follow: (positions in `nodes`, codes), as two arrays of one length."""
        alive = np.flatnonzero(nodes >= 0)
        begins, ends = self.indptr[nodes[alive]], self.indptr[nodes[alive] + 1]
        counts = ends - begins
        edges = np.arange(int(counts.sum())) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
        return np.repeat(alive, counts), self.edge_codes[edges]

    def children(self, prefix: Sequence[int]) -> list[int]:
        """Return the codes that may follow a prefix, ascending; none where no ID begins so."""
        node = self.nodes_of(as_codes(prefix, "a prefix", TableError).astype(np.int64).reshape(1, -1))
        return cast("list[int]", self.allowed(node)[1].tolist())

    def rows_of(self, code: Sequence[int]) -> list[int]:
        """Return the rows of the table that have this ID."""
        wanted = as_codes(code, "an ID", TableError).astype(np.int64).reshape(1, -1)
        node = int(self.nodes_of(wanted)[0]) if wanted.shape[1] == self.levels else -1
        leaf = node - (len(self.indptr) - 1 - len(self))
        return (
            cast("list[int]", self.rows[self.row_indptr[leaf] : self.row_indptr[leaf + 1]].tolist())
            if node >= 0
            else []
        )

    def codes(self) -> NDArray[np.int64]:
        """Return the IDs (n, levels) in the order of the table's rows."""
        parents = self._edges // self._span
        nodes = np.arange(len(self)) + (len(self.indptr) - 1 - len(self))
        leaves = np.empty((len(self), self.levels), np.int64)
        for level in reversed(range(self.levels)):
            leaves[:, level] = self.edge_codes[nodes - 1]
            nodes = parents[nodes - 1]
        codes = np.empty((len(self.rows), self.levels), np.int64)
        codes[self.rows] = np.repeat(leaves, np.diff(self.row_indptr), axis=0)
        return codes


def write_trie(table: SemanticIdTable, path: Path, style: str, first: int) -> list[Path]:
    """Write a prefix trie; return the files written."""
    trie = PrefixTrie.of(table.codes_array)
    return write_beside(table, path, [npz_bytes(**trie.to_arrays())])


def read_trie(path: Path, how: How) -> SemanticIdTable:
    """Read a prefix trie; raises TableError where the file holds none."""
    return read_beside(path, PrefixTrie.open(path).codes(), how)
