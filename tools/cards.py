"""Write the model card and the data card of an evaluation.

    python -m tools.cards --evaluation runs/evaluation --audit runs/audit

Writes model_card.md, model_card.html, data_card.md and data_card.html into OUT. Every figure and
fact comes from the evaluation, the checkpoints and runs behind it, the data and the audit; what is
not there is "not measured". What a person must say (OWNER, LICENSE, CONTACT) is marked until it is
given. Needs no model to run; an evaluation of a million photos takes about as long as reading the
folders of the data.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petface import files
from petface.errors import run_script
from petface.report.card_facts import read_facts
from petface.report.cards import model_card
from petface.report.data_card import class_counts, data_card
from petface.report.document import to_markdown, to_page
from petface.settings import read_settings

# ---- What a person must say ----
OWNER: str = ""  # who answers for the model and keeps the data; "" = marked "to be filled in"
LICENSE: str = ""  # terms of the model; those of the dataset hold as well
CONTACT: str = ""  # where questions go

# ---- Sources ----
EVALUATION: str = "runs/evaluation"  # folder of a finished evaluation
AUDIT: str = ""  # folder of tools.audit; "" = none
IMAGES_ROOT: str = ""  # "" = as the evaluation says
ANNOTATIONS_ROOT: str = ""  # likewise
SPLITS_FILE: str = ""  # likewise

# ---- Output ----
OUT: str = ""  # "" = beside the evaluation's files


def main() -> None:
    settings = read_settings(sys.modules[__name__])
    facts = read_facts(
        settings.EVALUATION,
        audit=settings.AUDIT,
        images_root=settings.IMAGES_ROOT,
        annotations_root=settings.ANNOTATIONS_ROOT,
        splits_file=settings.SPLITS_FILE,
    )
    people = {"Owner": settings.OWNER, "Licence": settings.LICENSE, "Contact": settings.CONTACT}
    classes = class_counts(facts.dataset)
    out = Path(settings.OUT or settings.EVALUATION)
    cards = {
        "model_card": model_card(facts, classes, people),
        "data_card": data_card(facts, classes, people),
    }
    for name, card in cards.items():
        for suffix, content in ((".md", to_markdown(card)), (".html", to_page(card))):
            with files.atomic_write(out / f"{name}{suffix}", "w") as handle:
                handle.write(content)
    print("\n".join(f"missing: {line}" for line in facts.missing))
    print(f"model_card: {out / 'model_card.md'}\ndata_card: {out / 'data_card.md'}")


if __name__ == "__main__":
    run_script(main)
