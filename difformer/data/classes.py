"""Whether two lists of classes are the same, and how they differ."""

from difformer.data.source import same_letters


def check_same_classes(data: tuple[str, ...], classifier: tuple[str, ...], whose: str, others: str) -> None:
    """Raises ValueError when two lists of class names differ; the message shows where.

    Args:
        data: names of the data set.
        classifier: names that they are compared with.
        whose: what the first belong to, for the message.
        others: what the second belong to.
    """
    if data == classifier:
        return
    here, there = (
        [name for name in one if name not in set(other)] for one, other in ((data, classifier), (classifier, data))
    )
    if here or there:
        difference = f"only {whose}: {_some(here)}; only {others}: {_some(there)}"
        same = {same_letters(name) for name in here} & {same_letters(name) for name in there}
        hint = ""
        if same:
            hint = f"; {_some(sorted(same))} are the same letters in other code points (Unicode normalisation): rename"
        elif len(data) == len(classifier):
            hint = "; where they mean the same, rename the folders, or give data.class_names for data without folders"
    else:
        place = next(i for i, pair in enumerate(zip(data, classifier, strict=True)) if len(set(pair)) > 1)
        difference = f"class {place} is {data[place]!r} {whose} and {classifier[place]!r} {others}"
        hint = ", so their labels mean different classes"
    raise ValueError(
        f"the class names {whose} ({len(data)}) are not those {others} ({len(classifier)}): {difference}{hint}"
    )


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5])) or "none"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
