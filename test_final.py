"""Cluster a split or a file of features with STAR-FC: python test_final.py [--config FILE] [--model DIR] [--out DIR]"""

import argparse
import sys
from pathlib import Path

from starfc.cli import config_arguments, read_config, run_command
from starfc.inference import run_inference

ROOT = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Cluster embeddings with a trained STAR-FC model.")
    config_arguments(parser, default=str(ROOT / "configs" / "cfg_gcn_ms1m.py"))
    parser.add_argument("--model", metavar="DIR", help="folder of Backbone.pth and Head.pth (default: the config's)")
    parser.add_argument(
        "--features", metavar="FILE", help="cluster this .bin, .npy or .npz instead of the config's split"
    )
    parser.add_argument("--labels", metavar="FILE", help="identities of --features, .meta or .npy, for the metrics")
    parser.add_argument("--out", metavar="DIR", help="folder for the results (default: outputs/<config name>)")
    arguments = parser.parse_args()
    run_inference(
        read_config(arguments),
        model_folder=arguments.model,
        features=arguments.features,
        labels=arguments.labels,
        out=arguments.out or ROOT / "outputs" / Path(arguments.config).stem,
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
