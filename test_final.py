"""Cluster a split or a file of features: python test_final.py [--config FILE] [--model DIR] [--run DIR] [--out DIR]"""

import sys
from pathlib import Path

from starfc.commands.scripts import cluster_script, run_command

ROOT = Path(__file__).resolve().parent
ABOUT = "Cluster embeddings with a trained STAR-FC model, fixed thresholds."


def main() -> None:
    cluster_script("fixed", ABOUT, ROOT / "configs" / "cfg_gcn_structural_ms1m.py", ROOT / "outputs")


if __name__ == "__main__":
    sys.exit(run_command(main))
