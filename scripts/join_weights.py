"""Join the weights of several trainings for any embedding: scripts/join_weights.py DIR DIR ... --out DIR"""

import argparse
import sys
from pathlib import Path

from starfc.commands.scripts import run_command

ABOUT = """Join the weights of several trainings of model.type 'gcn_structural_any' into one model.

Its logits are the means over the scorers of all trainings. Trainings on other kinds of data make other errors, so the
joined model is more even than each of them. The packaged weights are joined from two trainings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", type=Path, metavar="DIR", help="folders that train.py wrote")
    parser.add_argument("--out", "-o", type=Path, required=True, metavar="DIR", help="folder for the joined weights")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in an existing folder")
    arguments = parser.parse_args()
    from starfc.errors import InputError
    from starfc.models.checkpoint import load_model, save_model
    from starfc.models.contextual import ContextualModel, joined
    from starfc.storage.commit import changing
    from starfc.storage.owners import TRAIN

    models = []
    for folder in arguments.trainings:
        model = load_model(folder)
        if not isinstance(model, ContextualModel):
            raise InputError(f"{folder}: a model of type 'gcn_structural_any' needed; found '{model.kind.name}'")
        models.append(model)
    whole = joined(models)
    with changing(arguments.out, TRAIN, inputs=arguments.trainings, overwrite=arguments.overwrite) as change:
        save_model(whole, change.place)
    print(f"written to {arguments.out}: {len(whole.first.members)} scorers per round")


if __name__ == "__main__":
    sys.exit(run_command(main))
