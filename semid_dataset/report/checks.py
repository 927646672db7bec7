"""
Judge IDs by the facts about them: checks with their limits, and one answer to "are these IDs good?".

The limits are rules of thumb about codes, with the reason beside each. None was validated against the recall of a
recommender, and one is known not to predict it (held-out error): so a check that is only suspicious says "watch", and
"bad" is kept for what makes IDs say little about their items.
"""

import math
from collections.abc import Mapping
from typing import Any

from semid_dataset.build import novelty

__all__ = ["LIMITS", "answer"]

# (good up to or from, bad beyond or below).
LIMITS = {
    # An item that is moved to be unique has a last code that no longer says what it is like. Plain residual k-means
    # of 12,101 titles collides for 10 %; where three in ten do, most subtrees have such codes.
    "raw": (0.10, 0.30),
    # Items with one ID cannot be told apart by whoever reads IDs alone.
    "final": (0.0, 0.10),
    # Held-out over in-sample error, less 1: how much worse new items are written than known ones. On real sets of
    # 4,344 and 12,101 items 0.25 to 0.74 was seen, and fewer codes, which lower it, lowered recall on one of them: so
    # it is never more than "watch", except where codes tell of a new item no more than the mean does (error 1).
    "held_out": (0.20, 1.0),
    # Perplexity over codes: half means that a level carries one bit less than it could, a quarter two.
    "perplexity": (0.50, 0.25),
    # Of the error that is left, a level takes away this share, or it brings nothing.
    "steps": (0.01, 0.0),
    # Pairs of nearest neighbours that share code 1, beyond chance: (near - random) / (1 - random).
    "neighbours": (0.25, 0.10),
    # Share of the items with the commonest first code; or 4 and 8 even shares, where codes are few.
    "largest": (0.05, 0.25),
    # Of the vectors, those that equal another one: no codebook tells them apart.
    "duplicates": (0.01, 0.10),
    # Of the items asked for, those that have an ID; the others share the default.
    "coverage": (0.99, 0.90),
    # Error of added items over that of items held out at the fit; the limits at which the package warns and refuses.
    "extensions": (novelty.FAR, novelty.FOREIGN),
}
NEEDED = ("raw", "neighbours")  # without these nobody can say that IDs are good


