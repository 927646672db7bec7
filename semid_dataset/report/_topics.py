"""
Say in words what prefixes are about: class-based TF-IDF of the titles of their items.

A word counts for a prefix as often as it stands in titles there (its share of all words of the prefix), weighed by
log(1 + A / f): f is how often it stands anywhere, A how many words a prefix has on average. So "shampoo" counts where
it gathers, and "for" nowhere. Source: BERTopic, https://arxiv.org/abs/2203.05794, equation 2.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["topics", "words_of"]

WORDS = 5  # that are said of a prefix
WEAKEST = 0.1  # of the score of the strongest word: what is weaker only fills up
LIFT = 2.0  # times as frequent as anywhere, at least: a word that is everywhere says nothing
RUNS = re.compile(r"[^\W\d_][\w']*")
HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def words_of(title: str) -> list[str]:
    """Return the words of a title, lower case: three letters or more; of Chinese, every two characters."""
    words = []
    if title.endswith("…"):
        title = title.rpartition(" ")[0]  # it was cut: not half a word
    for run in RUNS.findall(title.lower()):
        if HAN.search(run):
            words += [run[k : k + 2] for k in range(len(run) - 1)]
        elif len(run) > 2:
            words.append(run)
    return words


def topics(titles: Sequence[str], groups: Sequence[int]) -> list[list[str]]:
    """
    Return the words that set every group of titles apart from all others, the strongest first, at most five.

    Args:
        titles: of all items.
        groups: of each title, the number of its group, 0…k-1.

    Returns:
        k lists; empty where no word stands out.
    """
    sizes = Counter(groups)
    inside: list[Counter[str]] = [Counter() for _ in range(max(sizes, default=-1) + 1)]
    holders: list[Counter[str]] = [Counter() for _ in inside]
    for title, group in zip(titles, groups, strict=True):
        words = words_of(title)
        inside[group].update(words)
        holders[group].update(set(words))
    everywhere: Counter[str] = Counter()
    for words_inside in inside:
        everywhere.update(words_inside)
    total = everywhere.total()
    average = total / max(len(inside), 1)
    found = []
    for group, counts in enumerate(inside):
        own = counts.total()
        scored = []
        for word, count in counts.items():
            if sizes[group] > 3 and holders[group][word] < 2:
                continue  # one item's name is not the group's
            if len(inside) > 1 and count * total < LIFT * own * everywhere[word]:
                continue
            scored.append((-count / own * math.log1p(average / everywhere[word]), word))
        scored.sort()
        found.append([word for score, word in scored[:WORDS] if score <= WEAKEST * scored[0][0]])
    return found
