"""The `petface` command: one door to every script and tool, each of which can be run by itself too.

    petface train my_pets                  # a folder of classes: all the way to a network to serve
    petface                                # the list of commands
    petface predict --help                 # flags of one command

Without an installation, `python petface_command.py` does the same.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = {
    "train": ("train_photos", "your own photos, <folder>/<class>/<photo>: the whole way at once"),
    "train-species": ("train_resnet_minority_aug_dynamic", "stage 1: a network that names species"),
    "train-specialists": ("stage2_resnet_multi", "stage 2: breed, colors and gender by species"),
    "train-identity": ("train_identity", "a network that tells single animals apart"),
    "show": ("inference_engine", "predict a few photos in the terminal"),
    "predict": ("inference_engine predict", "predict folders of photos into a table"),
    "identify": ("inference_engine identify", "name the animal of a photo among known ones"),
    "embed": ("embed", "turn photos into embeddings"),
    "evaluate": ("inference_engine evaluate", "compare predictions with the labels of a dataset"),
    "evaluate-identity": ("evaluate_identity", "verification and search, beside baselines"),
    "prepare": ("prepare_data", "lay photos out as a PetFace tree"),
    "demo-data": ("make_demo_data", "draw a made-up dataset"),
    "audit": ("audit", "look for broken photos, odd labels and duplicates"),
    "pack": ("pack_images", "decode a dataset once, into one file"),
    "report": ("report", "write the pages of runs and evaluations, and their index"),
    "show-evaluation": ("show_evaluation", "the metrics of an evaluation, and six of its photos"),
    "analyse-errors": ("analyse_errors", "where the errors of an evaluation are"),
    "find-label-errors": ("find_label_errors", "labels that are likely wrong"),
    "compare": ("compare", "which of two evaluations is better, and how surely"),
    "cards": ("cards", "write a model card and a data card"),
    "sweep": ("sweep", "train presets with several seeds or folds"),
    "search": ("search", "look for good constants"),
    "export": ("export", "write ONNX files"),
    "serve": ("serve", "answer photos over HTTP, with a page"),
    "bench": ("bench", "measure the speed of this machine"),
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
        text = f"usage: petface COMMAND ...; petface COMMAND --help\n\n{listed}"
        if name in ("-h", "--help", "help"):
            print(text)
            return
        sys.exit(f"error: there is no command {name[:80]!r}\n\n{text}")
    script, *words = COMMANDS[name][0].split()
    door = "petface" if Path(sys.argv[0]).suffix != ".py" else f"python {sys.argv[0]}"
    sys.argv[1:2] = words
    if (ROOT / "tools").is_dir():
        sys.path.insert(0, str(ROOT))
    else:  # pip puts them into the package
        sys.modules["tools"] = importlib.import_module("petface.tools")
    if not (ROOT / f"{script}.py").is_file():
        script = f"tools.{script}"
    typed = {"door": f"{door} {name}"}  # for the usage line
    runpy.run_module(script, typed, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
