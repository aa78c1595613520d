"""Choose thresholds for a trained model: scripts/choose_thresholds.py --run DIR [--features FILE --labels FILE]"""

import argparse
import os
import sys
from pathlib import Path

from starfc.commands.scripts import model_arguments, read_source, run_command

ROOT = Path(__file__).resolve().parent.parent
ABOUT = """Choose the thresholds of test_final.py and test_dynamic.py for a trained model, stored beside its weights.

On --features with --labels; without both, on the identities that training held back. With --features alone nothing is
chosen: what every pair of thresholds makes of them is written and printed."""


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
