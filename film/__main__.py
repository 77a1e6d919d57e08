"The script `film`, and `python -m film`."
import signal


def main() -> int:
    "`film.cli.main`; Ctrl-C while it loads ends the process as a signal does, without a traceback."
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler: signal.signal(signal.SIGINT, signal.SIG_DFL)  # else it is ignored, as in the background of a script
    from film.cli import main
    signal.signal(signal.SIGINT, before)
    return main()


if __name__ == "__main__": raise SystemExit(main())
