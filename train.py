"""Train STAR-FC: python train.py [--config FILE] [--work-dir DIR] [--cfg-options KEY=VALUE ...]"""

import argparse
import sys
from pathlib import Path

from starfc.commands.scripts import config_arguments, overwrite_argument, read_config, run_command

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Train STAR-FC's edge classifier on a labelled split.")
    config_arguments(parser, default=str(ROOT / "configs" / "cfg_gcn_structural_ms1m.py"))
    parser.add_argument("--work-dir", metavar="DIR", help="folder of the run (default: work_dirs/<config name>)")
    parser.add_argument(
        "--resume", metavar="auto|FILE", help="go on from the newest checkpoint in the run's folder, or from this one"
    )
    overwrite_argument(parser)
    arguments = parser.parse_args()
    from starfc.training.trainer import run_training, training_text

    config = read_config(arguments)
    work_dir = Path(arguments.work_dir or ROOT / "work_dirs" / Path(arguments.config).stem)
    record = run_training(config, work_dir, arguments.resume, overwrite=arguments.overwrite)
    if record is not None:
        print(training_text(record, work_dir))


if __name__ == "__main__":
    sys.exit(run_command(main))
