"""Cluster with the dynamic threshold: python test_dynamic.py [--config FILE] [--model DIR] [--run DIR] [--out DIR]"""

import argparse
import sys
from pathlib import Path

from starfc.cli import given_thresholds, model_arguments, read_source, results_folder, run_command

ROOT = Path(__file__).resolve().parent
OUT = "outputs/<config name>-dynamic; of a run, DIR/results/<test split>-dynamic"


def main() -> None:
    parser = argparse.ArgumentParser(description="Cluster embeddings with a trained STAR-FC model, dynamic threshold.")
    model_arguments(parser, default=str(ROOT / "configs" / "cfg_gcn_ms1m_hierarchical.py"), out=OUT)
    arguments = parser.parse_args()
    from starfc.inference import report, run_inference

    source = read_source(parser, arguments)
    out = results_folder(arguments, source, "dynamic", ROOT / "outputs")
    record = run_inference(
        source.config,
        refinement="dynamic",
        model_folder=source.model_folder,
        features=arguments.features,
        labels=arguments.labels,
        **given_thresholds(arguments, "dynamic"),
        out=out,
        overwrite=arguments.overwrite,
    )
    print(report(record, out))


if __name__ == "__main__":
    sys.exit(run_command(main))
