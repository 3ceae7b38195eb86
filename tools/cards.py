"""Write the model card and the data card of an evaluation, or the card of an identity run.

    python -m tools.cards --evaluation runs/evaluation --audit runs/audit
    python -m tools.cards --evaluation runs/identity

Writes model_card.md and data_card.md into OUT, of an identity run identity_card.md, in a second.
All facts come from the evaluation, its runs and the audit; OWNER, LICENSE and CONTACT are marked
until they are given.
"""

from __future__ import annotations

import sys
from pathlib import Path

from petface.errors import UserError, run_script, short
from petface.report.cards import write_cards
from petface.settings import read_settings

# ---- What a person must say ----
OWNER: str = ""  # who answers for the model and keeps the data; "" = marked "to be filled in"
LICENSE: str = ""  # terms of the model; those of the dataset hold as well
CONTACT: str = ""  # where questions go

# ---- Sources and output ----
EVALUATION: str = "runs/evaluation"  # folder of a finished evaluation, or of an identity run
AUDIT: str = ""  # folder of tools.audit; "" = none
OUT: str = ""  # "" = beside the evaluation's files


def main() -> None:
    s = read_settings(sys.modules[__name__])
    people = {"Owner": s.OWNER, "Licence": s.LICENSE, "Contact": s.CONTACT}
    folder, out = Path(s.EVALUATION), Path(s.OUT) if s.OUT else None
    try:
        written = write_cards(folder, people=people, audit=s.AUDIT, out=out)
    except (UserError, OSError, ImportError):
        raise
    except Exception as error:  # jinja2 has its own for what is not there
        what = f"the summary in {folder} is damaged or of an earlier version"
        raise UserError(f"{what} ({short(repr(error))})") from error
    for path in written:
        print(f"{path.stem}: {path}")


if __name__ == "__main__":
    run_script(main)
