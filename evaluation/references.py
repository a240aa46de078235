"""The rows of a report that say how good the gallery's rules are as a judge."""
from evaluation.judges import by_rule
from evaluation.items import Said
from evaluation.tables import summary
from gallery.references import reference_answers

NOTE = ("Rows named (reference) are not models. They are texts whose worth is known, judged by the "
        "same rules: an able judge gives 5 to all true statements, and 0 to the list of all names. "
        "That statements in other words score lower is a fault of these rules, which know the "
        "gallery's words alone; so they compare models that were trained on it, and no others.")


def reference_rows(items, truth):
    """[Row] of what the rules give to gallery.references.REFERENCES, on the same items."""
    rows = []
    for name, answers in reference_answers(truth).items():
        scores = {}
        for item in items:
            said = Said(item, answers[item.benchmark, str(item.number)])
            [verdicts] = by_rule({said.id: said}, truth).values()
            scores.setdefault(item.benchmark, {})[item.number] = [verdicts[0]["score"]]
        rows.append(summary(f"{name} (reference)", scores))
    return rows
