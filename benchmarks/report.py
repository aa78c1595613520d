"""Measure the report of a run's folder: seconds, peak memory, size, and the time in which Chromium opens it.

    python benchmarks/report.py --run results --folder DIR [--images thumbs.npy] [--labels part1_test.meta]

The report is written in a separate process. Times of the page are medians over several openings, each in a new browser
context without a cache. They are the time until the overview is shown, the time until the largest cluster is shown, and
the longest frame while this cluster is scrolled from end to end. With labels the script also measures how well the
order of the review finds impure clusters. A cluster is impure if it has four or more instances and a tenth of them are
not of its most frequent identity.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from harness import finish_side, report, run_side
from starfc.data.files import read_labels
from starfc.review.measures import review
from starfc.review.report import write_report
from starfc.runs.folder import Run
from starfc.runtime.machine import set_threads
from starfc.runtime.stages import Stages

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SCROLL = """() => new Promise((done) => {
    const { scroller } = detail;
    const steps = 60;
    let [step, longest, before] = [0, 0, performance.now()];
    const frame = () => {
        const now = performance.now();
        longest = Math.max(longest, now - before);
        before = now;
        scroller.scrollTop = (scroller.scrollHeight * ++step) / steps;
        if (step < steps) requestAnimationFrame(frame);
        else done(longest);
    };
    requestAnimationFrame(frame);
})"""


def write(arguments: argparse.Namespace) -> None:
    set_threads(arguments.threads)
    stages, folder = Stages(), arguments.folder / "report"
    with stages.stage("open the run"):
        run = Run.open(arguments.run)
        features = run.features()
    with stages.stage("write the report"):
        found = write_report(
            folder, run.labels, run.parsed, run.rule, features=features, record=run.record, images=arguments.images
        )
    finish_side("write", arguments.folder, stages, **found)


def opened(page_path: Path, times: int) -> dict[str, float]:
    """Return the medians over several openings, in milliseconds."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    taken: dict[str, list[float]] = {"open_ms": [], "largest_cluster_ms": [], "longest_frame_ms": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        for _ in range(times):
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            started = time.perf_counter()
            page.goto(page_path.as_uri())
            page.wait_for_selector("html[data-ready]")
            taken["open_ms"].append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
            page.evaluate("location.hash = '#/cluster/0'")
            page.wait_for_selector(".members .tile", state="attached")
            taken["largest_cluster_ms"].append(1000 * (time.perf_counter() - started))
            taken["longest_frame_ms"].append(page.evaluate(SCROLL))
            page.context.close()
        version = browser.version
        browser.close()
    return {**{name: round(statistics.median(values), 1) for name, values in taken.items()}, "chromium": version}


def ranking(run: Run, identities: np.ndarray) -> dict[str, float]:
    """Count how many of the doubtful clusters, and of the first clusters of the review, are impure."""
    found = review(run.parsed, run.labels)
    rows = np.argsort(run.labels, kind="stable")
    members = np.split(identities[rows], np.cumsum(found.sizes)[:-1])
    purity = np.array([np.unique(m, return_counts=True)[1].max() / len(m) for m in members])
    impure = (purity < 0.9) & (found.sizes >= 4)
    doubtful = found.cuts.suspicion > 0
    order = [c for c in found.order if found.sizes[c] >= 4]
    return {
        "clusters_of_4": len(order),
        "impure": int(impure.sum()),
        "doubtful": int(doubtful.sum()),
        "impure_of_doubtful": int((impure & doubtful).sum()),
        "impure_of_first_100": int(impure[order[:100]].sum()),
        "auc_of_order": round(float(roc_auc_score(impure[order], -np.arange(len(order)))), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a run with stored edges")
    parser.add_argument("--folder", type=Path, required=True, help="folder for the report")
    parser.add_argument("--images", type=Path, help="pictures of the instances")
    parser.add_argument("--labels", type=Path, help="identities of the instances")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--openings", type=int, default=5)
    parser.add_argument("--out", type=Path, help="file for the result")
    parser.add_argument("--side", choices=["write"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        write(arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    images = [] if arguments.images is None else ["--images", arguments.images]
    written = run_side(
        __file__, "write", arguments.folder, "--run", arguments.run, "--threads", arguments.threads, *images
    )
    page = opened(arguments.folder.absolute() / "report" / "index.html", arguments.openings)
    ranked = {}
    if arguments.labels is not None:
        run = Run.open(arguments.run)
        ranked = {"ranking": ranking(run, read_labels(arguments.labels, len(run.labels)))}
    report({**written, "page": page, **ranked}, arguments.threads, arguments.out)


if __name__ == "__main__":
    main()
