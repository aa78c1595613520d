"""Cluster a split or a file of features: python test_final.py [--config FILE] [--model DIR] [--run DIR] [--out DIR]"""

import argparse
import sys
from pathlib import Path

from starfc.cli import given_thresholds, model_arguments, read_source, results_folder, run_command

ROOT = Path(__file__).resolve().parent
OUT = "outputs/<config name>; of a run, DIR/results/<test split>-fixed"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cluster embeddings with a trained STAR-FC model, fixed thresholds.")
    model_arguments(parser, default=str(ROOT / "configs" / "cfg_gcn_structural_ms1m.py"), out=OUT)
    arguments = parser.parse_args()
    from starfc.inference import report, run_inference

    source = read_source(parser, arguments)
    out = results_folder(arguments, source, "fixed", ROOT / "outputs")
    record = run_inference(
        source.config,
        refinement="fixed",
        model_folder=source.model_folder,
        features=arguments.features,
        labels=arguments.labels,
        **given_thresholds(arguments, "fixed"),
        out=out,
        overwrite=arguments.overwrite,
    )
    print(report(record, out))


if __name__ == "__main__":
    sys.exit(run_command(main))
