"""Cluster with the dynamic threshold: python test_dynamic.py [--config FILE] [--model DIR] [--run DIR] [--out DIR]"""

import sys
from pathlib import Path

from starfc.commands.scripts import cluster_script, run_command

ROOT = Path(__file__).resolve().parent
ABOUT = "Cluster embeddings with a trained STAR-FC model, dynamic threshold."


def main() -> None:
    cluster_script("dynamic", ABOUT, ROOT / "configs" / "cfg_gcn_ms1m_hierarchical.py", ROOT / "outputs")


if __name__ == "__main__":
    sys.exit(run_command(main))
