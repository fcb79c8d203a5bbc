"""What `fitact-fx faults` prints: a fault list, and what became of a model that it was applied to."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from tabulate import tabulate

from fitact_fx.faults import Effect, FaultList, Format, TensorFaults
from fitact_fx.faults.fault_table import field_of
from fitact_fx.faulty_outputs import Outputs
from fitact_fx.hit_words import Word
from fitact_fx.replaying import Outcome
from fitact_fx.reports.words import share


def list_text(faults: FaultList, title: str, limit: int) -> str:
    """The whole list in words, how many faults hit what, and its first `limit` rows."""
    parts = [f"{title}: {_count(len(faults), 'fault')} in {len(faults.hits)} of {len(faults.tensors)} targeted tensors"]
    parts.append(_about(faults))
    if len(faults):
        parts += [_per_tensor(faults, limit), _per_field(faults), faults.table(limit) if limit else ""]
    return "\n\n".join(filter(None, parts))


def list_json(faults: FaultList, limit: int | None = None) -> dict[str, Any]:
    """The same for programs; at most `limit` rows."""
    formats = _formats(faults)
    return {
        **_origin(faults),
        "faults": len(faults),
        "tensors": [_tensor(one) for one in faults.tensors],
        "fields": _field_counts(faults),
        "fingerprint": faults.fingerprint,
        "checksum": faults.checksum,
        "rows": [_row(faults, row._asdict(), formats) for row in faults.rows[:limit]],
    }


def outcome_text(outcome: Outcome, faults: FaultList, title: str, limit: int) -> str:
    """The first `limit` words that were hit, what became of the outputs, and whether the memory is as before."""
    hit, changed = sum(map(len, outcome.hits)), sum(one.changed for one in outcome.hits)
    parts = [f"{title}: {_count(hit, 'word')} hit, {changed:,} of them changed", _about(faults)]
    if hit and limit:
        parts.append(_words(outcome, faults, limit) + _more(hit - limit))
    if outcome.outputs is None:
        parts.append("No run: give --input SHAPE to see what becomes of the outputs.")
    else:
        parts.append(_outputs(outcome.outputs))
    if outcome.unrestored:
        named = ", ".join(outcome.unrestored[:5])
        parts.append(f"NOT RESTORED: {named}{_more(len(outcome.unrestored) - 5)} hold other bits than before.")
    else:
        of = f"{outcome.tensors} of {_count(outcome.tensors, 'tensor')}"
        parts.append(f"Restored: {of} hold the very bits that they held before (compared).")
    return "\n\n".join(parts)


def outcome_json(outcome: Outcome, faults: FaultList, limit: int | None = None) -> dict[str, Any]:
    """The same for programs, with where the list comes from; at most `limit` words."""
    return {**_origin(faults), "checksum": faults.checksum, **outcome.as_json(limit)}


def _tensor(one: TensorFaults) -> dict[str, Any]:
    own = {} if one.own is None else {"format": one.own.name}
    return {"name": one.name, "shape": list(one.shape), "faults": len(one)} | own


def _origin(faults: FaultList) -> dict[str, Any]:
    names = {"format": faults.format.name, "effect": faults.effect.name}
    return {"fault": faults.fault, **names, "seed": faults.seed, "trial": faults.trial}


def _about(faults: FaultList) -> str:
    lines = {
        "fault model": faults.fault,
        "effect": f"{faults.effect.name}: {_effect(faults.effect)}",
        "format": _format(faults.format),
        **{f"of {kind}": text for kind, text in _own_formats(faults)},
        "drawn with": f"seed {faults.seed}, trial {faults.trial}",
        "checksum": faults.checksum,
    }
    return tabulate([[f"{name}:", text] for name, text in lines.items()], tablefmt="plain", disable_numparse=True)


def _own_formats(faults: FaultList) -> Iterator[tuple[str, str]]:
    """What is said of the words of packed bounds, by the last part of their names."""
    own = {one.name.rpartition(".")[2]: one.own for one in faults.tensors if one.own is not None}
    yield from ((kind, _format(stored)) for kind, stored in own.items())


def _format(stored: Format) -> str:
    return f"{stored.name}: {stored.bits} bits, {_fields(stored)}"


def _effect(effect: Effect) -> str:
    if effect.of_word:
        return "the word is replaced by the one that the list names"
    if not effect.clears:
        return "the bit is inverted"
    return f"the bit reads {1 if effect.flips else 0} whatever it was"


def _fields(stored: Format) -> str:
    spans = ((name, bits[0], bits[-1]) for name, bits in stored.fields.items())
    return ", ".join(f"{name} {low}" if low == high else f"{name} {low} to {high}" for name, low, high in spans)


def _per_tensor(faults: FaultList, limit: int) -> str:
    rows = [(one.name, "x".join(map(str, one.shape)) or "()", f"{len(one):,}") for one in faults.hits[:limit]]
    return _table(rows, ("tensor", "shape", "faults"), "lrr") + _more(len(faults.hits) - limit) if limit else ""


def _per_field(faults: FaultList) -> str:
    rows = [(name, f"{count:,}", f"{share(count / len(faults))} %") for name, count in _field_counts(faults).items()]
    return _table(rows, ("field", "faults", "share"), "lrr") if rows else ""


def _field_counts(faults: FaultList) -> dict[str, int]:
    """Field -> faults in its bits; empty where faults are whole words."""
    if faults.effect.of_word:
        return {}
    found = dict.fromkeys(faults.format.fields, 0)
    for one in faults.tensors:
        stored = faults.format_of(one)
        counts = np.bincount(one.values.astype(np.int64), minlength=stored.bits)
        for name, field in stored.fields.items():
            found[name] = found.get(name, 0) + int(counts[field.start : field.stop].sum())
    return found


def _formats(faults: FaultList) -> dict[str, Format]:
    """Tensor name -> the format of its words, of what is hit."""
    return {one.name: faults.format_of(one) for one in faults.hits}


def _row(faults: FaultList, row: dict[str, Any], formats: Mapping[str, Format]) -> dict[str, Any]:
    index = [int(each) for each in np.unravel_index(row["element"], faults.shapes[row["tensor"]])]
    return row | {"index": index} | ({"field": field_of(formats[row["tensor"]], row["bit"])} if "bit" in row else {})


def _words(outcome: Outcome, faults: FaultList, limit: int) -> str:
    formats = _formats(faults)
    rows = [_word(word, formats[word.tensor]) for word in islice(outcome.words, limit)]
    return _table(rows, ("tensor", "index", "bits", "word", "", "value", ""), "lllllrr")


def _word(word: Word, stored: Format) -> tuple[str, ...]:
    digits = -(-stored.bits // 4)
    index = f"[{', '.join(map(str, word.index))}]"
    bits = ", ".join(f"{bit} ({field_of(stored, bit)})" for bit in word.bits) or "all"
    words = f"0x{word.word_before:0{digits}x}", f"-> 0x{word.word_after:0{digits}x}"
    return word.tensor, index, bits, *words, f"{word.value_before:.6g}", f"-> {word.value_after:.6g}"


def _outputs(found: Outputs) -> str:
    if found.failed is not None:
        return f"DUE: with the faults the run fails: {found.failed}"
    of = _count(found.samples, "example sample")
    if not found.changed:
        return f"No fault is seen: all outputs are the same for {of}."
    moved = "" if found.largest_difference is None else f", finite ones by up to {found.largest_difference:.6g}"
    wrong = "wrong outputs" if found.another_argmax is None else "another argmax"
    rows = [
        ("outputs moved", _of(found.changed, found.samples) + moved),
        *([("another argmax", _of(found.another_argmax, found.samples))] if found.another_argmax is not None else []),
        ("SDC", f"{_of(found.sdc, found.samples)}: {wrong}, and nothing noticed"),
        ("DUE", f"{_of(found.due, found.samples)}: NaN or Inf seen in the outputs"),
    ]
    return f"Faulty beside clean outputs, {of}:\n" + tabulate(
        [(f"  {name}", text) for name, text in rows], tablefmt="plain", disable_numparse=True, preserve_whitespace=True
    )


def _of(count: int, whole: int) -> str:
    return f"{count} of {whole} ({share(count / whole)} %)"


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], sides: str) -> str:
    align = tuple({"l": "left", "r": "right"}[side] for side in sides)
    return tabulate(rows, headers, disable_numparse=True, colalign=align)


def _more(number: int) -> str:
    return f"\n... and {number:,} more" if number > 0 else ""
