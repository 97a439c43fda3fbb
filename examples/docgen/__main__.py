"""Command line of the demo: ``python -m examples.docgen``."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from askonce import BackendUnavailable
from examples.docgen.demo import NAMESPACE, Settings, run
from examples.docgen.numbers import Result
from examples.docgen.report import summary, table

_LOG_WIDTH = 100  # a log has no width of its own
_PICTURE_WIDTH = 88


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and print its table; 0 if every call got an answer in the end."""
    options = _parser().parse_args(arguments)
    if options.live and not os.environ.get("OPENAI_API_KEY"):
        print("--live asks the real model and needs OPENAI_API_KEY in the environment.", file=sys.stderr)
        return 2
    settings = _settings(options)
    console = Console(width=None if sys.stdout.isatty() else _LOG_WIDTH)
    try:
        results = run(settings, console)
    except BackendUnavailable as error:
        print(f"There is no Redis to show anything with: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    _show(console, settings, results)
    if options.svg:
        picture = Console(record=True, file=io.StringIO(), force_terminal=True, width=_PICTURE_WIDTH)
        _show(picture, settings, results)
        picture.save_svg(str(options.svg), title="make demo")
    failures = [failure for each in results for failure in each.failures]
    for failure in failures:
        console.print(failure, style="red", highlight=False)
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m examples.docgen", description="A documentation generator, cached."
    )
    parser.add_argument(
        "--live", action="store_true", help="ask OpenAI instead of the stand-in (costs some cents)"
    )
    parser.add_argument("--workers", type=_positive, default=default.workers, help="processes (%(default)s)")
    parser.add_argument(
        "--functions", type=_positive, default=default.functions, help="to explain (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="of everything that is drawn by lot")
    parser.add_argument(
        "--url", help=f"a Redis to use instead of an embedded one; namespace {NAMESPACE} is cleared"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the pages that were written")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="save the table as a picture")
    parser.add_argument("--quick", action="store_true", help="two workers, few functions, a fast model")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings(
        live=options.live,
        workers=options.workers,
        functions=options.functions,
        seed=options.seed,
        url=options.url,
        out=options.out,
    )
    return replace(settings, workers=2, functions=8, latency=(0.01, 0.03)) if options.quick else settings


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def _show(console: Console, settings: Settings, results: Sequence[Result]) -> None:
    console.print(table(results, live=settings.live))
    console.print(summary(results))


if __name__ == "__main__":
    # As Ctrl-C does: what was started is ended, and the folder removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
