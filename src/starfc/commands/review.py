"""``starfc review``: review a run in a browser; answers are applied as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from starfc.commands import options


def review(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of `starfc cluster`.")],
    images: options.Images = None,
    thumbnails: options.Thumbnails = 64,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the server; 0: any that is free.")] = 0,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    threads: options.Threads = None,
    quiet: options.QuietText = False,
    verbose: options.Verbose = False,
) -> None:
    """Review a run in a browser. Answers, marks and names are applied as they come, until Ctrl-C.

    The page is that of `starfc report`. A server on this machine serves it, to this machine only; its address holds a
    random token. It writes nothing outside DIR. While it runs, no other command can change DIR.
    """
    options.set_messages(quiet, verbose)
    import tempfile
    import webbrowser

    from starfc.runs.apply import Marked
    from starfc.runs.reviewing import Reviewing
    from starfc.runs.server import ReviewApp, listen, serve
    from starfc.runtime.machine import set_threads

    set_threads(threads)
    with listen(port) as listening, tempfile.TemporaryDirectory(prefix="starfc-review-") as temporary:
        marked = Marked(folder)
        with marked.held("review"):
            place = Path(temporary)
            reviewing = Reviewing(marked, place, images, thumbnails)
            reviewing.page()
            app = ReviewApp(reviewing, listening.getsockname()[1])
            print(f"{app.address}\nCtrl-C ends the review; everything is applied as it comes", flush=True)
            if browser:  # through a file, because others can see the command line of a browser
                link = place / "open.html"
                link.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={app.address}">')
                webbrowser.open(link.as_uri())
            serve(app, listening)
    steps = marked.num_steps
    print(f"{folder} is up to date; {steps:,} step{'' if steps == 1 else 's'} can be undone with `starfc undo`")