def answer(facts: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return verdict, checks and notes.

    Args:
        facts: of `facts_of`, without the answer.

    Returns:
        "verdict": "bad" if one check is; else "unknown" if raw collisions or neighbours were not measured; else
        "watch" if one check is, else "good". "checks": in the order they are shown, each "check" (a name), "verdict"
        and "values", the figures that it was judged by. "notes": the same without a verdict.
    """
    checks = [
        _state(facts),
        _raw(facts),
        _final(facts),
        _held_out(facts),
        _perplexity(facts),
        _steps(facts),
        _neighbours(facts),
        _largest(facts),
        _duplicates(facts),
        _coverage(facts),
        _extensions(facts),
    ]
    made = [check for check in checks if check is not None]
    verdicts = {check["check"]: check["verdict"] for check in made}
    if "bad" in verdicts.values():
        verdict = "bad"
    elif any(verdicts.get(name) == "unknown" for name in NEEDED):
        verdict = "unknown"
    else:
        verdict = "watch" if "watch" in verdicts.values() else "good"
    return {"verdict": verdict, "checks": made, "notes": _notes(facts)}


def _check(name: str, verdict: str, **values: Any) -> dict[str, Any]:
    good, bad = LIMITS.get(name, (None, None))
    return {"check": name, "verdict": verdict, "values": {**values, "good": good, "bad": bad}}


def _at_most(value: float, good: float, bad: float) -> str:
    return "good" if value <= good else "watch" if value <= bad else "bad"


def _at_least(value: float, good: float, bad: float) -> str:
    return "good" if value >= good else "watch" if value >= bad else "bad"


def _state(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """Default IDs are no IDs, stale ones know no new items; else there is nothing to say."""
    if not facts["items"]:
        return _check("state", "bad", state="empty")
    return _check("state", "watch", state="stale") if facts["status"] == "stale" else None


def _raw(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if not facts["items"]:
        return None
    collisions = facts["collisions"]
    share = collisions["raw"]["share"]
    if share is None:
        return _check("raw", "unknown")
    return _check(
        "raw",
        _at_most(share, *LIMITS["raw"]),
        share=share,
        moved=collisions["moved"],
        largest=collisions["raw"]["largest"],
    )


def _final(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    share = facts["collisions"]["final"]["share"]
    if share is None:
        return None
    verdict = _at_most(share, *LIMITS["final"])
    if not facts["collisions"]["unique_wanted"] and verdict == "bad":
        verdict = "watch"  # unique=False: that is what was asked for
    return _check("final", verdict, share=share, items=facts["collisions"]["final"]["items"])


def _held_out(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if not facts["items"]:
        return None
    errors = facts["errors"]
    held, own = errors["held_out"], errors["raw"] if errors["raw"] is not None else errors["in_sample"]
    if held is None or own is None:
        return _check("held_out", "unknown")
    excess = held / own - 1 if own > 0 else (0.0 if held <= 0 else None)
    good, bad = LIMITS["held_out"]
    verdict = "bad" if held >= bad else "good" if excess is not None and excess <= good else "watch"
    return _check("held_out", verdict, held_out=held, in_sample=own, excess=excess, items=errors["held_out_items"])


def _perplexity(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    levels = facts["per_level"]
    if not levels:
        return None
    # No more codes can be in use than there are items.
    shares = [level["perplexity"] / max(min(level["size"], facts["items"]), 1) for level in levels]
    good, bad = LIMITS["perplexity"]
    lowest = min(range(len(shares)), key=shares.__getitem__)
    return _check(
        "perplexity",
        _at_least(shares[lowest], good, bad),
        level=levels[lowest]["level"],
        perplexity=levels[lowest]["perplexity"],
        size=levels[lowest]["size"],
        share=shares[lowest],
        shares=shares,
        below=[level["level"] for level, share in zip(levels, shares, strict=True) if share < good],
    )


def _steps(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    errors = facts["errors"]["levels"]
    if not errors:
        return None
    before = [1.0, *errors[:-1]]
    idle = [
        level
        for level, (was, now) in enumerate(zip(before, errors, strict=True), start=1)
        if was > 1e-6 and now > was * (1 - LIMITS["steps"][0])
    ]
    return _check("steps", "watch" if idle else "good", error=errors[-1], idle=idle)


def _neighbours(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if not facts["items"]:
        return None
    near, other = facts["neighbours"]["near"], facts["neighbours"]["random"]
    if not near:
        return _check("neighbours", "unknown")
    beyond = (near[0] - other[0]) / (1 - other[0]) if other[0] < 1 else 0.0
    return _check("neighbours", _at_least(beyond, *LIMITS["neighbours"]), near=near[0], random=other[0], beyond=beyond)


def _largest(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    levels = facts["per_level"]
    if not levels:
        return None
    even = 1 / max(min(levels[0]["size"], facts["items"]), 1)
    good, bad = LIMITS["largest"]
    good, bad = min(max(good, 4 * even), 1.0), min(max(bad, 8 * even), 1.0)
    share = levels[0]["largest"] / facts["items"]
    check = _check("largest", _at_most(share, good, bad), share=share, items=levels[0]["largest"])
    check["values"] |= {"good": good, "bad": bad}
    return check


def _duplicates(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if not facts["items"]:
        return None
    count = facts["duplicates"]["count"]
    if count is None:
        return _check("duplicates", "unknown")
    of = facts["items"] if facts["vectors"] else facts["collisions"]["measured_items"] or facts["items"]
    share = count / max(of, 1)
    return _check("duplicates", _at_most(share, *LIMITS["duplicates"]), share=share, count=count)


def _coverage(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    if not facts["items"]:
        return None
    coverage = facts["coverage"]
    if coverage is None:
        return _check("coverage", "unknown")
    return _check("coverage", _at_least(coverage["share"], *LIMITS["coverage"]), **coverage)


def _extensions(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """The worst error of added items against that of items held out at the fit; nothing where no items were added."""
    steps = [step for step in facts["history"][1:] if (step["new"] or 0) > 0 and step["error"] is not None]
    known = [facts["provenance"]["relative_error"], facts["errors"]["held_out"]]
    fitted = max((error for error in known if error is not None), default=None)
    if not steps or fitted is None:
        return None
    worst = max(steps, key=lambda step: step["error"] - (step["expected"] or fitted))
    error, expected = worst["error"], worst["expected"] or fitted
    held = facts["errors"]["held_out_items"] or 0
    few = 1 + novelty.FEW / math.sqrt(worst["new"]) + (1 / math.sqrt(held) if held > 0 else 2.0)  # see novelty.judge
    good, bad = (few * limit for limit in LIMITS["extensions"])
    verdict = "good"
    if error > max(bad * expected, expected + novelty.WAY * (1 - expected)):
        verdict = "bad"
    elif error > max(good * expected, expected + novelty.ROOM):
        verdict = "watch"
    return _check(
        "extensions",
        verdict,
        error=error,
        fitted=expected,
        generation=worst["generation"],
        added=int(sum(step["new"] for step in steps)),
        times=len(steps),
    )


def _notes(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []

    def note(name: str, **values: Any) -> None:
        notes.append({"note": name, "values": values})

    if not facts["items"]:
        return notes
    if not facts["sizes_stated"]:
        note("sizes", sizes=" x ".join(f"{size:,}" for size in facts["sizes"]))
    if facts["training"]["thrown_away"]:
        note("thrown_away", epochs=len(facts["training"]["loss"]))
    measured = facts["collisions"]["measured_items"]
    if measured is not None and measured != facts["items"]:
        note("grown", measured=measured, items=facts["items"])
    healed = [step for step in facts["history"] if step["healed"]]
    if healed:
        note("healed", how=healed[-1]["healed"], generation=healed[-1]["generation"])
    titled = facts["titles"]
    if titled and titled["known"] < titled["given"]:
        note("titles", **titled)
    if not facts["vectors"]:
        note("no_vectors")
    return notes
