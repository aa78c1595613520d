"""Choose thresholds for a trained model: scripts/choose_thresholds.py --run DIR [--features FILE --labels FILE]"""

import argparse
import os
import sys
from pathlib import Path

from starfc.commands.scripts import model_arguments, read_source, run_command

ROOT = Path(__file__).resolve().parent.parent
ABOUT = """Choose thresholds of test_final.py and test_dynamic.py for a trained model, and store them with its weights.

The data are --features with --labels. Without both, they are the identities that training held out. With --features
alone nothing is chosen: a summary of the clustering at every pair of thresholds is written and printed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_arguments(
        parser, default=str(ROOT / "configs" / "cfg_gcn_structural_ms1m.py"), out="the folder of the weights"
    )
    arguments = parser.parse_args()
    from starfc.runs.tune import run_choice, tune_text

    source = read_source(parser, arguments)
    weights = source.config.pretrained if source.model_folder is None else source.model_folder
    out = Path(os.path.normpath(weights) if arguments.out is None else arguments.out)
    found = run_choice(
        source.config,
        model_folder=source.model_folder,
        features=arguments.features,
        labels=arguments.labels,
        out=out,
        overwrite=arguments.overwrite,
    )
    print(tune_text(found, out))


if __name__ == "__main__":
    sys.exit(run_command(main))
